"""The status transitions: every operation in every status."""

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import redis

from core import errors
from core.jobs.models import TRANSITIONS, Status
from core.jobs.store import JobStore, load_library
from core.redis_client import PREFIX

# The operations of the store, and the status that each leads to from a status. From all others it
# changes nothing.
OPERATIONS: dict[str, tuple[Callable[[Any, str], object], dict[Status, Status]]] = {
    "cancel": (
        lambda driver, job_id: driver.store.cancel(job_id),
        {Status.QUEUED: Status.CANCELED},  # the worker of a running job gets a request
    ),
    "claim": (
        lambda driver, job_id: driver.store.claim("new", "worker"),
        {Status.QUEUED: Status.RUNNING},
    ),
    "succeed": (
        lambda driver, job_id: driver.store.succeed(job_id, "t", driver.OUTPUT, driver.MODEL, {}),
        {Status.RUNNING: Status.SUCCEEDED},
    ),
    "fail": (
        lambda driver, job_id: driver.store.fail(job_id, "t", driver.DIVERGED),
        {Status.RUNNING: Status.FAILED},
    ),
    "end_canceled": (
        lambda driver, job_id: driver.store.end_canceled(job_id, "t"),
        {Status.RUNNING: Status.CANCELED},
    ),
    "release": (
        lambda driver, job_id: driver.store.release(job_id, "t"),
        {Status.RUNNING: Status.QUEUED},
    ),
    "renew": (lambda driver, job_id: driver.store.renew(job_id, "t"), {}),
    "progress": (
        lambda driver, job_id: driver.store.report_progress(job_id, "t", driver.PROGRESS),
        {},
    ),
    "reap": (
        lambda driver, job_id: driver.store.reap_expired_leases(),
        {Status.RUNNING: Status.QUEUED},
    ),
}
# How a new job reaches each status.
REACH: dict[Status, Callable[[Any, str], object]] = {
    Status.QUEUED: lambda driver, job_id: None,
    Status.RUNNING: lambda driver, job_id: driver.store.claim("t", "worker"),
    Status.SUCCEEDED: lambda driver, job_id: (
        driver.store.claim("t", "worker"),
        driver.store.succeed(job_id, "t", driver.OUTPUT, driver.MODEL, {}),
    ),
    Status.FAILED: lambda driver, job_id: (
        driver.store.claim("t", "worker"),
        driver.store.fail(job_id, "t", driver.DIVERGED),
    ),
    Status.CANCELED: lambda driver, job_id: driver.store.cancel(job_id),
}


def _finish_as(url: str, job_id: str, status: Status, to: Status) -> bool:
    """Try to end the job as `to`, with the one function that accepts any status."""
    with redis.Redis.from_url(url, decode_responses=True) as client:
        client.hset(f"{PREFIX}job:{job_id}", "token", "t")
        return (
            client.fcall(f"{load_library()[0]}_finish", 1, PREFIX, job_id, "t", to) == "ok"
            and status is not to
        )


@pytest.mark.parametrize(("status", "operation"), list(itertools.product(REACH, OPERATIONS)))
def test_every_operation_in_every_status_has_the_expected_effect(
    driver: Any, store: JobStore, status: Status, operation: str
) -> None:
    """A legal operation changes the status; an illegal one changes nothing."""
    job = driver.create()
    REACH[status](driver, job.id)
    driver.expire_leases()
    before = store.get(job.id)
    assert before.status is status

    run, targets = OPERATIONS[operation]
    run(driver, job.id)

    after = store.get(job.id)
    assert after.status is targets.get(status, status)
    assert after.status is status or after.status in TRANSITIONS[status]
    if status.has_ended:
        assert after == before


@pytest.mark.parametrize(("status", "to"), list(itertools.product(REACH, Status)))
def test_the_transitions_of_the_library_are_those_of_the_models(
    driver: Any, store: JobStore, valkey: Any, status: Status, to: Status
) -> None:
    job = driver.create()
    REACH[status](driver, job.id)

    moved = _finish_as(valkey.url, job.id, status, to)

    # `finish` changes running jobs only, whatever the table says.
    assert moved is (status is Status.RUNNING and to in TRANSITIONS[status])
    assert store.get(job.id).status is (to if moved else status)


@pytest.mark.parametrize(
    "operation", ["renew", "progress", "succeed", "fail", "end_canceled", "release"]
)
def test_a_stale_token_is_refused_and_changes_nothing(
    driver: Any, store: JobStore, operation: str
) -> None:
    """A worker that was suspended beyond its lease resumes after another has claimed the job."""
    driver.create()
    job = driver.claim("t")
    driver.expire_leases()
    store.reap_expired_leases()
    again = driver.claim("fresh")
    assert again.id == job.id

    run, _ = OPERATIONS[operation]
    assert run(driver, job.id) == "stale"
    assert store.get(job.id) == again


def test_progress_is_stored_and_increases_the_version(driver: Any, store: JobStore) -> None:
    driver.create()
    job = driver.claim()

    assert store.report_progress(job.id, "t", driver.PROGRESS) == "ok"
    seen = store.get(job.id)
    assert seen.progress == driver.PROGRESS
    assert seen.version > job.version


def test_success_stores_the_result_and_may_be_reported_twice(driver: Any, store: JobStore) -> None:
    driver.create()
    job = driver.claim()

    assert store.succeed(job.id, "t", driver.OUTPUT, driver.MODEL, {"run_seconds": 1.5}) == "ok"
    ended = store.get(job.id)
    assert store.succeed(job.id, "t", driver.OUTPUT, driver.MODEL, {"run_seconds": 1.5}) == "ok"

    assert (
        ended.status,
        ended.outputs,
        ended.model,
        ended.metrics["run_seconds"],
    ) == (Status.SUCCEEDED, [driver.OUTPUT], driver.MODEL, 1.5)
    assert store.get(job.id) == ended
    assert ended.completed_at is not None
    assert ended.started_at is not None
    assert ended.created_at <= ended.started_at <= ended.completed_at


def test_failure_stores_the_error_code_and_message(driver: Any, store: JobStore) -> None:
    driver.create()
    job = driver.claim()
    store.fail(job.id, "t", driver.DIVERGED)

    error = store.get(job.id).error
    assert error is not None
    assert (error.code, error.message) == ("diverged", driver.DIVERGED.message)


def test_cancel_of_a_running_job_reaches_its_worker(driver: Any, store: JobStore) -> None:
    driver.create()
    job = driver.claim()

    assert store.cancel(job.id).cancel_requested
    assert store.renew(job.id, "t") == "cancel"
    assert store.end_canceled(job.id, "t") == "ok"
    assert store.get(job.id).status is Status.CANCELED


@pytest.mark.parametrize("loss", ["lease expired", "released"])
def test_a_job_whose_worker_is_lost_after_a_cancel_ends_as_canceled(
    driver: Any, store: JobStore, loss: str
) -> None:
    driver.create()
    job = driver.claim()
    store.cancel(job.id)
    if loss == "released":
        store.release(job.id, "t")
    else:
        driver.expire_leases()
        assert store.reap_expired_leases() == (0, 1)

    assert store.get(job.id).status is Status.CANCELED


def test_a_cancel_wakes_the_worker_at_once(driver: Any, store: JobStore) -> None:
    job = driver.create()
    driver.claim()
    cancel = threading.Timer(0.1, store.cancel, [job.id])
    cancel.start()
    started = time.monotonic()
    store.wait_for_signal("t", 0.9)

    assert time.monotonic() - started < 0.5
    cancel.join()


def test_a_canceled_job_keeps_the_image_so_far(driver: Any, store: JobStore) -> None:
    job = driver.create()
    driver.claim()
    store.cancel(job.id)
    store.reserve(driver.RESULT, 0)
    assert store.end_canceled(job.id, "t", driver.OUTPUT) == "ok"

    assert store.get(job.id).outputs == [driver.OUTPUT]
    assert store.mark_deleting() == []


@pytest.mark.parametrize("is_running", [False, True])
def test_a_deadline_ends_a_queued_or_running_job(
    driver: Any, store: JobStore, valkey: Any, is_running: bool
) -> None:
    job = driver.submit(deadline_seconds=60)
    if is_running:
        driver.claim()
        assert store.renew(job.id, "t") == "ok"
    with redis.Redis.from_url(valkey.url) as client:  # as if a minute had passed
        client.hset(f"{PREFIX}job:{job.id}", "deadline_at", 1)
        client.zadd(PREFIX + "deadlines", {job.id: 1})
    store.reap_expired_leases()

    if is_running:
        assert store.renew(job.id, "t") == "deadline_exceeded"
        started = time.monotonic()
        store.wait_for_signal("t", 0.9)  # the reaper has sent a signal
        assert time.monotonic() - started < 0.5
        assert store.fail(job.id, "t", errors.DeadlineExceeded(), driver.OUTPUT) == "ok"
    ended = store.get(job.id)
    assert ended.status is (Status.FAILED if is_running else Status.EXPIRED)
    assert ended.outputs == ([driver.OUTPUT] if is_running else [])


def test_the_worker_of_a_deleted_job_finds_its_token_stale(driver: Any, store: JobStore) -> None:
    driver.create()
    job = driver.claim()
    store.delete(job.id)
    store.delete(job.id)

    assert store.renew(job.id, "t") == "stale"
    assert store.succeed(job.id, "t", driver.OUTPUT, driver.MODEL, {}) == "stale"
    with pytest.raises(errors.JobNotFound):
        store.get(job.id)
    with pytest.raises(errors.JobNotFound):
        store.cancel(job.id)
    assert store.list_page(limit=10) == ([], None)
