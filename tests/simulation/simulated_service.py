"""A service in simulated time: clients, API processes with the real reaper, faults, the scaler."""

import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TextIO
from unittest import mock

from autoscaler import SYNC_SECONDS, Autoscaler, read_spec
from job_model import Job, ViolationError, WorkerKind
from scenario import (
    AFTER,
    APIS,
    BEFORE,
    CLIENT_RETRY_MS,
    DRAIN_MS,
    LARGE,
    MIN_WORKERS,
    NOW,
    REFUSED_MS,
    RETRY_MS,
    START_MS,
    TIMEOUT_MS,
    Outcome,
    Request,
    Scenario,
    Worker,
    make_arrivals,
)
from simulated_workers import SimulatedWorkers
from store_server import (
    EPOCH_MS,
    PAINTING,
    PHOTO,
    RETENTION_SECONDS,
    WORK_DIGITS,
    ClockedRedis,
    Server,
    Using,
    make_submission,
    pack,
)

from api.background import notifications, reaper
from core import errors
from core.jobs.models import NO_POOL, SubmissionOptions
from core.jobs.store import JobStore
from core.jobs.store_report import StoreReport
from core.redis_client import PREFIX
from core.style.spec import StyleSpec


@dataclass
class Api:
    """One API process: its reaper, and its clock, which may jump."""

    store: JobStore
    reaper: reaper.Reaper
    wall_offset_ms: int = 0
    down_until: int = 0


def simulate(scenario: Scenario, trace: TextIO | None = None) -> Outcome:
    """Run the scenario to its end, or to the first violation of the model."""
    logging.getLogger("api.background").setLevel(logging.CRITICAL)
    logging.getLogger("core.jobs").setLevel(logging.CRITICAL)
    with Server() as server, ExitStack() as stack:
        service = Service(scenario, server.path, trace, stack)
        try:
            service.run()
        except ViolationError as violation:
            service.outcome.violation = f"{service.now - EPOCH_MS} ms: {violation}"
            if trace:
                trace.write(f"{service.outcome.violation}\n")
        return service.close()


class Service(SimulatedWorkers):
    """The simulation of one scenario."""

    def __init__(
        self, scenario: Scenario, path: str, trace: TextIO | None, stack: ExitStack
    ) -> None:
        super().__init__(scenario, path, trace)
        self._end_at = self._faults_end_at = EPOCH_MS + scenario.duration_ms
        self._arrivals_over = False
        self._leader_until = 0
        self._violation: ViolationError | None = None  # that a reaper has met
        for digest in (PHOTO, PAINTING):
            self._wire.exchange([pack("ZADD", f"{PREFIX}orphans", EPOCH_MS * 2, digest)], 1)
        self._submissions: dict[tuple[Any, ...], bytes] = {}
        self._prepare_apis(path, stack)
        self._autoscaler = Autoscaler(read_spec(), MIN_WORKERS, scenario.workers)

    def _prepare_apis(self, path: str, stack: ExitStack) -> None:
        clock = SimpleNamespace(time=self._wall_seconds, monotonic=lambda: self.now / 1000)
        stack.enter_context(mock.patch.object(reaper, "time", clock))
        stack.enter_context(mock.patch.object(notifications, "notify_workers", self._notify))
        if self._scenario.without == "contact before reaping":
            stack.enter_context(
                mock.patch.object(reaper.StoreContact, "record_answer", return_value=True)
            )
        self._api: Api | None = None  # whose tick runs now
        self._apis = []
        for number in range(APIS):
            is_cut = lambda: self.now < self._outage_until  # noqa: E731
            client = ClockedRedis(path, lambda: self.now, is_cut)
            with Using(self._libraries[NOW], lambda *_, client=client: client):
                store = JobStore("redis://simulated", accepts_unsafe=True)
            # Keys that expire do so by the server's own clock, so the leader's term is made long,
            # and the simulation ends it.
            # The check of its settings is no decision about jobs, and costs the most.
            store.monitor.check = self._check_contact
            lead, reap = store.acquire_leadership, store.reap_expired_leases
            store.acquire_leadership = lambda name, term, lead=lead: self._lead(lead, name, term)

            def reap_and_check(reap: Any = reap) -> tuple[int, int]:
                answer = reap()
                self._record("reap", answer)
                try:
                    self._check_expired()
                    self._model.reaped(self.now, answer)
                except ViolationError as violation:  # the reaper would only log it
                    self._violation = violation
                return answer

            store.reap_expired_leases = reap_and_check
            process = reaper.Reaper(
                store,
                SimpleNamespace(is_shared=False),
                None,
                None,
                job_retention_seconds=RETENTION_SECONDS,
            )
            process._process_id = f"api-{number}"
            for duty in process._parts["reaper"].duties:
                if duty.name == "notifying":
                    duty.run = lambda run=duty.run: self._run_notifying(run)
            self._apis.append(Api(store, process))
        stack.enter_context(Using(self._libraries[NOW], mock.Mock()))

    def _check_contact(self) -> StoreReport:
        if self.now < self._outage_until:
            raise errors.StoreUnavailable()
        return StoreReport()

    def _check_expired(self) -> None:
        """Leases expire because a worker or its network fails, not because it drops its job.

        After an outage, sound workers get the time to renew before a job is taken from them.
        """
        expired = [job for job in self._model.running.values() if job.lease_until <= self.now]
        if not expired:
            return
        workers = {worker.name: worker for worker in self._workers if self._is_sound(worker)}
        for job in expired:
            worker = workers.get(job.worker)
            if worker is None or worker.state != "ready":
                continue
            if worker.token != job.token:
                failed_until = max(worker.cut_until, worker.frozen_until, self._outage_until)
                if self.now > failed_until + TIMEOUT_MS + 2 * RETRY_MS:
                    raise ViolationError(f"a sound worker has dropped {job.id.decode()}")
            elif self.now < self._outage_until + 1000:
                raise ViolationError(f"an outage takes {job.id.decode()} from a sound worker")

    def _lead(self, lead: Callable[[str, float], bool], name: str, term_seconds: float) -> bool:
        leads = lead(name, 1000 * term_seconds)
        if leads:
            self._leader_until = self.now + round(1000 * term_seconds)
        return leads

    def _wall_seconds(self) -> float:
        assert self._api is not None
        return (self.now + self._api.wall_offset_ms) / 1000

    def run(self) -> None:
        """Simulate until every job has ended."""
        scenario = self._scenario
        count = MIN_WORKERS if scenario.scales else scenario.workers
        for worker in self._workers[:count]:
            self._start_pod(worker, self._rng.randrange(500))
        for number in range(APIS):
            self._after(1000 + 300 * number, self._tick_later, number)
        self._after(1000 * SYNC_SECONDS, self._scale_later)
        for share in (0.4, 0.6):
            self._after(share * scenario.duration_ms, self._update)
        for share in (0.15, 0.5, 0.8):
            self._after(share * scenario.duration_ms, self._begin_outage)
        self._arrivals = make_arrivals(scenario, self._rng)
        self._submit_next()
        self._next_fault()
        self._run_events()
        self._compare_store()

    # ------------------------------------------------------------------ faults

    def _next_fault(self) -> None:
        """Schedule the next fault of any worker or API process."""
        mean_ms = self._scenario.fault_minutes * 60_000 / 3 / self._scenario.workers
        self._after(self._rng.expovariate(1 / mean_ms), self._fault)

    def _fault(self) -> None:
        if self.now >= self._faults_end_at:
            return
        rng = self._rng
        worker = self._workers[rng.randrange(len(self._workers))]
        kind = rng.choice(("kill", "cut", "freeze", "api"))
        if kind == "api":
            # As often as with few workers: there are as many API processes.
            if len(self._workers) <= MIN_WORKERS or (
                rng.random() < MIN_WORKERS / len(self._workers)
            ):
                self._fault_api(rng.choice(self._apis))
        elif worker.state == "ready":
            if kind == "kill":
                self._kill(worker, worker.epoch, rng.random() < 0.7)
            else:
                self._fault_worker(
                    worker, kind, round(min(60_000, rng.expovariate(1 / 5000)) + 500)
                )
        self._next_fault()

    def _fault_worker(self, worker: Worker, kind: str, ms: int) -> None:
        if kind == "cut":  # its messages are lost, and it goes on with its run
            self._count("partitions of a worker")
            worker.cut_from, worker.cut_until = self.now, self.now + ms
        else:  # its clock stands still: SIGSTOP, or a suspended host
            self._count("frozen workers")
            worker.shift = (worker.shift if worker.token else 0) + ms
            worker.frozen_until = self.now + ms
        self._set_capacity(worker)
        self._after(ms, self._end_fault, worker, worker.epoch)

    def _end_fault(self, worker: Worker, epoch: int) -> None:
        if worker.epoch == epoch:
            self._set_capacity(worker)

    def _fault_api(self, api: Api) -> None:
        if self._rng.random() < 0.5:
            self._count("jumps of an API's clock")
            api.wall_offset_ms += self._rng.randint(-3_600_000, 3_600_000)
        else:
            self._count("pauses of an API")
            api.down_until = self.now + self._rng.randint(1000, 30_000)

    def _begin_outage(self) -> None:
        self._count("outages of the store")
        ms = self._rng.randint(2000, 12_000)
        self._outage_until = self.now + ms
        for worker in self._workers:
            if worker.state == "ready":
                self._set_capacity(worker)
                self._after(ms, self._end_fault, worker, worker.epoch)

    # ------------------------------------------------------------------ clients

    def _submit_next(self) -> None:
        arrival = next(self._arrivals, None)
        if arrival is None:
            self._faults_end_at = min(self._faults_end_at, self.now)
            self._end_at = self.now
            self._arrivals_over = True
        else:
            self._after(arrival[0], self._submit, arrival[1])

    def _submit(self, jobs: list[Job]) -> None:
        for job in jobs:
            self._send_submission(job)
        self._submit_next()

    def _send_submission(self, job: Job) -> None:
        share = (self.now - EPOCH_MS) / self._scenario.duration_ms
        version = NOW if job.format == 1 else AFTER
        if share < 0.4 and not self._scenario.mixed and self._rng.random() < 0.3:
            version = BEFORE
        kind = (version, job.size, job.pool, job.priority, job.deadline_ms)
        if kind not in self._submissions:
            self._submissions[kind] = make_submission(
                self._libraries[version],
                StyleSpec(size=job.size),
                SubmissionOptions(
                    priority=job.priority,
                    pool=job.pool or None,
                    deadline_seconds=job.deadline_ms and job.deadline_ms / 1000,
                ),
                self._scenario.limits,
            )
        job_id = b"job_%026d" % next(self._numbers)
        packed = self._submissions[kind] % (
            job_id,
            job_id,
            b"owner-%03d" % job.owner,
            b"%*d" % (WORK_DIGITS, job.run_ms * 10_000),
            b"%064d" % job.number,
            b"%b",
        )
        self._send(
            Request(
                "create",
                packed,
                self._on_create,
                job=job,
                extra=job_id,
                lost=lambda request: self._after(CLIENT_RETRY_MS, self._send_submission, job),
            )
        )

    def _on_create(self, at: int, request: Request, answer: list[bytes]) -> None:
        outcome, job_id = answer
        job, limits = request.job, self._scenario.limits
        is_new = job.created_at is None
        if outcome == b"created":
            if is_new:
                job.id = job_id
                self.outcome.accepted.append(job)
            self._model.created(at, job, job_id)
            # A repeated request may come while requeued jobs exceed the limit.
            if is_new and self._model.queued > limits.queued:
                raise ViolationError("the queue is longer than its limit")
            if is_new and self._model.unfinished[job.owner] > limits.per_owner:
                raise ViolationError("an owner has more unfinished jobs than the limit")
        elif not is_new:
            raise ViolationError(f"an accepted job is answered {outcome.decode()}")
        self._answer(request, self._receive_submission, outcome)

    def _receive_submission(self, request: Request, outcome: bytes) -> None:
        job = request.job
        if outcome != b"created":
            self._after(REFUSED_MS, self._send_submission, job)
            return
        self._notify()
        if self._rng.random() < 0.05:
            self._after(self._rng.expovariate(1 / 20_000), self._cancel, job)

    def _cancel(self, job: Job) -> None:
        packed = self._calls_of(NOW, WorkerKind((NO_POOL,), LARGE, 1)).cancel % (job.id, b"%b")

        def replied(at: int, request: Request, answer: int | None) -> None:
            if answer == 1:
                self._model.canceled(at, job)

        self._send(Request("cancel", packed, replied, job=job))

    # ------------------------------------------------------------------ reaper and scaler

    def _tick_later(self, number: int) -> None:
        self._send(Request("api", b"", self._ignore, extra=lambda: self._tick(number)))
        self._after(1000, self._tick_later, number)

    def _ignore(self, *_: Any) -> None:
        """The call has done its work."""

    def _tick(self, number: int) -> None:
        """Run the reaper's tick of an API process."""
        api = self._apis[number]
        if self.now < api.down_until:
            return
        if self.now >= self._leader_until:
            self._wire.exchange([pack("DEL", f"{PREFIX}leader")], 1)
        self._api = api
        try:
            api.reaper._tick(api.reaper._parts["reaper"])
        except errors.StoreUnavailable:
            return
        if self._violation is not None:
            raise self._violation
        self._check_end()

    def _run_notifying(self, run: Callable[[], None]) -> None:
        if self._scenario.without != "notifying idle workers" and self._idle:
            run()

    def _check_end(self) -> None:
        if self._model.unfinished_total and self.now > self._end_at + DRAIN_MS:
            raise ViolationError(f"{self._model.unfinished_total} jobs are lost")
        is_accepted = len(self.outcome.accepted) == self._scenario.jobs
        self._is_over = self._arrivals_over and is_accepted and not self._model.unfinished_total

    def _scale_later(self) -> None:
        if self._scenario.scales:
            self._send(Request("api", b"", self._ignore, extra=self._scale))
            self._after(1000 * SYNC_SECONDS, self._scale_later)

    def _scale(self) -> None:
        store = self._apis[0].store
        try:
            load = store.get_load()
            seconds = store.get_queue_work_seconds()
        except errors.StoreUnavailable:
            return
        metrics = {
            "impasto_queue_work_seconds": seconds,
            "impasto_jobs_running": load.running,
            "impasto_jobs_queued": load.queued,
        }
        workers = [worker for worker in self._workers if worker.index in self._started]
        workers = [worker for worker in workers if worker.index not in self._removed]
        wanted = self._autoscaler.decide((self.now - EPOCH_MS) / 1000, len(workers), metrics)
        self._record("scale", (round(seconds), load.running, len(workers), wanted))
        self.outcome.max_workers = max(self.outcome.max_workers, wanted)
        if wanted > len(workers):
            free = [worker for worker in self._workers if worker.index not in self._started]
            for worker in free[: wanted - len(workers)]:
                self._start_pod(worker, START_MS + self._rng.uniform(0, 5000))
        else:
            others = [worker for worker in workers if worker.index >= MIN_WORKERS]
            for worker in self._rng.sample(others, min(len(others), len(workers) - wanted)):
                self._removed.add(worker.index)
                self._stop(worker)

    # ------------------------------------------------------------------ end

    def _compare_store(self) -> None:
        """Every job that is still stored must have the model's status; the counts must agree."""
        for jobs in _batches(self.outcome.accepted, 1000):
            calls = [
                pack("HMGET", f"{PREFIX}job:{job.id.decode()}", "status", "attempt") for job in jobs
            ]
            for job, stored in zip(jobs, self._wire.exchange(calls, len(calls)), strict=True):
                expected = [job.status.encode(), b"%d" % job.attempts]
                if stored not in ([None, None], expected):
                    raise ViolationError(f"{job.id!r} is {stored!r} in the store, not {expected!r}")
        rows = self._wire.exchange([pack("HGETALL", f"{PREFIX}ended")], 1)[0]
        ended = {
            name.decode(): int(count) for name, count in zip(rows[::2], rows[1::2], strict=True)
        }
        counts = {
            name: self._model.counts[name]
            for name in ("succeeded", "failed", "canceled", "expired")
            if self._model.counts[name]
        }
        if ended != counts:
            raise ViolationError(f"the store has counted {ended}, not {counts}")

    def close(self) -> Outcome:
        """Return what the run has shown."""
        outcome = self.outcome
        outcome.simulated_ms = self.now - EPOCH_MS
        outcome.gpu_ms += sum(self.now - since for since in self._started.values())
        outcome.trace = self._hash.hexdigest()
        outcome.server = self._wire.info()
        self._wire.close()
        return outcome


def _batches(jobs: list[Job], size: int) -> Iterator[list[Job]]:
    for start in range(0, len(jobs), size):
        yield jobs[start : start + size]
