"""What is simulated: the numbers of a run, the jobs that arrive, and what a run returns."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from job_model import Job, Model, WorkerKind

from core.jobs.models import NO_POOL, QueueLimits

WINDOW_MS = 30
TIMEOUT_MS, RETRY_MS = 1500, 500  # TIMEOUT_SECONDS of core/redis_client.py, worker/retry.py
RENEW_MS, CHECKPOINT_MS, HEARTBEAT_MS = 800, 2000, 1000  # worker/lease.py, attempt.py, runner.py
PASS_ON_MS, JOBS_PER_TASK = 1000, 10  # worker/runner.py, worker/tasks.py
CHILD_POLL_MS = 200  # worker/supervisor.py
CLIENT_RETRY_MS, REFUSED_MS = 2000, 10_000  # of a submission that was not answered, was refused
START_MS = 30_000  # of a worker that the scaler adds
DRAIN_MS = 1_800_000  # after the last submission and the last fault, everything must have ended
APIS, POOL, SMALL, LARGE = 3, "team=a", 1024, 8192
BEFORE, NOW, AFTER = range(3)  # the versions

# By the last digit of a worker's number. Until 40 % of the run, some workers run the version
# before, from 60 % on, some run the next one.
DEDICATED, SMALL_ONES = (4,), (2, 5, 8, 9)
MIXED = (0, 1, 3, 4, 6, 7)  # in a scenario with such workers, which has no dedicated ones
RUN_BEFORE, RUN_AFTER = (0, 3, 6), (1, 2, 5)
LOST_SHARE = 0.003  # of messages and answers
POOL_FROM = 0.45  # of the run; before that, no job is in the pool
MIN_WORKERS = 20  # with all kinds among them


@dataclass(frozen=True)
class Scenario:
    """What is simulated. The defaults are those of a small run."""

    seed: int = 1
    workers: int = 20
    owners: int = 10
    jobs: int = 2000
    mean_run_ms: int = 8600
    load: float = 0.75  # of all workers, on average
    batch: int = 15  # mean of the jobs that one client submits at once
    fault_minutes: float = 4.0  # between two faults of a kind at one worker
    # The autoscaler decides how many workers there are. Its metrics do not tell pools apart, so
    # there are none: dedicated workers need a scaler of their own.
    scales: bool = False
    # The workers of the pool take other jobs as well. The rounds of these are far ahead when three
    # owners begin to submit all batches to the pool, and the others single jobs. There is no
    # version before lanes, which gives each job to any worker.
    mixed: bool = False
    renew_ms: int = RENEW_MS
    heartbeat_ms: int = HEARTBEAT_MS
    checkpoint_ms: int = CHECKPOINT_MS
    window_ms: int = WINDOW_MS
    measures_calls: bool = False  # the server's time for each call; slow
    without: str | None = None  # the rule that a control removes

    @property
    def duration_ms(self) -> int:
        """How long jobs arrive."""
        return round(self.jobs * self.mean_run_ms / self.workers / self.load)

    @property
    def handover_ms(self) -> int:
        """The mean time from a worker's result to its next claim, by the delays of network.py.

        The answer takes window_ms + 10, the request window_ms / 2.
        """
        return round(1.5 * self.window_ms + 10)

    @property
    def limits(self) -> QueueLimits:
        """What the API passes to the store."""
        # The queue must hold the wait that the scaler allows, on all workers. Beside a full queue,
        # a wait says little: each start lets a job in.
        if self.scales or self.mixed:
            return QueueLimits(per_owner=self.jobs, queued=100 * self.workers)
        return QueueLimits(per_owner=max(60, self.jobs // 100), queued=max(120, self.jobs // 20))


class Worker:
    """One worker: its number stays, its process may be replaced."""

    __slots__ = (
        "calls",
        "cut_from",
        "cut_until",
        "done",
        "epoch",
        "frozen_until",
        "generation",
        "index",
        "is_ending",
        "job",
        "jobs_in_task",
        "kind",
        "name",
        "next_pass_on",
        "online_since",
        "run_from",
        "shift",
        "state",
        "token",
        "version",
    )

    def __init__(self, index: int) -> None:
        self.index, self.generation, self.epoch = index, 0, 0
        self.state, self.token, self.job = "off", None, None
        self.cut_from = self.cut_until = self.frozen_until = self.next_pass_on = 0
        self.name = b""


class Request:
    """A call on its way to the store."""

    __slots__ = (
        "epoch",
        "extra",
        "is_timer",
        "job",
        "kind",
        "lost",
        "packed",
        "replied",
        "replies",
        "token",
        "worker",
    )

    def __init__(
        self,
        kind: str,
        packed: bytes | Callable[[int], bytes],
        replied: Callable[[int, "Request", Any], None],
        *,
        worker: Worker | None = None,
        job: Job | None = None,
        extra: Any = None,
        lost: Callable[["Request"], None] | None = None,
        is_timer: bool = False,
        replies: int = 1,
    ) -> None:
        self.kind, self.packed, self.replied, self.replies = kind, packed, replied, replies
        self.worker, self.job, self.extra, self.lost = worker, job, extra, lost
        self.is_timer = is_timer
        self.epoch = worker.epoch if worker else 0
        self.token = worker.token if worker else None


@dataclass
class Outcome:
    """What a run has shown."""

    scenario: Scenario
    model: Model
    capacity: list[tuple[int, int, WorkerKind | None]]
    accepted: list[Job]
    simulated_ms: int = 0
    gpu_ms: int = 0
    max_workers: int = 0
    calls: int = 0
    trace: str = ""  # hash of all calls and answers
    faults: dict[str, int] = field(default_factory=dict)
    server: dict[str, str] = field(default_factory=dict)  # its INFO
    costs: list[tuple[str, float]] = field(default_factory=list)  # call, µs of the server
    violation: str | None = None


def make_arrivals(scenario: Scenario, rng: random.Random) -> Iterator[tuple[float, list[Job]]]:
    """Yield how long after the one before a submission comes, and its jobs."""
    mean_batch = 1 + 0.25 * (scenario.batch - 1)
    heavy = [1 / (rank + 1) for rank in range(scenario.owners)]
    made, ms = 0, 0.0
    while made < scenario.jobs:
        share = min(1.0, ms / scenario.duration_ms)
        load = _load_at(share) * scenario.load
        pause = rng.expovariate(1) * mean_batch * scenario.mean_run_ms / scenario.workers / load
        ms += pause
        if rng.random() < 0.25:  # many at once, mostly by the same few owners
            owner = rng.choices(range(scenario.owners), heavy)[0]
            count = min(scenario.jobs - made, 1 + int(rng.expovariate(1 / (scenario.batch - 1))))
        else:
            owner, count = rng.randrange(scenario.owners), 1
        jobs = [_make_job(scenario, rng, made + number, owner, share) for number in range(count)]
        if scenario.mixed and share >= POOL_FROM and count > 1:
            for job in jobs:
                job.owner, job.pool = job.owner % 3, POOL if job.size == SMALL else NO_POOL
        made += count
        yield pause, jobs


def _make_job(scenario: Scenario, rng: random.Random, number: int, owner: int, share: float) -> Job:
    size = LARGE if rng.random() < 0.08 else SMALL
    usual = scenario.mean_run_ms / 1.16
    run_ms = min(60_000.0, max(1000.0, rng.lognormvariate(-0.18, 0.6) * usual))
    job = Job(
        number=number,
        id=b"",
        owner=owner,
        priority=rng.choices(("high", "normal", "low"), (8, 84, 8))[0],
        size=size,
        pool=POOL if share >= POOL_FROM and rng.random() < 0.05 else NO_POOL,
        run_ms=round(run_ms * (3 if size == LARGE else 1)),
        is_poison=rng.random() < 0.001,
        format=2 if 0.65 <= share < 0.95 and rng.random() < 0.15 else 1,
        deadline_ms=60_000 if rng.random() < 0.03 else None,
    )
    if size == LARGE or scenario.scales:
        job.pool = NO_POOL
    return job


def _load_at(share: float) -> float:
    """The load over the run, 1 on average: a day with its night, and two rushes."""
    if 0.2 <= share < 0.25 or 0.7 <= share < 0.74:
        return 1.9
    return 0.45 if share < 0.1 or 0.45 <= share < 0.55 or share > 0.92 else 1.03
