"""Expiry of images and records, pins, and deletion."""

from typing import Any

import pytest
import redis

from core import errors
from core.jobs.models import Status
from core.jobs.store import JobStore
from core.redis_client import PREFIX


def test_an_ended_job_loses_its_images_and_then_its_record(driver: Any, store: JobStore) -> None:
    job = driver.end(result_retention_seconds=60)
    assert job.expires_at is not None
    assert job.completed_at is not None
    assert (job.expires_at - job.completed_at).total_seconds() == 60
    assert store.expire_due(60) == 0

    driver.reach_expiry()
    before_ms = driver.server_time_ms()
    assert store.expire_due(60) == 1
    after_ms = driver.server_time_ms()
    with redis.Redis.from_url(driver.redis_url) as client:
        record_ends_ms: Any = client.zscore(f"{PREFIX}records", job.id)
    assert before_ms <= record_ends_ms - 60_000 <= after_ms
    expired = store.get(job.id)
    assert (expired.status, expired.images_deleted) == (Status.SUCCEEDED, True)
    assert expired.version > job.version
    driver.end_reservations()
    assert set(store.mark_deleting()) == {driver.CONTENT, driver.STYLE, driver.RESULT}

    driver.reach_expiry()
    store.expire_due(60)
    with pytest.raises(errors.JobNotFound):
        store.get(job.id)
    assert store.list_page(limit=10) == ([], None)


def test_a_pinned_job_does_not_expire(driver: Any, store: JobStore) -> None:
    early, late = (
        driver.end(result_retention_seconds=60),
        driver.submit(result_retention_seconds=60),
    )
    for job in (early, late):
        store.set_pinned(job.id)
        assert store.set_pinned(job.id).pinned
    store.cancel(late.id)
    driver.reach_expiry()

    assert store.expire_due(60) == 0
    assert store.get(late.id).expires_at is None
    for job in (early, late):
        assert store.set_pinned(job.id, pinned=False).expires_at is not None
    driver.reach_expiry()
    assert store.expire_due(60) == 2


def test_early_expiry_takes_the_jobs_that_expire_first(driver: Any, store: JobStore) -> None:
    oldest, middle, _ = [driver.end(result_retention_seconds=60 + number) for number in range(3)]

    assert store.expire_early(2) == 2
    assert store.expire_due(60) == 2
    assert [store.get(job.id).images_deleted for job in (oldest, middle)] == [True, True]
    assert store.expire_early(5) == 1


def test_a_job_that_is_deleted_before_its_early_expiry_leaves_no_entry(
    driver: Any, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = driver.end(result_retention_seconds=60)
    list_expiring = store._redis.zrange

    def list_and_delete(*args: Any) -> Any:
        found = list_expiring(*args)
        store.delete(job.id)
        return found

    monkeypatch.setattr(store._redis, "zrange", list_and_delete)
    store.expire_early(1)

    assert store.count_expiring() == 0


def test_jobs_without_a_time_limit_expire_only_early_and_last(driver: Any, store: JobStore) -> None:
    oldest, newer = driver.end(), driver.end()
    ending, pinned = driver.end(result_retention_seconds=60), driver.end()
    store.set_pinned(pinned.id)
    assert oldest.expires_at is None
    assert store.expire_due(60) == 0

    history = []
    for _ in range(4):
        store.expire_early(1)
        store.expire_due(60)
        history.append(
            [store.get(job.id).images_deleted for job in (ending, oldest, newer, pinned)]
        )
    assert history == [
        [True, False, False, False],
        [True, True, False, False],
        *[[True, True, True, False]] * 2,
    ]
    store.set_pinned(pinned.id, pinned=False)
    assert store.expire_early(5) == 1


def test_a_job_pinned_while_it_runs_does_not_expire(driver: Any, store: JobStore) -> None:
    job = driver.submit()
    driver.claim()
    store.set_pinned(job.id)
    store.succeed(job.id, "t", driver.OUTPUT, driver.MODEL, {})

    assert store.expire_early(1) == 0


def test_deleted_jobs_leave_no_keys(driver: Any, store: JobStore, valkey: Any) -> None:
    """Except for counters, one round of each lane, and keys that expire."""
    for owner in ("a", "b"):
        driver.submit(
            owner, deadline_seconds=60, result_retention_seconds=60, webhook="https://example.org"
        )
        store.claim(owner, "worker")
    driver.submit("a", result_retention_seconds=60)
    for owner in ("a", "b", "local"):
        for job in store.list_page(limit=10, owner=owner)[0]:
            store.delete(job.id)
    driver.end_reservations()
    for digest in store.mark_deleting():
        store.confirm_deleted(digest)

    with redis.Redis.from_url(valkey.url, decode_responses=True) as client:
        left = [
            key.removeprefix(PREFIX) for key in client.keys(PREFIX + "*") if client.pttl(key) < 0
        ]
    assert set(left) == {"number", "entries", "totals", "round_begins"}
