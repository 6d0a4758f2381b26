"""The fair share: when each job would start in an ideal queue on the same workers.

The ideal queue knows no failures and no leases. Of the highest class with a job that
a free worker may take, the owner whose turn it is gives one: owners take turns in a circle in
each pool, a worker of several pools takes from the owner that has waited the longest for its turn,
and an owner's own jobs start in the order of their creation. A worker that is lost in the
simulation takes no further job here until it is back; a job that has begun runs to its end. A job
takes as long as workers have held it in the simulation, in all attempts: so the work that faults
cost is there, too. A worker is free when the messages between two jobs have arrived: they take
little of its time, but much of what is left for the lowest class.

So the ideal wait of a job is its owner's equal share of what the workers could do. `start_times`
has no code and no idea of the store's places and rounds.
"""

import heapq
import itertools
import math
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from operator import itemgetter

from job_model import Job, WorkerKind

CLASSES = ("high", "normal", "low")
_Category = tuple[int, int]  # size, format


class _Turns:
    """The waiting jobs of one pool and class."""

    def __init__(self, clock: Iterator[int]) -> None:
        self._clock = clock
        self._owners: OrderedDict[int, dict[_Category, deque[Job]]] = OrderedDict()
        self._since: dict[int, int] = {}  # when each of them began to wait for its turn

    def add(self, job: Job) -> None:
        if job.owner not in self._owners:
            self._owners[job.owner] = {}
            self._since[job.owner] = next(self._clock)
        queues = self._owners[job.owner]
        queues.setdefault((job.size, job.format), deque()).append(job)

    def find(self, kind: WorkerKind, withdrawn: set[int]) -> tuple[int, int, deque[Job]] | None:
        """Return since when the next owner waits with a job for this kind, and its jobs."""
        for owner, queues in self._owners.items():
            best: deque[Job] | None = None
            for queue in [*queues.values()]:
                while queue and queue[0].number in withdrawn:
                    queue.popleft()
                if (
                    queue
                    and kind.takes(queue[0])
                    and (not best or queue[0].number < best[0].number)
                ):
                    best = queue
            if best:
                return self._since[owner], owner, best
        return None

    def take(self, owner: int, queue: deque[Job]) -> Job:
        """Remove and return the first of these jobs."""
        job = queue.popleft()
        self._owners.move_to_end(owner)
        self._since[owner] = next(self._clock)
        if not any(self._owners[owner].values()):
            del self._owners[owner]
        return job


class _Queue:
    """Free workers and waiting jobs."""

    def __init__(self, handover_ms: int) -> None:
        self.starts: dict[int, int] = {}  # number of a job -> ms
        self._handover_ms = handover_ms
        self.withdrawn: set[int] = set()
        self._clock = itertools.count()
        self._turns: dict[tuple[str, str], _Turns] = {}
        self._kinds: dict[int, WorkerKind] = {}
        self._free: defaultdict[WorkerKind, set[int]] = defaultdict(set)
        self._busy: set[int] = set()
        self._ends: list[tuple[int, int]] = []

    def add(self, at: int, job: Job) -> None:
        """A job has been submitted."""
        self._turns.setdefault((job.priority, job.pool), _Turns(self._clock)).add(job)
        for kind in [kind for kind, workers in self._free.items() if workers and kind.takes(job)]:
            self._fill(kind, at)

    def change(self, at: int, worker: int, kind: WorkerKind | None) -> None:
        """From now on the worker takes what this kind takes; None: nothing."""
        before = self._kinds.pop(worker, None)
        if before is not None:
            self._free[before].discard(worker)
        if kind is not None:
            self._kinds[worker] = kind
            if worker not in self._busy:
                self._release(worker, at)

    def run_until(self, at: float) -> None:
        """Let the runs end that do so until then."""
        while self._ends and self._ends[0][0] <= at:
            end, worker = heapq.heappop(self._ends)
            self._release(worker, end)

    def _release(self, worker: int, at: int) -> None:
        self._busy.discard(worker)
        if (kind := self._kinds.get(worker)) is not None:
            self._free[kind].add(worker)
            self._fill(kind, at)

    def _fill(self, kind: WorkerKind, at: int) -> None:
        """Let free workers of this kind take jobs."""
        while (workers := self._free[kind]) and (job := self._take(kind)) is not None:
            worker = min(workers)
            workers.remove(worker)
            self._busy.add(worker)
            self.starts[job.number] = at
            heapq.heappush(self._ends, (at + job.held_ms + self._handover_ms, worker))

    def _take(self, kind: WorkerKind) -> Job | None:
        for name in CLASSES:
            found = []
            for pool in kind.pools:
                turns = self._turns.get((name, pool))
                if turns and (next_owner := turns.find(kind, self.withdrawn)):
                    found.append((*next_owner, turns))
            if found:
                _, owner, queue, turns = min(found, key=itemgetter(0))
                return turns.take(owner, queue)
        return None


def start_times(
    jobs: Iterable[Job],
    capacity: Iterable[tuple[int, int, WorkerKind | None]],
    handover_ms: int = 0,
) -> dict[int, int]:
    """Return when each job starts, in ms, by its number.

    jobs: those that were accepted. capacity: (ms, number of a worker, what it takes from then on,
    or None while it takes nothing), by time. handover_ms: from a worker's result to its next claim.
    """
    queue = _Queue(handover_ms)
    events: list[tuple[int, int, Callable[[], object]]] = []
    for job in jobs:
        assert job.created_at is not None
        events.append((job.created_at, job.number, partial(queue.add, job.created_at, job)))
        if job.withdrawn_at is not None:
            withdraw = partial(queue.withdrawn.add, job.number)
            events.append((job.withdrawn_at, job.number, withdraw))
    for at, worker, kind in capacity:
        events.append((at, -1, partial(queue.change, at, worker, kind)))
    for at, _, apply in sorted(events, key=lambda event: event[:2]):
        queue.run_until(at)
        apply()
    queue.run_until(math.inf)
    return queue.starts


def jain(values: Sequence[float]) -> float:
    """Jain's fairness index: 1 if all are equal, 1/n if one has everything."""
    squares = len(values) * sum(value * value for value in values)
    return sum(values) ** 2 / squares if squares else 1.0
