"""When a queued job is expected to start: only workers count that may take it."""

from collections.abc import Callable
from typing import Any

import pytest
import redis
from worker_reports import describe_worker

from core.jobs.models import (
    Job,
    JobInput,
    QueuePosition,
    SubmissionOptions,
    new_job_id,
)
from core.jobs.store import JobStore
from core.redis_client import PREFIX
from core.style.spec import StyleSpec

AVERAGE, LEFT = 10.0, 3.0  # seconds of a run, and those that each running job has left
SMALL, LARGE = 1024, 4096
Queue = Callable[..., Job]


@pytest.fixture
def server(valkey: Any) -> Any:
    with redis.Redis.from_url(valkey.url, decode_responses=True) as client:
        client.set(f"{PREFIX}average_seconds", AVERAGE)
        yield client


@pytest.fixture
def queue(driver: Any, store: JobStore, server: Any) -> Queue:
    def submit(size_px: int = SMALL, pool: str | None = None) -> Job:
        for digest in (driver.CONTENT, driver.STYLE):
            store.reserve(digest, 600)
        spec = StyleSpec(size=size_px).model_dump()
        job_input = JobInput(content=driver.CONTENT, styles=[driver.STYLE], spec=spec)
        return store.create(new_job_id(), job_input, SubmissionOptions(pool=pool))

    return submit


@pytest.fixture
def start(driver: Any, store: JobStore, queue: Queue) -> Callable[..., None]:
    """Start workers of a kind; the first ones run a job each."""

    def start_workers(count: int, busy: int, size_px: int = SMALL, *pools: str) -> None:
        for number in range(count):
            name = f"{size_px}-{pools}-{number}"
            worker = describe_worker(size_px, *pools, name=name)
            store.heartbeat(name, worker)
            if number < busy:
                queue(size_px, pools[0] if pools else None)
                job = store.claim(name, name, worker)
                assert job is not None
                left = driver.PROGRESS.model_copy(update={"seconds_left": LEFT})
                store.report_progress(job.id, name, left)

    return start_workers


def _position(store: JobStore, job: Job) -> QueuePosition:
    position = store.get(job.id).queue
    assert position is not None
    return position


# Small and large workers (how many, how many of them run a job), the sizes of the jobs before this
# one, its own size, and the seconds until its start.
SIZES = {
    "an idle worker takes it at once": ((2, 1), (0, 0), [], SMALL, 0),
    "idle small workers do not help a large job": ((3, 0), (1, 1), [], LARGE, LEFT),
    "idle large workers take small jobs": ((2, 2), (1, 0), [], SMALL, 0),
    "large jobs do not delay small workers": ((1, 0), (1, 1), [LARGE] * 3, SMALL, 0),
    "large jobs wait for each other": ((3, 0), (1, 1), [LARGE] * 2, LARGE, LEFT + 2 * AVERAGE),
    "all share small jobs": ((2, 2), (1, 1), [SMALL] * 3, SMALL, LEFT + AVERAGE),
    "a large job waits for the small ones before it": (
        ((2, 2), (1, 1), [SMALL] * 6, LARGE, LEFT + 2 * AVERAGE)
    ),
}


@pytest.mark.parametrize("case", SIZES.values(), ids=SIZES)
def test_only_workers_count_that_hold_the_job(
    case: tuple[tuple[int, int], tuple[int, int], list[int], int, float],
    store: JobStore,
    queue: Queue,
    start: Callable[..., None],
) -> None:
    small, large, before, size_px, seconds = case
    start(*large, LARGE)
    start(*small, SMALL)
    for size in before:
        queue(size)
    expected = store.get_queue_end(size_px)
    job = queue(size_px)

    assert _position(store, job).start_seconds == pytest.approx(seconds)
    assert expected == _position(store, job), "as estimated before its submission"


def test_only_workers_and_jobs_of_its_pool_count(
    store: JobStore, queue: Queue, start: Callable[..., None]
) -> None:
    start(2, 0, SMALL)
    start(1, 1, SMALL, "team=a")
    jobs = [queue(pool="team=a") for _ in range(2)]
    other = queue()

    assert [_position(store, job).start_seconds for job in jobs] == [LEFT, LEFT + AVERAGE]
    assert _position(store, other).start_seconds == 0
    assert store.get_queue_end(SMALL, "team=a").start_seconds == LEFT + 2 * AVERAGE
    assert store.get_queue_end(SMALL, "team=b") == QueuePosition(
        position=0, start_seconds=None, waits_for="pool"
    )


def test_paused_and_silent_workers_do_not_count(
    store: JobStore, queue: Queue, start: Callable[..., None], server: Any
) -> None:
    start(3, 1)
    for number in range(1, 3):
        name = f"{SMALL}-()-{number}"
        store.suspensions.suspend(name, "paused")
        store.heartbeat(name, describe_worker(SMALL, name=name))
    job = queue()
    assert _position(store, job).start_seconds == LEFT

    long_ago = server.time()[0] * 1000 - 6000
    for key in server.scan_iter(f"{PREFIX}workers_of:*"):
        server.zadd(key, dict.fromkeys(server.zrange(key, 0, -1), long_ago))
    for key in server.scan_iter(f"{PREFIX}sizes_of:*"):
        server.zadd(key, dict.fromkeys(server.zrange(key, 0, -1), long_ago))
    assert _position(store, job).start_seconds is None


def test_a_worker_of_an_earlier_version_counts_as_one(
    store: JobStore, queue: Queue, start: Callable[..., None], server: Any
) -> None:
    """It names its size only."""
    start(1, 0)
    server.delete(*server.scan_iter(f"{PREFIX}workers_of:*"))
    first, second = queue(), queue()

    assert _position(store, first).start_seconds == 0
    assert _position(store, second).start_seconds == AVERAGE


def test_an_unknown_start_is_told_from_a_missing_worker(
    store: JobStore, queue: Queue, start: Callable[..., None], server: Any
) -> None:
    """No job has ended, so nothing is known of their time."""
    server.delete(f"{PREFIX}average_seconds")
    alone = store.get_queue_end(SMALL)
    start(1, 1)
    queued, end = _position(store, queue()), store.get_queue_end(SMALL)

    assert [one.start_seconds for one in (alone, queued, end)] == [None] * 3
    assert [one.has_worker for one in (alone, queued, end)] == [False, True, True]
    assert [one.waits_for for one in (alone, queued, end)] == [None] * 3
    assert store.get_queue_end(SMALL, "team=b") == QueuePosition(
        position=0, waits_for="pool", has_worker=False
    )
