"""The simulated workers and the broker that wakes them. Their calls are those of JobStore."""

import itertools
from collections import deque
from typing import TextIO

from job_model import Job, WorkerKind
from network import Network
from scenario import (
    AFTER,
    BEFORE,
    CHILD_POLL_MS,
    DEDICATED,
    JOBS_PER_TASK,
    LARGE,
    LOST_SHARE,
    MIXED,
    NOW,
    PASS_ON_MS,
    POOL,
    RETRY_MS,
    RUN_AFTER,
    RUN_BEFORE,
    SMALL,
    SMALL_ONES,
    Request,
    Scenario,
    Worker,
)
from script_variants import EARLIER, LATER, LATER_POOL, RULES, build_library
from store_server import EPOCH_MS, Calls, pack

from core.celery_app import MAX_PENDING
from core.jobs.models import NO_POOL, WorkerReport
from core.redis_client import PREFIX


class SimulatedWorkers(Network):
    """All workers, idle, running or about to start."""

    def __init__(self, scenario: Scenario, path: str, trace: TextIO | None) -> None:
        super().__init__(scenario, path, trace)
        self._numbers = itertools.count(1)
        self._removed: set[int] = set()  # workers that the scaler is about to end
        self._idle: deque[tuple[Worker, int]] = deque()
        self._pending_messages = 0
        self._started: dict[int, int] = {}  # worker -> when its pod started
        self._workers = [Worker(index) for index in range(scenario.workers)]
        control = RULES.get(scenario.without or "", ())
        self._libraries = [build_library(EARLIER), build_library(control), build_library(LATER)]
        for library in self._libraries:
            self._wire.exchange([pack("FUNCTION", "LOAD", "REPLACE", library.code)], 1)
        self._calls: dict[tuple[int, WorkerKind], Calls] = {}

    def _calls_of(self, version: int, kind: WorkerKind) -> Calls:
        if (version, kind) not in self._calls:
            report = WorkerReport(
                device="NVIDIA L4",
                precision="bfloat16",
                network="vgg19",
                networks=["vgg16", "vgg19"],
                max_size_px=kind.size_px,
                id="pool",
                pools=[*kind.pools],
            )
            self._calls[version, kind] = Calls(self._libraries[version], report)
        return self._calls[version, kind]

    def _start_pod(self, worker: Worker, after_ms: float) -> None:
        worker.state = "starting"
        self._started[worker.index] = self.now
        self._after(after_ms, self._start, worker, worker.epoch)

    def _start(self, worker: Worker, epoch: int) -> None:
        if worker.epoch != epoch:
            return
        digit = worker.index % 10
        worker.version = NOW
        share = (self.now - EPOCH_MS) / self._scenario.duration_ms
        if share < 0.4 and digit in RUN_BEFORE and not self._scenario.mixed:
            worker.version = BEFORE
        elif share >= 0.6 and (digit in RUN_AFTER or worker.index % 20 == DEDICATED[0]):
            worker.version = AFTER
        pools: tuple[str, ...] = (NO_POOL,)
        if self._scenario.mixed:
            pools = (NO_POOL, POOL) if digit in MIXED else pools
        elif digit in DEDICATED and not self._scenario.scales:
            pools = (POOL,)
        if worker.version == AFTER:
            pools += tuple(f"{LATER_POOL}{pool}" for pool in pools)
        size = SMALL if digit in SMALL_ONES else LARGE
        is_before = worker.version == BEFORE
        worker.kind = WorkerKind(pools, size, 2 if worker.version == AFTER else 1, is_before)
        worker.calls = self._calls_of(worker.version, worker.kind)
        worker.generation += 1
        worker.name = b"w%04d-%010d" % (worker.index, worker.generation)
        worker.state, worker.token, worker.job = "ready", None, None
        worker.cut_until = worker.frozen_until = 0
        self._set_capacity(worker)
        self._beat(worker)
        self._become_idle(worker)

    def _set_capacity(self, worker: Worker) -> None:
        is_able = (
            worker.state == "ready" and self._is_sound(worker) and self.now >= self._outage_until
        )
        kind = worker.kind if is_able else None
        self.outcome.capacity.append((self.now, worker.index, kind))

    def _is_sound(self, worker: Worker) -> bool:
        """Whether neither the worker nor its own network fails now."""
        return self.now >= worker.cut_until and self.now >= worker.frozen_until

    def _beat(self, worker: Worker) -> None:
        template, name = worker.calls.heartbeat, worker.name
        pools = len(worker.kind.pools)

        def fill(at: int) -> bytes:
            now = b"%d" % at
            old = b"%d" % (at - 60_000)
            return template % (now, name, name, *(now, now, name, old) * pools, now, name, old)

        beat = Request(
            "heartbeat",
            fill,
            self._on_beat,
            worker=worker,
            is_timer=True,
            replies=worker.calls.heartbeat_replies,
            lost=lambda request: self._beat(request.worker),
        )
        beat.token = None
        self._send(beat)

    def _on_beat(self, _: int, request: Request, forgotten: list[bytes]) -> None:
        if forgotten:
            keys = [
                ("ZREM", "workers"),
                *(("HDEL", f"worker_{kind}") for kind in ("info", "use", "polls")),
            ]
            calls = [pack(command, f"{PREFIX}{key}", *forgotten) for command, key in keys]
            self._wire.exchange(calls, len(calls))
        self._send(request, self._scenario.heartbeat_ms)

    def _become_idle(self, worker: Worker) -> None:
        worker.jobs_in_task = 0
        if self._pending_messages:
            self._pending_messages -= 1
            self._after(5, self._wake, worker, worker.epoch)
        else:
            self._idle.append((worker, worker.epoch))

    def _notify(self, _: object = None) -> bool:
        """Put a message into the broker. It may be lost, and so may the worker that gets it."""
        if self.now < self._outage_until:
            return False
        if self._rng.random() < LOST_SHARE:
            return True
        while self._idle:
            worker, epoch = self._idle.popleft()
            if worker.epoch == epoch:
                self._after(self._window_ms + self._rng.randrange(5), self._wake, worker, epoch)
                return True
        self._pending_messages = min(self._pending_messages + 1, MAX_PENDING)
        return True

    def _wake(self, worker: Worker, epoch: int) -> None:
        if worker.epoch != epoch or worker.state != "ready":
            return
        if self.now < worker.frozen_until:
            self._after(worker.frozen_until - self.now, self._wake, worker, epoch)
        elif self.now < max(
            worker.cut_until, self._outage_until
        ):  # the message is lost with the connection
            self._idle.append((worker, epoch))
        else:
            self._claim(worker)

    def _claim(self, worker: Worker) -> None:
        token = b"%032d" % next(self._numbers)
        packed = worker.calls.claim % (token, worker.name, b"%b")
        self._send(
            Request(
                "claim", packed, self._on_claim, worker=worker, extra=token, lost=self._claim_again
            )
        )

    def _claim_again(self, request: Request) -> None:
        if self._scenario.without == "retries of workers":
            self._become_idle(request.worker)
        else:
            self._send(request, RETRY_MS)

    def _on_claim(self, at: int, request: Request, answer: bytes | None) -> None:
        worker = request.worker
        job = self._model.claimed(at, request.extra, worker.name, worker.kind, answer)
        self._answer(request, self._receive_claim, job)

    def _receive_claim(self, request: Request, job: Job | None) -> None:
        worker = request.worker
        if job is None:
            if self.now >= worker.next_pass_on:
                queue = pack("ZCARD", f"{PREFIX}queue")
                self._send(Request("count", lambda _: queue, self._pass_on, worker=worker))
            self._become_idle(worker)
            return
        worker.state, worker.token, worker.job = "ready", request.extra, job
        worker.is_ending = False
        worker.done, worker.run_from, worker.shift = job.done, self.now, 0
        left_ms = (1 - job.done) * job.run_ms
        self._after(left_ms, self._end_run, worker, worker.token)
        for kind, ms, call, replied in (
            ("renew", self._scenario.renew_ms, worker.calls.renew, self._on_renew),
            (
                "checkpoint",
                self._scenario.checkpoint_ms,
                worker.calls.save_checkpoint,
                self._on_checkpoint,
            ),
        ):
            packed = call % (job.id, worker.token, b"%b")
            timer = Request(kind, packed, replied, worker=worker, job=job, extra=ms, is_timer=True)
            timer.lost = self._retry_timer
            self._send(timer, ms)
        if job.is_poison:
            self._after(self._rng.uniform(300, 1500), self._kill, worker, worker.epoch, True)

    def _retry_timer(self, request: Request) -> None:
        self._send(request, request.extra)

    def _pass_on(self, at: int, request: Request, queued: int) -> None:
        if queued:
            request.worker.next_pass_on = at + PASS_ON_MS
            self._notify()

    def _on_renew(self, at: int, request: Request, answer: bytes) -> None:
        self._model.renewed(at, request.job, request.token, answer)
        if answer == b"ok":
            self._send(request, self._window_ms + request.extra)
        else:
            self._answer(request, self._stop_run, answer)

    def _stop_run(self, request: Request, answer: bytes) -> None:
        worker, token = request.worker, request.token
        if worker.token != token:
            return
        if answer != b"stale":  # it writes the picture so far; the run may end meanwhile
            status = "canceled" if answer == b"cancel" else "failed"
            self._after(
                self._rng.uniform(50, 2000), self._finish_stopped, request, status, worker.epoch
            )
        elif not worker.is_ending:  # a result is sent until it is answered
            self._next_job(worker)

    def _on_checkpoint(self, at: int, request: Request, answer: bytes) -> None:
        worker, job = request.worker, request.job
        part = (at - worker.run_from - worker.shift) / job.run_ms
        done = min(0.99, max(0.0, worker.done + part))
        self._model.checkpointed(job, request.token, done, answer)
        if answer != b"stale":
            self._send(request, self._window_ms + request.extra)

    def _end_run(self, worker: Worker, token: bytes) -> None:
        if worker.token != token:
            return
        if worker.shift or self.now < worker.frozen_until:  # it was frozen, and has done nothing
            ms = max(worker.shift, worker.frozen_until - self.now)
            worker.shift = 0
            self._after(ms, self._end_run, worker, token)
        else:
            self._finish(worker, "succeeded", worker.job, token)

    def _finish_stopped(self, request: Request, status: str, epoch: int) -> None:
        """Another thread of the worker does so: it does not know whether the run has ended."""
        if request.worker.epoch == epoch:
            self._finish(request.worker, status, request.job, request.token)

    def _finish(self, worker: Worker, status: str, job: Job, token: bytes) -> None:
        worker.is_ending = worker.is_ending or worker.token == token
        calls = worker.calls
        if status == "succeeded":
            digest = b"sha256:%064d" % int(token)
            packed = calls.succeed % (job.id, token, digest, digest, b"%b")
        else:
            call = calls.end_canceled if status == "canceled" else calls.fail
            packed = call % (job.id, token, b"%b")
        request = Request(
            status,
            packed,
            self._on_finish,
            worker=worker,
            job=job,
            extra=status,
            lost=self._finish_again,
        )
        request.token = token
        self._send(request)

    def _finish_again(self, request: Request) -> None:
        if request.worker.token == request.token:
            if self._scenario.without == "retries of workers":
                self._next_job(request.worker)
            else:
                self._send(request, RETRY_MS)

    def _on_finish(self, at: int, request: Request, answer: bytes) -> None:
        self._model.finished(at, request.job, request.token, request.extra, answer)
        self._answer(request, self._receive_end)

    def _receive_end(self, request: Request) -> None:
        if request.worker.token == request.token:
            self._next_job(request.worker)

    def _next_job(self, worker: Worker) -> None:
        worker.token = worker.job = None
        if worker.state == "stopping":
            self._exit(worker)
            return
        worker.jobs_in_task += 1
        if worker.jobs_in_task < JOBS_PER_TASK:
            self._claim(worker)
        else:
            self._notify()
            self._become_idle(worker)

    # ------------------------------------------------------------------ ends of workers

    def _kill(self, worker: Worker, epoch: int, is_child: bool) -> None:
        """kill -9. is_child: the parent lives, and requeues the job; otherwise the host is gone."""
        if worker.epoch != epoch or worker.state != "ready":
            return
        self._count("kills of a child" if is_child else "losses of a host")
        name, calls = worker.name, worker.calls
        worker.epoch += 1
        worker.state, worker.token, worker.job = "starting", None, None
        self._set_capacity(worker)
        if is_child:
            self._after(CHILD_POLL_MS, self._bury, name, calls, worker)
        restart_ms = self._rng.uniform(3000, 8000) if is_child else self._rng.uniform(2e4, 6e4)
        self._after(restart_ms, self._start, worker, worker.epoch)

    def _bury(self, name: bytes, calls: Calls, worker: Worker) -> None:
        packed = calls.requeue_jobs_of % (name, b"%b")

        def replied(at: int, request: Request, answer: int) -> None:
            self._model.worker_exited(at, name, answer)
            if answer:
                self._notify()

        request = Request(
            "requeue_jobs_of",
            packed,
            replied,
            lost=lambda request: self._send(request, CHILD_POLL_MS),
        )
        if self.now < worker.cut_until:
            self._after(worker.cut_until - self.now, self._send, request)
        else:
            self._send(request)

    def _stop(self, worker: Worker) -> None:
        """SIGTERM: the worker releases its job and exits."""
        if worker.state != "ready":
            self._exit(worker)
            return
        worker.state = "stopping"
        self._set_capacity(worker)
        token, job = worker.token, worker.job
        if token is None:
            # It may have sent a claim. Its answer finds no process; the lease expires.
            self._exit(worker)
            return
        packed = worker.calls.release % (job.id, token, b"%b")
        request = Request(
            "release",
            packed,
            self._on_release,
            worker=worker,
            job=job,
            lost=lambda request: self._exit(request.worker),
        )
        worker.token = None
        self._send(request)

    def _on_release(self, at: int, request: Request, answer: bytes) -> None:
        self._model.released(at, request.job, request.token, answer)
        self._notify()
        self._answer(request, lambda request: self._exit(request.worker))

    def _exit(self, worker: Worker) -> None:
        worker.epoch += 1
        is_wanted = worker.state != "removed" and worker.index not in self._removed
        worker.state, worker.token, worker.job = "off", None, None
        self._set_capacity(worker)
        if is_wanted:
            self._after(self._rng.uniform(3000, 8000), self._start, worker, worker.epoch)
            worker.state = "starting"
        else:
            self._removed.discard(worker.index)
            self.outcome.gpu_ms += self.now - self._started.pop(worker.index)

    def _update(self) -> None:
        """Start the workers again whose version changes now."""
        digits = RUN_BEFORE if self.now - EPOCH_MS < 0.5 * self._scenario.duration_ms else RUN_AFTER
        for worker in self._workers:
            is_one = worker.index % 10 in digits or worker.index % 20 == DEDICATED[0]
            if worker.state == "ready" and is_one:
                self._after(self._rng.uniform(0, 30_000), self._update_one, worker, worker.epoch)

    def _update_one(self, worker: Worker, epoch: int) -> None:
        if worker.epoch == epoch and worker.state == "ready":
            self._count("updates")
            self._stop(worker)

    def _count(self, fault: str) -> None:
        self.outcome.faults[fault] = self.outcome.faults.get(fault, 0) + 1
