"""Batches: all jobs or none, and what the owner does with all of them."""

from typing import Any

import pytest

from core import errors
from core.jobs.models import (
    LOCAL_OWNER,
    Batch,
    QueueLimits,
    Status,
    SubmissionContext,
    SubmissionOptions,
    new_batch_id,
)
from core.jobs.store import JobStore


def _create_batch(driver: Any, count: int = 3, owner: str = LOCAL_OWNER, **context: Any) -> Batch:
    for digest in (driver.CONTENT, driver.STYLE):
        driver.store.reserve(digest, 60)
    inputs = [
        driver.INPUT.model_copy(update={"spec": {**driver.INPUT.spec, "seed": seed}})
        for seed in range(count)
    ]
    batch: Batch = driver.store.create_batch(
        new_batch_id(),
        inputs,
        SubmissionOptions(),
        QueueLimits(),
        SubmissionContext(owner=owner, **context),
    )
    return batch


def test_a_batch_has_its_jobs_in_the_order_of_the_inputs(driver: Any, store: JobStore) -> None:
    batch = _create_batch(driver)

    assert [job.input.spec["seed"] for job in store.get_batch(batch.id).jobs] == [0, 1, 2]
    assert {job.batch_id for job in batch.jobs} == {batch.id}


def test_a_batch_of_another_owner_is_not_found_and_not_changed(
    driver: Any, store: JobStore
) -> None:
    batch = _create_batch(driver, owner="anna")

    for operation in (store.get_batch, store.cancel_batch):
        with pytest.raises(errors.BatchNotFound):
            operation(batch.id, "ben")
    store.delete_batch(batch.id, "ben")
    assert {job.status for job in store.get_batch(batch.id, "anna").jobs} == {Status.QUEUED}


def test_a_canceled_batch_has_only_canceled_jobs(driver: Any, store: JobStore) -> None:
    batch = _create_batch(driver)

    assert {job.status for job in store.cancel_batch(batch.id).jobs} == {Status.CANCELED}


def test_a_deleted_batch_leaves_no_job(driver: Any, store: JobStore) -> None:
    batch = _create_batch(driver)
    store.delete_batch(batch.id)

    with pytest.raises(errors.BatchNotFound):
        store.get_batch(batch.id)
    for job in batch.jobs:
        with pytest.raises(errors.JobNotFound):
            store.get(job.id)


def test_a_batch_keeps_the_jobs_that_were_not_deleted(driver: Any, store: JobStore) -> None:
    batch = _create_batch(driver)
    store.delete(batch.jobs[0].id)

    assert [job.id for job in store.get_batch(batch.id).jobs] == [job.id for job in batch.jobs[1:]]


def test_an_idempotency_key_of_a_batch_belongs_to_its_inputs(driver: Any, store: JobStore) -> None:
    batch = _create_batch(driver, idempotency_key="key")

    assert _create_batch(driver, idempotency_key="key").id == batch.id
    with pytest.raises(errors.IdempotencyConflict):
        _create_batch(driver, count=2, idempotency_key="key")


def test_a_replay_is_found_by_key_and_request_until_its_job_is_deleted(
    driver: Any, store: JobStore
) -> None:
    job = driver.submit(idempotency_key="key", request_hash="request")
    batch = _create_batch(driver, idempotency_key="batch key", request_hash="request-of-batch")

    assert store.find_replay("key", "request") == job.id
    assert store.find_replay("batch key", "request-of-batch") == batch.id
    assert store.find_replay("another key", "request") is None
    assert store.find_replay("key", "request", "another owner") is None
    with pytest.raises(errors.IdempotencyConflict):
        store.find_replay("key", "another-request")
    store.delete(job.id)
    assert store.find_replay("key", "another-request") is None
