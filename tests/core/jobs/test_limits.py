"""What one owner can accumulate is bounded, and no operation costs more for it."""

import time
from collections.abc import Callable
from typing import Any

import pytest
import redis

from core import errors
from core.jobs.models import new_batch_id
from core.jobs.store import JobStore
from core.redis_client import PREFIX


@pytest.fixture
def admin(valkey: Any) -> Any:
    with redis.Redis(port=valkey.port, decode_responses=True) as client:
        yield client


def _digest(number: int) -> str:
    return f"sha256:{number:064}"


# ---------------------------------------------------------------------- numbers


def test_uploads_are_limited_by_number(store: JobStore) -> None:
    def upload(number: int, owner: str = "anna") -> None:
        store.reserve(_digest(number), 60, owner, size_bytes=1, max_bytes=1e9, max_uploads=3)

    for number in range(3):
        upload(number)
    with pytest.raises(errors.QuotaExceeded) as refused:
        upload(3)
    upload(0)  # known
    upload(3, "ben")
    assert 50 < refused.value.retry_seconds <= 60


def test_an_expired_upload_makes_room(
    driver: Any, store: JobStore, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many have expired at once: one operation forgets only some of them."""
    driver.patch_library(monkeypatch, "local MAX_FORGOTTEN = 100", "local MAX_FORGOTTEN = 2")
    for number in range(9):
        store.reserve(_digest(number), 60, "anna", size_bytes=10, max_bytes=90, max_uploads=9)
    for number in range(8):
        admin.zadd(f"{PREFIX}uploads:anna", {_digest(number): 1})

    with pytest.raises(errors.QuotaExceeded):
        store.reserve(_digest(10), 60, "anna", size_bytes=81, max_bytes=90, max_uploads=9)
    store.reserve(_digest(11), 60, "anna", size_bytes=80, max_bytes=90, max_uploads=9)
    assert admin.hgetall(f"{PREFIX}upload_sizes:anna") == {
        _digest(8): "10",
        _digest(11): "80",
        "sum": "90",
    }
    with pytest.raises(errors.QuotaExceeded):
        store.reserve(_digest(12), 60, "anna", size_bytes=1, max_bytes=1e9, max_uploads=2)


def test_a_result_can_be_named_although_the_uploads_are_full(store: JobStore) -> None:
    store.reserve(_digest(1), 60, "anna", size_bytes=1, max_bytes=1e9, max_uploads=1)
    store.reserve(_digest(2), 60, "anna", max_uploads=1)

    assert not store.is_owner("anna", _digest(2)), "it stays what it was"
    assert store.mark_deleting() == []


def test_the_sum_and_the_uploads_expire_together(store: JobStore, admin: Any) -> None:
    store.reserve(_digest(1), 0.05, "anna", size_bytes=1, max_bytes=1)
    time.sleep(0.1)

    assert admin.keys(f"{PREFIX}upload*") == []
    store.reserve(_digest(2), 60, "anna", size_bytes=1, max_bytes=1)


def test_only_the_newest_jobs_of_an_owner_keep_their_frames(
    driver: Any, store: JobStore, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.patch_library(monkeypatch, "local MAX_FRAMED = 5000", "local MAX_FRAMED = 2")
    store.reserve(driver.PREVIEW, 0)
    jobs = [driver.submit("anna") for _ in range(3)]
    other = driver.submit("ben")
    for token in "abcd":
        store.add_frame(driver.claim(token).id, token, driver.frame(1))
    holders = {job.id: len(store.list_frames(job.id)) for job in (*jobs, other)}

    assert [*holders.values()] == [0, 1, 1, 1]
    assert store.get(jobs[0].id).frames == 0, "a client sees no link to them"
    for job in (*jobs, other):
        store.delete(job.id)
    assert store.mark_deleting() == [driver.PREVIEW]
    assert admin.keys(f"{PREFIX}framed:*") == []


def test_an_idempotency_key_goes_with_its_job(driver: Any, store: JobStore, admin: Any) -> None:
    """So an owner has at most as many as records."""
    single = driver.submit(idempotency_key="one")
    batch = store.create_batch(
        new_batch_id(),
        [driver.INPUT] * 2,
        driver.OPTIONS,
        driver.LIMITS,
        driver.context("two"),
    )
    assert len(admin.keys(f"{PREFIX}replay:*")) == 2
    store.delete(single.id)
    store.delete(batch.jobs[0].id)
    assert len(admin.keys(f"{PREFIX}replay:*")) == 1, "the batch still has a job"
    store.delete(batch.jobs[1].id)
    assert admin.keys(f"{PREFIX}replay:*") == []


def test_records_make_room_whatever_state_the_oldest_are_in(
    driver: Any, store: JobStore, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Queued, running and pinned jobs at the front, however many, hide no removable one."""
    driver.patch_library(monkeypatch, "local MAX_RECORDS = 50000", "local MAX_RECORDS = 6")
    pinned, running, damaged = driver.end(), driver.submit(), driver.submit()
    store.set_pinned(pinned.id)
    driver.claim("r")
    store.cancel(damaged.id)
    admin.delete(f"{PREFIX}job:{damaged.id}")
    unpinned = driver.submit()
    store.cancel(unpinned.id)
    store.set_pinned(unpinned.id)
    store.set_pinned(unpinned.id, pinned=False)
    driver.submit()
    driver.submit()
    for _ in range(2):
        driver.submit()
    with pytest.raises(errors.QuotaExceeded):
        driver.submit()

    left = {job.id for job in store.list_page(limit=9)[0]}
    assert {pinned.id, running.id} < left
    assert unpinned.id not in left
    assert admin.zcard(f"{PREFIX}jobs_of:local") == 6


# ---------------------------------------------------------------------- costs


def _count_commands(admin: Any, step: Callable[[], object]) -> dict[str, int]:
    """Return how often the server runs each command for one step, in functions as well."""
    admin.config_resetstat()
    step()
    stats = {name.removeprefix("cmdstat_"): row for name, row in admin.info("commandstats").items()}
    ignored = {"config|resetstat", "info", "time"}
    return {name: row["calls"] for name, row in stats.items() if name not in ignored}


def test_no_operation_costs_more_for_an_owner_with_more_objects(
    driver: Any, store: JobStore, admin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counts commands: bench/store.py shows the time for up to a million objects."""
    driver.patch_library(monkeypatch, "local MAX_RECORDS = 50000", "local MAX_RECORDS = 1")
    monkeypatch.setattr(store.monitor, "require_safe", lambda: None)  # once a second
    steps: dict[str, Callable[[], object]] = {
        "create": driver.submit,
        "claim": lambda: store.claim("t", "w"),
        "release": lambda: store.release(store._redis.get(f"{PREFIX}claim:t"), "t"),
        "list": lambda: store.list_page(limit=5),
        "upload": lambda: store.reserve(_digest(10**6), 60, "local", size_bytes=1, max_bytes=1e9),
        "hold": lambda: store.reserve(_digest(10**6 + 1), 60),
        "mark_deleting": store.mark_deleting,
        "expire": lambda: store.expire_due(60),
        "operator's queue": lambda: store.operations.list_queue(10, 5),
        "operator's move": lambda: store.operations.move_in_queue(
            store.operations.list_queue(9, 1)[0][0].id, "first"
        ),
        "operator's hours": lambda: store.operations.list_hours(24),
        "operator's workers": lambda: store.operations.list_workers(5000),
        "operator's counts": store.operations.count_expiry,
        "operator's usage": lambda: store.operations.get_usage(["local"]),
    }
    costs: list[dict[str, dict[str, int]]] = []
    for count in (20, 200):
        admin.flushall()
        driver.patch_library(monkeypatch, "local MAX_RECORDS = 1", "local MAX_RECORDS = 100000")
        for number in range(count):
            driver.submit(idempotency_key=str(number))
            job = driver.claim(str(number))
            store.end_canceled(job.id, str(number))
            if number % 2:
                store.set_pinned(job.id)
            store.reserve(_digest(number), 60, "local", size_bytes=1, max_bytes=1e9)
        for _ in range(count):
            driver.submit()
        driver.patch_library(monkeypatch, "local MAX_RECORDS = 100000", "local MAX_RECORDS = 1")
        store.get_load()  # loads the functions
        costs.append({name: _count_commands(admin, step) for name, step in steps.items()})

    few, many = costs
    assert many == few
    used = {command for cost in many.values() for command in cost}
    assert used.isdisjoint({"hvals", "hkeys", "hscan", "scan", "keys", "zscan"})
