"""New jobs: idempotency keys, limits, reused results, and room for records."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import redis

from core import errors
from core.jobs.models import (
    Job,
    QueueLimits,
    Status,
    SubmissionContext,
    SubmissionOptions,
    new_batch_id,
    new_job_id,
)
from core.jobs.store import JobStore
from core.redis_client import PREFIX


def test_a_new_job_is_queued_with_its_input_and_its_position(driver: Any, store: JobStore) -> None:
    first, second = driver.create(), driver.create()

    assert (first.status, first.version, first.attempt, first.input) == (
        Status.QUEUED,
        1,
        0,
        driver.INPUT,
    )
    assert [job.queue.position for job in (first, second) if job.queue] == [0, 1]
    assert store.get_load().queued == 2


def test_creating_the_same_id_again_changes_nothing(driver: Any, store: JobStore) -> None:
    job = driver.create()
    driver.claim()

    assert store.create(job.id, driver.INPUT).status is Status.RUNNING
    assert store.get_load().queued == 0


def test_the_same_idempotency_key_returns_the_same_job(driver: Any, store: JobStore) -> None:
    first = driver.submit(idempotency_key="k")
    again = driver.submit(idempotency_key="k")
    others = driver.submit("ben", idempotency_key="k")

    assert again == first
    assert others.id != first.id
    with pytest.raises(errors.IdempotencyConflict):
        driver.submit(idempotency_key="k", priority="high")
    store.delete(first.id)
    assert driver.submit(idempotency_key="k").id != first.id


def test_fifty_concurrent_submissions_with_one_key_create_one_job(
    driver: Any, store: JobStore, valkey: Any
) -> None:
    store.reserve(driver.CONTENT, 60)
    store.reserve(driver.STYLE, 60)
    ids: list[str] = []

    def submit() -> None:
        own = JobStore(valkey.url)
        ids.append(
            own.create(
                new_job_id(), driver.INPUT, context=SubmissionContext(idempotency_key="k")
            ).id
        )
        own.close()

    threads = [threading.Thread(target=submit) for _ in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (len(ids), len(set(ids)), store.get_load().queued) == (50, 1, 1)


def test_unfinished_jobs_are_limited_per_owner_and_in_total(driver: Any, store: JobStore) -> None:
    limits = QueueLimits(queued=3, per_owner=2)
    driver.submit("a", limits)
    driver.submit("a", limits)
    with pytest.raises(errors.QuotaExceeded) as quota:
        driver.submit("a", limits)
    driver.submit("b", limits)
    with pytest.raises(errors.QueueFull) as full:
        driver.submit("b", limits)
    job = driver.claim()
    with pytest.raises(errors.QuotaExceeded):  # running jobs count as well
        driver.submit(job.owner, limits)

    assert quota.value.retry_seconds >= 1
    assert full.value.retry_seconds >= 1
    store.end_canceled(job.id, "t")
    driver.submit(job.owner, limits)


@pytest.mark.parametrize(
    ("average", "workers", "seconds"),
    [("9", 2, 4.5), ("9", 0, 9.0), ("0.5", 1, 1.0), ("9000", 1, 600.0), (None, 1, 2.0)],
)
def test_a_refused_caller_returns_when_the_next_job_may_have_ended(
    driver: Any,
    store: JobStore,
    valkey: Any,
    average: str | None,
    workers: int,
    seconds: float,
) -> None:
    driver.create()
    for number in range(workers):
        store.heartbeat(str(number))
    with redis.Redis.from_url(valkey.url) as client:
        if average is not None:
            client.set(f"{PREFIX}average_seconds", average)

    with pytest.raises(errors.QuotaExceeded) as refused:
        driver.submit(limits=QueueLimits(per_owner=1))
    assert refused.value.retry_seconds == seconds
    with pytest.raises(errors.QueueFull) as full:
        store.check_limits("another", QueueLimits(queued=1))
    assert full.value.retry_seconds == seconds


def test_the_early_check_of_the_limits_agrees_with_the_submission(
    driver: Any, store: JobStore
) -> None:
    driver.submit("a")
    driver.submit("a")
    driver.claim()
    store.check_limits("a", QueueLimits(queued=3, per_owner=4), 2)

    with pytest.raises(errors.QuotaExceeded):
        store.check_limits("a", QueueLimits(queued=3, per_owner=4), 3)
    with pytest.raises(errors.QueueFull):
        store.check_limits("b", QueueLimits(queued=3, per_owner=4), 3)
    store.check_limits("a", QueueLimits(), 1000)


def test_a_result_is_reused_for_the_same_request_of_the_same_owner(
    driver: Any, store: JobStore
) -> None:
    store.record_model_weights("auto", driver.MODEL.sha256)
    assert driver.submit(reuse=True).status is Status.QUEUED
    job = driver.claim()
    store.reserve(driver.RESULT, 0)
    store.succeed(job.id, "t", driver.OUTPUT, driver.MODEL, {"run_seconds": 3.0})
    same = driver.submit(reuse=True)

    assert (same.status, same.outputs, same.reused_from, same.attempt) == (
        Status.SUCCEEDED,
        [driver.OUTPUT],
        job.id,
        0,
    )
    assert driver.submit().status is Status.QUEUED
    assert driver.submit("ben", reuse=True).status is Status.QUEUED
    store.delete(job.id)
    assert driver.RESULT not in store.mark_deleting()
    assert driver.submit(reuse=True).status is Status.QUEUED


def test_an_expired_result_is_not_reused(driver: Any, store: JobStore) -> None:
    store.record_model_weights("auto", driver.MODEL.sha256)
    driver.end(result_retention_seconds=60)
    assert driver.submit(reuse=True).status is Status.SUCCEEDED
    driver.reach_expiry()
    store.expire_due(60)

    assert driver.submit(reuse=True).status is Status.QUEUED


def test_a_result_of_other_weights_is_not_reused(driver: Any, store: JobStore) -> None:
    driver.submit()
    store.succeed(driver.claim().id, "t", driver.OUTPUT, driver.MODEL, {})
    store.record_model_weights("auto", "another")

    assert driver.submit(reuse=True).status is Status.QUEUED


def test_the_oldest_ended_job_makes_room_for_a_new_one(
    driver: Any, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.patch_library(monkeypatch, "local MAX_RECORDS = 50000", "local MAX_RECORDS = 3")
    running, pinned, ended = driver.create(), driver.create(), driver.create()
    driver.claim()
    store.set_pinned(pinned.id, pinned=True)
    for job in (pinned, ended):
        store.cancel(job.id)
    last = driver.create()

    assert [job.id for job in store.list_page(limit=9)[0]] == [last.id, pinned.id, running.id]


def test_an_owner_whose_old_jobs_are_all_pinned_cannot_submit_or_reuse(
    driver: Any, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.patch_library(monkeypatch, "local MAX_RECORDS = 50000", "local MAX_RECORDS = 3")
    store.record_model_weights(driver.INPUT.spec["model"], driver.MODEL.sha256)
    jobs = [driver.end(), *(driver.submit(reuse=True) for _ in range(2))]
    assert [job.reused_from for job in jobs] == [None, jobs[0].id, jobs[0].id]
    for job in jobs:
        store.set_pinned(job.id)

    with pytest.raises(errors.QuotaExceeded, match="pin"):
        driver.submit(reuse=True)
    with pytest.raises(errors.QuotaExceeded, match="pin"):
        store.create_batch(
            new_batch_id(), [driver.INPUT] * 2, SubmissionOptions(reuse=True), QueueLimits()
        )
    store.set_pinned(jobs[1].id, pinned=False)
    last = driver.submit()
    assert [job.id for job in store.list_page(limit=9)[0]] == [last.id, jobs[2].id, jobs[0].id]


def test_a_job_whose_reusable_result_makes_room_counts_as_queued(
    driver: Any, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.patch_library(monkeypatch, "local MAX_RECORDS = 50000", "local MAX_RECORDS = 2")
    store.record_model_weights(driver.INPUT.spec["model"], driver.MODEL.sha256)
    driver.end()

    with pytest.raises(errors.QuotaExceeded):
        store.create_batch(
            new_batch_id(),
            [driver.INPUT] * 2,
            SubmissionOptions(reuse=True),
            QueueLimits(per_owner=1),
        )
    assert len(store.list_page(limit=9)[0]) == 1, "a refusal deletes no record"


def test_a_worker_starts_no_further_job_of_a_batch_while_it_is_canceled(
    driver: Any, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.create()  # reserves the images
    driver.claim()
    batch = store.create_batch(
        new_batch_id(), [driver.INPUT] * 4, SubmissionOptions(), QueueLimits()
    )
    running = [driver.claim(token="0").id]
    call = store._call

    def cancel_and_work(name: str, *args: Any, **options: Any) -> Any:
        answer = call(name, *args, **options)
        if name == "cancel" and args[1] == running[-1]:  # the worker ends it and claims the next
            store.end_canceled(running[-1], str(len(running) - 1))
            following = store.claim(str(len(running)), "worker")
            running.extend([following.id] if following else [])
        return answer

    monkeypatch.setattr(store, "_call", cancel_and_work)
    store.cancel_batch(batch.id)

    assert running == [batch.jobs[0].id]


# ---------------------------------------------------------------------- the pictures' bytes

BOUNDED = QueueLimits(pending_bytes=100)


@pytest.fixture
def pending(store: JobStore) -> Callable[[], tuple[int, dict[str, str]]]:
    """Return how many pictures of anna's unfinished jobs are counted, and their bytes."""

    def read() -> tuple[int, dict[str, str]]:
        client = store._redis
        sizes: Any = client.hgetall(f"{PREFIX}pending_sizes:anna")
        return int(client.hlen(f"{PREFIX}pending:anna")), sizes  # type: ignore[arg-type]

    return read


@pytest.mark.parametrize(
    "end", ["succeed", "fail", "cancel queued", "cancel running", "delete", "delete running"]
)
def test_the_pictures_of_unfinished_jobs_have_a_quota_in_bytes(
    driver: Any, store: JobStore, pending: Any, end: str
) -> None:
    sizes = {driver.CONTENT: 60, driver.STYLE: 40}
    job = driver.submit("anna", BOUNDED, picture_bytes=sizes)
    assert driver.submit("anna", BOUNDED, picture_bytes=sizes), "the same pictures count once"
    assert pending() == (2, {driver.CONTENT: "60", driver.STYLE: "40", "sum": "100"})
    more = driver.INPUT.model_copy(update={"content": driver.RESULT})
    store.reserve(driver.RESULT, 60)

    def submit_more() -> Job:
        context = SubmissionContext(owner="anna", picture_bytes={driver.RESULT: 50, **sizes})
        return store.create(new_job_id(), more, driver.OPTIONS, BOUNDED, context)

    for refused in (
        submit_more,
        lambda: store.check_limits("anna", BOUNDED, 1, {driver.RESULT: 50}),
        lambda: store.create_batch(
            "batch_a",
            [more],
            driver.OPTIONS,
            BOUNDED,
            SubmissionContext(owner="anna", picture_bytes={driver.RESULT: 1}),
        ),
    ):
        with pytest.raises(errors.QuotaExceeded, match="your queued and running jobs"):
            refused()
    store.check_limits("anna", BOUNDED, 1, sizes)
    other = driver.submit("ben", BOUNDED, picture_bytes=sizes)  # it is a limit of each owner
    store.delete(other.id)
    store.delete(job.id)
    assert pending()[0] == 2, "the other job still needs them"

    waiting = store.list_page(limit=9, owner="anna")[0][0]
    if end not in ("cancel queued", "delete"):
        driver.claim()
    if end == "succeed":
        store.succeed(waiting.id, "t", driver.OUTPUT, driver.MODEL, {})
    elif end == "fail":
        store.fail(waiting.id, "t", driver.DIVERGED)
    elif end.startswith("cancel"):
        store.cancel(waiting.id)
        store.end_canceled(waiting.id, "t", None)
    else:
        store.delete(waiting.id)
    assert pending() == (0, {})
    submit_more()
