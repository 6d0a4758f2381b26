"""The sum of the queued work, the histograms and the counts of the whole service."""

import re
from typing import Any

import pytest
import redis

from core.jobs.models import (
    JobInput,
    QueueLimits,
    SubmissionContext,
    SubmissionOptions,
    WorkCounts,
    WorkerUse,
    new_batch_id,
)
from core.jobs.statistics import LIMITS_SECONDS, NOMINAL_SECONDS
from core.jobs.store import JobStore, load_library
from core.redis_client import PREFIX
from core.style.schedule import count_work, schedule
from core.style.spec import StyleSpec

SIZE = (1600, 1200)
WORK = count_work(schedule(StyleSpec(), *SIZE))
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


@pytest.fixture
def submit(driver: Any) -> Any:
    """Return a function that queues a job whose photo has a known size."""
    return lambda **options: driver.submit(picture_sizes={driver.CONTENT: SIZE}, **options)


@pytest.fixture
def queued_work(valkey: Any) -> Any:
    def read() -> int:
        with redis.Redis(port=valkey.port) as client:
            return int(client.hget(f"{PREFIX}work", "queued") or 0)

    return read


def test_the_sum_of_the_queued_work_follows_every_change(
    driver: Any, store: JobStore, submit: Any, queued_work: Any
) -> None:
    seen = []
    first, second, third = (submit() for _ in range(3))
    seen.append(queued_work())
    claimed = driver.claim("a")
    seen.append(queued_work())
    store.release(claimed.id, "a")
    seen.append(queued_work())
    store.operations.move_in_queue(third.id, "first")
    assert driver.claim("b").id == third.id
    seen.append(queued_work())
    driver.expire_leases()
    store.reap_expired_leases()
    seen.append(queued_work())
    store.cancel(second.id)
    store.cancel(second.id)
    seen.append(queued_work())
    store.delete(first.id)
    store.delete(second.id)
    seen.append(queued_work())
    store.delete(third.id)
    seen.append(queued_work())

    assert [WORK * count for count in (3, 2, 3, 2, 3, 2, 1, 0)] == seen


def test_a_batch_adds_the_work_of_each_of_its_jobs(
    driver: Any, store: JobStore, queued_work: Any
) -> None:
    for digest in (driver.CONTENT, driver.STYLE, driver.RESULT):
        store.reserve(digest)
    inputs = [
        JobInput(content=content, styles=[driver.STYLE], spec=StyleSpec().model_dump())
        for content in (driver.CONTENT, driver.RESULT)
    ]
    sizes = {driver.CONTENT: SIZE, driver.RESULT: (600, 600)}
    context = SubmissionContext(picture_sizes=sizes)
    store.create_batch(new_batch_id(), inputs, SubmissionOptions(), QueueLimits(), context)

    assert queued_work() == sum(count_work(schedule(StyleSpec(), *size)) for size in sizes.values())


def test_seconds_of_work_follow_the_measured_speed(
    driver: Any, store: JobStore, submit: Any, valkey: Any
) -> None:
    submit()
    submit()
    before = store.get_queue_work_seconds()
    job = driver.claim("a")
    with redis.Redis(port=valkey.port) as client:  # it has run for 30 s
        claimed_ms = driver.server_time_ms() - 30_000
        client.hset(f"{PREFIX}job:{job.id}", "claimed_at", claimed_ms)
    store.reserve(driver.RESULT)
    store.succeed(job.id, "a", driver.OUTPUT, driver.MODEL, {})

    assert before == pytest.approx(2 * WORK / 1e9 * NOMINAL_SECONDS)
    assert store.get_queue_work_seconds() == pytest.approx(30, abs=0.5)


def test_a_queue_of_an_earlier_version_counts_by_the_average_job(
    driver: Any, store: JobStore, valkey: Any
) -> None:
    driver.submit()
    driver.submit()
    with redis.Redis(port=valkey.port) as client:
        client.delete(f"{PREFIX}work")
        client.set(f"{PREFIX}average_seconds", "7")

    assert store.get_queue_work_seconds() == 14


def test_waits_runs_and_losses_are_counted_by_size_with_a_trace(
    driver: Any, store: JobStore, submit: Any
) -> None:
    submit(traceparent=f"00-{TRACE}-00f067aa0ba902b7-01")
    submit()
    driver.claim("a")
    driver.expire_leases()
    store.reap_expired_leases()
    for token in "bc":
        job = driver.claim(token)
        store.reserve(driver.RESULT)
        store.succeed(job.id, token, driver.OUTPUT, driver.MODEL, {})
    statistics = store.get_statistics()
    waits, runs = statistics.histogram("wait", "512"), statistics.histogram("run", "512")

    counted = ("submitted", "queued>running", "running>queued", "lost", "running>succeeded")
    assert [statistics.count(field) for field in counted] == [2, 3, 1, 1, 2]
    assert (sum(waits.counts), sum(runs.counts)) == (2, 3)
    assert {example.trace_id for example in waits.examples if example} == {TRACE}
    assert sum(statistics.histogram("run", "1024").counts) == 0


def test_workers_report_what_they_use_and_have_done(store: JobStore) -> None:
    use = WorkerUse(device="cuda:1", memory_used_bytes=5, memory_total_bytes=9, utilization=0.5)
    done = WorkCounts(iterations=2, evaluations=3, evaluated_pixels=4)
    store.heartbeat("host:boot:1:7", None, use, done)
    store.heartbeat("host:boot:1:7", None, use, done)
    store.heartbeat("old:boot:1:7")
    statistics = store.get_statistics()

    names = ("iterations", "evaluations", "evaluated_pixels")
    assert [statistics.count(name) for name in names] == [4, 6, 8]
    assert {(worker.host, worker.use) for worker in statistics.workers} == {
        ("host", use),
        ("old", None),
    }
    store.requeue_jobs_of("host:boot:1:7")
    assert [worker.host for worker in store.get_statistics().workers] == ["old"]


def test_the_lua_functions_have_the_same_buckets() -> None:
    _, code = load_library()
    limits = re.search(r"LIMITS_MS = \{([^}]+)\}", code)

    assert limits is not None
    assert [float(limit) / 1000 for limit in limits[1].split(",")] == [*LIMITS_SECONDS]
