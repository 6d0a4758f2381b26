"""What the store must answer: a model of all jobs, checked at every call in the store's order.

It knows which worker holds a job, from the answers alone, and is told nothing by the workers.
"""

import heapq
from collections import Counter
from dataclasses import dataclass, field

from core.jobs.models import MAX_ATTEMPTS
from core.jobs.store import LEASE_SECONDS

LEASE_MS = round(LEASE_SECONDS * 1000)
QUEUED, RUNNING = "queued", "running"


class ViolationError(Exception):
    """A rule is broken. The trace ends here."""


@dataclass(slots=True, eq=False)
class Job:
    """One job: what was submitted, and what the store has said about it."""

    number: int
    id: bytes
    owner: int
    priority: str
    size: int
    pool: str
    run_ms: int
    format: int = 1
    is_poison: bool = False  # each worker dies that runs it
    deadline_ms: int | None = None  # after its creation
    created_at: int | None = None
    deadline_at: int | None = None
    status: str = ""
    token: bytes | None = None
    worker: bytes | None = None
    lease_until: int = 0
    started_at: int | None = None
    ended_at: int | None = None
    claimed_at: int = 0
    held_ms: int = 0  # how long workers have held it, in all attempts
    attempts: int = 0
    lost: int = 0  # since the last checkpoint
    done: float = 0.0  # the part that the last checkpoint has
    is_cancel_requested: bool = False
    withdrawn_at: int | None = None  # left the queue without a start
    holders: list[bytes] = field(default_factory=list)


@dataclass(frozen=True)
class WorkerKind:
    """Which jobs a worker takes."""

    pools: tuple[str, ...]
    size_px: int
    max_format: int
    is_earlier: bool = False  # of the version before lanes: it takes every job

    def takes(self, job: Job) -> bool:
        """Whether it may run the job."""
        return self.is_earlier or (
            job.pool in self.pools and job.size <= self.size_px and job.format <= self.max_format
        )


class Model:
    """All jobs that the store has accepted."""

    def __init__(self) -> None:
        self.jobs: dict[bytes, Job] = {}
        self.running: dict[bytes, Job] = {}
        self.counts = dict.fromkeys(
            ("succeeded", "failed", "canceled", "expired", "lost attempts", "late results"), 0
        )
        self._of_token: dict[bytes, Job] = {}
        self._deadlines: list[tuple[int, int, Job]] = []
        self._overdue: list[Job] = []
        self.queued = 0
        self.unfinished: Counter[int] = Counter()  # by owner

    @property
    def unfinished_total(self) -> int:
        """How many jobs are queued or running."""
        return self.queued + len(self.running)

    # ------------------------------------------------------------------ clients

    def created(self, at: int, job: Job, answer: bytes) -> None:
        """A submission was answered with the id of a job. Each call of one job has another id."""
        if job.created_at is not None:
            self._require(answer == job.id, "one request has created two jobs", job)
            return
        job.id, job.created_at, job.status = answer, at, QUEUED
        self.jobs[answer] = job
        self.queued += 1
        self.unfinished[job.owner] += 1
        if job.deadline_ms is not None:
            job.deadline_at = at + job.deadline_ms
            heapq.heappush(self._deadlines, (job.deadline_at, job.number, job))

    def canceled(self, at: int, job: Job) -> None:
        """The store has answered a cancel."""
        if job.status == QUEUED:
            self._end(at, job, "canceled")
        elif job.status == RUNNING:
            job.is_cancel_requested = True

    # ------------------------------------------------------------------ workers

    def claimed(
        self, at: int, token: bytes, worker: bytes, kind: WorkerKind, answer: bytes | None
    ) -> Job | None:
        """A claim was answered."""
        earlier = self._of_token.get(token)
        if answer is None:
            is_held = earlier is not None and earlier.token == token and earlier.status == RUNNING
            self._require(not is_held, "a repeated claim has lost its job", earlier)
            return None
        job = self.jobs.get(answer)
        if job is None:
            raise ViolationError(f"a worker gets the unknown job {answer.decode()}")
        if earlier is not None:
            self._require(job is earlier, "one claim has started two jobs", job)
            self._require(job.token == token, "a stale claim gets its job again", job)
        else:
            self._require(job.status == QUEUED, "a job is claimed that is not queued", job)
            self._require(kind.takes(job), "a worker gets a job that it may not take", job)
            self._require(
                job.deadline_at is None or at < job.deadline_at + 60_000,
                "a job starts long after its deadline",
                job,
            )
            self._start(at, job, token, worker)
        job.lease_until = at + LEASE_MS
        return job

    def _start(self, at: int, job: Job, token: bytes, worker: bytes) -> None:
        self._of_token[token] = job
        job.status, job.token, job.worker, job.claimed_at = RUNNING, token, worker, at
        job.attempts += 1
        job.holders.append(token)
        self.running[job.id] = job
        self.queued -= 1
        if job.started_at is None:
            job.started_at = at

    def renewed(self, at: int, job: Job, token: bytes, answer: bytes) -> None:
        """A renewal was answered."""
        if not self._check_holder(job, token, answer):
            return
        job.lease_until = at + LEASE_MS
        expected = b"ok"
        if job.is_cancel_requested:
            expected = b"cancel"
        elif job.deadline_at is not None and job.deadline_at <= at:
            expected = b"deadline_exceeded"
        self._require(answer == expected, f"a renewal is answered {answer!r}", job)

    def checkpointed(self, job: Job, token: bytes, done: float, answer: bytes) -> None:
        """A checkpoint was answered."""
        if self._check_holder(job, token, answer):
            job.lost, job.done = 0, done

    def released(self, at: int, job: Job, token: bytes, answer: bytes) -> None:
        """A release was answered."""
        if not self._check_holder(job, token, answer):
            return
        if job.is_cancel_requested:
            self._end(at, job, "canceled")
        else:
            job.attempts -= 1
            self._requeue(at, job)
        job.token = None

    def finished(self, at: int, job: Job, token: bytes, status: str, answer: bytes) -> None:
        """A result was answered."""
        if job.status == status and job.token == token:
            self._require(answer == b"ok", "a repeated result is refused", job)
        elif self._check_holder(job, token, answer):
            self._end(at, job, status)
        else:
            self.counts["late results"] += 1

    def _check_holder(self, job: Job, token: bytes, answer: bytes) -> bool:
        """Whether the token holds the job. The store's answer must agree."""
        is_holder = job.status == RUNNING and job.token == token
        wrong = "the holder of a job is refused" if is_holder else "a stale token is accepted"
        self._require((answer != b"stale") == is_holder, wrong, job)
        return is_holder

    # ------------------------------------------------------------------ lost workers

    def worker_exited(self, at: int, worker: bytes, answer: int) -> None:
        """The jobs of a dead worker were requeued."""
        requeued = [self._lose(at, job) for job in self._running() if job.worker == worker]
        if sum(requeued) != answer:
            raise ViolationError(f"{sum(requeued)} jobs of a dead worker, {answer} are requeued")

    def reaped(self, at: int, answer: tuple[int, int]) -> None:
        """The reaper has looked for expired leases and deadlines."""
        results = [self._lose(at, job) for job in self._running() if job.lease_until <= at]
        requeued, ended = sum(results), len(results) - sum(results)
        while self._deadlines and self._deadlines[0][0] <= at:
            self._overdue.append(heapq.heappop(self._deadlines)[2])
        for job in self._overdue:
            if job.status == QUEUED:
                self._end(at, job, "expired")
                ended += 1
        self._overdue = [job for job in self._overdue if job.status == RUNNING]
        if (requeued, ended) != answer:
            raise ViolationError(
                f"the reaper requeues and ends {answer} jobs, not {(requeued, ended)}"
            )

    def _running(self) -> list[Job]:
        return [*self.running.values()]

    def _lose(self, at: int, job: Job) -> bool:
        """The worker of the job is lost. Returns whether the job is queued again."""
        self.counts["lost attempts"] += 1
        job.token = None
        if job.is_cancel_requested:
            self._end(at, job, "canceled")
            return False
        job.lost += 1
        if job.lost >= MAX_ATTEMPTS:
            self._end(at, job, "failed")
            return False
        self._requeue(at, job)
        return True

    def _requeue(self, at: int, job: Job) -> None:
        self._let_go(at, job)
        job.status = QUEUED
        self.queued += 1

    def _end(self, at: int, job: Job, status: str) -> None:
        if job.status == QUEUED:
            self.queued -= 1
            if job.started_at is None:
                job.withdrawn_at = at
        else:
            self._let_go(at, job)
        job.status, job.ended_at = status, at
        self.unfinished[job.owner] -= 1
        self.counts[status] += 1

    def _let_go(self, at: int, job: Job) -> None:
        del self.running[job.id]
        job.held_ms += at - job.claimed_at

    @staticmethod
    def _require(is_right: bool, message: str, job: Job | None) -> None:
        if not is_right:
            about = f": {job.id.decode()}, {job.status}, attempt {job.attempts}" if job else ""
            raise ViolationError(message + about)
