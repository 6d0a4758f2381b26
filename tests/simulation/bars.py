"""The figures of a run against the bars: fair waits, equal shares, GPU hours.

**Fair share.** `ideal_queue.start_times` gives the time at which each job would start in an ideal
queue on the workers that were there. A job may wait MAX_WAITS times as long as its neighbors there
(`find_fair_wait`) plus GRACE_SECONDS: a worker is found lost after at most a lease and a tick of
the reaper, and no run is interrupted for another job, so any queue is late by about one run.

**Jain's index** is that of the owners' starts, each divided by the owner's equal share. Only owners
count that had jobs of the common kind (normal priority, any worker) waiting during a whole window
of WINDOW_SECONDS: the others got all that they asked for.

**GPU hours.** No schedule, however much it knows of the future, needs fewer worker seconds than the
jobs run and the messages between two jobs take. So worker seconds / these seconds is an upper
bound of the ratio to the clairvoyant optimum, at any wait, and at the same p95 wait as well. It
counts the starts of workers, the time in which they are dead or partitioned, and lost work.
"""

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from ideal_queue import jain, start_times
from job_model import Job
from scenario import POOL, SMALL, Outcome
from store_server import EPOCH_MS

MAX_WAITS, MIN_JAIN, MAX_GPU_RATIO = 3.0, 0.99, 1.10
GRACE_SECONDS = 15.0
WINDOW_SECONDS = 60
MIN_OWNERS = 10  # with fewer, the index says little
MIN_STARTS = 100  # of an owner in such windows, to have a share


@dataclass
class Figures:
    """What the bars compare."""

    waits: list[float] = field(default_factory=list)  # in seconds, sorted
    worst_wait: float = 0.0  # relative to what is allowed
    worst_job: Job | None = None
    late_jobs: int = 0  # that wait longer than is allowed
    jain: float = 1.0
    jain_owners: int = 0
    gpu_ratio: float = 0.0
    held_ratio: float = 0.0  # the part of it in which a worker had a job, also one that was lost

    def percentile(self, share: float) -> float:
        """Return the wait in seconds that this share of the jobs does not exceed."""
        return self.waits[min(len(self.waits) - 1, int(share * len(self.waits)))]


def measure(outcome: Outcome) -> Figures:
    """Compute all figures of a run that has ended."""
    figures = Figures()
    capacity = sorted(outcome.capacity, key=lambda row: row[0])
    starts = start_times(outcome.accepted, capacity, outcome.scenario.handover_ms)
    fair_wait = find_fair_wait(outcome.accepted, starts, outcome.scenario.mixed)
    for job in outcome.accepted:
        if job.started_at is None:
            continue
        wait = (job.started_at - job.created_at) / 1000
        figures.waits.append(wait)
        fair = fair_wait(job) / 1000
        relative = wait / (MAX_WAITS * (fair + GRACE_SECONDS))
        figures.late_jobs += relative > 1
        if relative > figures.worst_wait:
            figures.worst_wait, figures.worst_job = relative, job
    figures.waits.sort()
    shares = _shares([job for job in outcome.accepted if _is_common(job)])
    figures.jain, figures.jain_owners = jain(shares), len(shares)
    handover_ms = outcome.scenario.handover_ms
    done = [job for job in outcome.accepted if job.status == "succeeded"]
    runs = sum(job.run_ms + handover_ms for job in done)
    figures.gpu_ratio = outcome.gpu_ms / runs if runs else 0.0
    figures.held_ratio = sum(job.held_ms for job in outcome.accepted) / runs if runs else 0.0
    return figures


def find_fair_wait(
    jobs: list[Job], starts: dict[int, int], is_mixed: bool = False
) -> Callable[[Job], int]:
    """Return a function that gives the fair wait of a job in ms.

    It is the longest ideal wait of its neighbors: they came within the same minute or the ones
    beside it, because a second decides whether a job gets the last free worker before a rush; or
    they still waited when it came, because it is behind them. Neighbors have the owner, class and
    pool of the job; in the low class, which gets what the others leave, the class and pool, or the
    class alone if workers take jobs of several pools.
    """
    longest: defaultdict[tuple[object, ...], int] = defaultdict(int)

    def key(job: Job, window: int) -> tuple[object, ...]:
        is_low = job.priority == "low"
        owner = None if is_low else job.owner
        pool = None if is_low and is_mixed else job.pool
        return (owner, job.priority, pool, window)

    for job in jobs:
        wait = starts.get(job.number, job.created_at) - job.created_at
        first = _window(job.created_at)
        last = _window(job.started_at or job.withdrawn_at or job.ended_at)
        for window in range(first - 1, max(first + 1, last) + 1):
            longest[key(job, window)] = max(longest[key(job, window)], wait)
    return lambda job: longest[key(job, _window(job.created_at))]


def _is_common(job: Job) -> bool:
    return job.priority == "normal" and job.size == SMALL and job.pool != POOL and job.format == 1


def _shares(jobs: list[Job]) -> list[float]:
    """Return the starts of each owner in its windows, divided by its equal share of them."""
    by_owner: defaultdict[int, list[tuple[int, int]]] = defaultdict(list)
    starts: defaultdict[int, Counter[int]] = defaultdict(Counter)  # window -> owner -> starts
    for job in jobs:
        left = job.started_at or job.withdrawn_at or job.ended_at
        by_owner[job.owner].append((job.created_at, left))
        if job.started_at is not None:
            starts[_window(job.started_at)][job.owner] += 1
    backlogged: defaultdict[int, list[int]] = defaultdict(list)
    for owner, waits in by_owner.items():
        for begin, end in _merge(sorted(waits)):
            for window in range(_window(begin) + 1, _window(end)):
                backlogged[window].append(owner)
    got, fair = Counter[int](), Counter[int]()
    for window, owners in backlogged.items():
        if len(owners) < 2:
            continue
        share = sum(starts[window][owner] for owner in owners) / len(owners)
        for owner in owners:
            got[owner] += starts[window][owner]
            fair[owner] += share
    return [got[owner] / fair[owner] for owner in sorted(fair) if fair[owner] >= MIN_STARTS]


def _window(at: int) -> int:
    return (at - EPOCH_MS) // (1000 * WINDOW_SECONDS)


def _merge(waits: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for begin, end in waits:
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    return merged


def find_violations(outcome: Outcome, figures: Figures) -> list[str]:
    """Return what is outside of the bars."""
    found = []
    if figures.worst_wait > 1 and (job := figures.worst_job) is not None:
        wait = ((job.started_at or job.created_at) - job.created_at) / 1000
        at = (job.created_at - EPOCH_MS) / 1000
        found.append(
            f"{job.id.decode()} waits {wait:.0f} s, {figures.worst_wait * MAX_WAITS:.1f} times its "
            f"fair share (owner {job.owner}, priority {job.priority}, pool {job.pool}, "
            f"{job.size} px, format {job.format}, after {at:.0f} s); "
            f"jobs that wait too long: {figures.late_jobs}"
        )
    if figures.jain_owners >= MIN_OWNERS and figures.jain < MIN_JAIN:
        found.append(f"Jain's index is {figures.jain:.3f}")
    if outcome.scenario.scales and figures.gpu_ratio > MAX_GPU_RATIO:
        found.append(f"the GPU hours are {figures.gpu_ratio:.2f} times what all runs need")
    return found
