"""Updates of the spec of queued and running jobs."""

from typing import Any

import pytest

from core import errors
from core.jobs.models import LOCAL_OWNER, JobInput, SubmissionOptions, new_job_id
from core.jobs.store import JobStore


def _set_strength(job_input: JobInput) -> JobInput:
    return job_input.model_copy(update={"spec": {**job_input.spec, "strength": 0.9}})


def test_an_updated_queued_job_counts_as_one_submitted_with_the_new_spec(
    driver: Any, store: JobStore
) -> None:
    """Its result is reused for the new spec and not for the old one."""
    updated = store.update_spec(driver.create().id, _set_strength)
    driver.claim()
    store.reserve(driver.RESULT, 60)
    store.record_model_weights("auto", driver.MODEL.sha256)
    store.succeed(updated.id, "t", driver.OUTPUT, driver.MODEL, {})
    old, new = (
        store.create(new_job_id(), job_input, SubmissionOptions(reuse=True))
        for job_input in (driver.INPUT, _set_strength(driver.INPUT))
    )

    assert (updated.input.spec["strength"], updated.version) == (0.9, 2)
    assert (old.reused_from, new.reused_from) == (None, updated.id)


def test_a_result_that_started_from_another_spec_is_not_reused(
    driver: Any, store: JobStore
) -> None:
    job = driver.create()
    driver.claim()
    store.update_spec(job.id, _set_strength)
    store.reserve(driver.RESULT, 60)
    store.record_model_weights("auto", driver.MODEL.sha256)
    assert store.succeed(job.id, "t", driver.OUTPUT, driver.MODEL, {}) == "ok"

    for job_input in (driver.INPUT, _set_strength(driver.INPUT)):
        job_again = store.create(new_job_id(), job_input, SubmissionOptions(reuse=True))
        assert job_again.reused_from is None
    store.delete(job.id)


def test_the_worker_gets_a_signal_and_a_status_until_it_knows_the_update(
    driver: Any, store: JobStore
) -> None:
    job = driver.create()
    driver.claim()
    assert store.renew(job.id, "t", 0) == "ok"
    store.update_spec(job.id, _set_strength)

    assert store.wait_for_signal("t", 5)
    assert [store.renew(job.id, "t", known) for known in (0, 0, 1)] == [
        "spec_updated",
        "spec_updated",
        "ok",
    ]
    assert store.renew(job.id, "another", 0) == "stale"
    assert store.get(job.id).spec_update_count == 1
    store.cancel(job.id)
    assert store.renew(job.id, "t", 0) == "cancel"


def test_an_update_to_the_same_spec_changes_nothing(driver: Any, store: JobStore) -> None:
    job = driver.create()
    first = store.update_spec(job.id, _set_strength)

    assert store.update_spec(job.id, _set_strength) == first


def test_two_concurrent_updates_both_take_effect(driver: Any, store: JobStore) -> None:
    """Each changes a different parameter. The slower one is applied to the result of the other."""
    job, updates = driver.create(), []

    def update_slowly(job_input: JobInput) -> JobInput:
        if not updates:
            updates.append(store.update_spec(job.id, _set_strength))
        return job_input.model_copy(update={"spec": {**job_input.spec, "tv_weight": 2.0}})

    spec = store.update_spec(job.id, update_slowly).input.spec
    assert (spec["strength"], spec["tv_weight"]) == (0.9, 2.0)


def test_a_locked_spec_accepts_no_update_until_the_job_is_released(
    driver: Any, store: JobStore
) -> None:
    job = driver.create()
    driver.claim()
    store.update_spec(job.id, _set_strength)

    assert store.lock_spec(job.id, "t", 0) == "spec_updated"
    assert store.lock_spec(job.id, "another", 1) == "stale"
    assert store.lock_spec(job.id, "t", 1) == "ok"
    with pytest.raises(errors.JobAlreadyEnded):
        store.update_spec(job.id, lambda _: driver.INPUT)
    store.release(job.id, "t")
    assert store.update_spec(job.id, lambda _: driver.INPUT).input == driver.INPUT


@pytest.mark.parametrize("state", ["ended", "being canceled", "deleted", "another owner's"])
def test_an_ended_canceled_deleted_or_invisible_job_accepts_no_update(
    driver: Any, store: JobStore, state: str
) -> None:
    job = driver.create()
    if state == "being canceled":
        driver.claim()
    if state in ("ended", "being canceled"):
        store.cancel(job.id)
    if state == "deleted":
        store.delete(job.id)
    owner = "anna" if state == "another owner's" else LOCAL_OWNER

    is_hidden = state in ("deleted", "another owner's")
    with pytest.raises(errors.JobNotFound if is_hidden else errors.JobAlreadyEnded):
        store.update_spec(job.id, _set_strength, owner)


def test_the_number_of_updates_is_limited(
    driver: Any, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.jobs.store.MAX_SPEC_UPDATES", 1)
    job = store.update_spec(driver.create().id, _set_strength)

    with pytest.raises(errors.Conflict, match="1 times"):
        store.update_spec(job.id, lambda _: driver.INPUT)
