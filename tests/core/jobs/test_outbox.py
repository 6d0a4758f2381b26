"""The webhook outbox: claims, leases and outcomes of deliveries."""

import itertools
import threading
import time
from collections.abc import Sequence
from typing import Any

import pytest
import redis

from core.jobs.models import LOCAL_OWNER, Status
from core.jobs.store import JobStore
from core.redis_client import PREFIX


def _end_with_webhook(
    driver: Any, webhook: str = "https://example.org/a", owner: str = LOCAL_OWNER
) -> str:
    """Create and cancel a job with a webhook. Returns its id."""
    job = driver.submit(owner, webhook=webhook)
    driver.store.cancel(job.id)
    return str(job.id)


def _claim(driver: Any, token: str, lease_seconds: float = 60) -> tuple[str, int] | None:
    claimed = driver.store.claim_delivery(token, lease_seconds, 3)
    return claimed and (claimed[0].id, claimed[1])


def test_a_job_that_is_deleted_during_the_claim_blocks_no_other(
    driver: Any, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = _end_with_webhook(driver), _end_with_webhook(driver)
    read = store._read

    def deleted(job_ids: Sequence[str], owner: str) -> Any:
        store.delete(first)
        return read(job_ids, owner)

    monkeypatch.setattr(store, "_read", deleted)
    assert _claim(driver, "t") is None
    monkeypatch.undo()
    assert _claim(driver, "u") == (second, 1)


def test_an_owner_with_many_hosts_hides_no_other_owner(
    driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.patch_library(monkeypatch, "LANES_AT_ONCE = 8, 1000", "LANES_AT_ONCE = 8, 5")
    for number in range(20):
        _end_with_webhook(driver, f"https://host{number}.example/", owner="anna")
    time.sleep(0.005)
    other = _end_with_webhook(driver, "https://host.example/", owner="bob")
    taken = [_claim(driver, f"t{number}") for number in range(9)]

    assert taken[8] == (other, 1)
    assert _claim(driver, "u") is None


def test_a_webhook_is_due_however_its_job_has_ended(driver: Any, store: JobStore) -> None:
    jobs = [
        driver.submit(str(n), webhook="https://example.org", deadline_seconds=0.01 + n)
        for n in range(4)
    ]
    assert _claim(driver, "t") is None
    time.sleep(0.02)
    store.reap_expired_leases()
    store.cancel(jobs[1].id)
    driver.claim("a")
    driver.claim("b")
    store.succeed(jobs[2].id, "a", driver.OUTPUT, driver.MODEL, {})
    store.fail(jobs[3].id, "b", driver.DIVERGED)

    assert [_claim(driver, f"t{n}") for n in range(4)] == [(job.id, 1) for job in jobs]
    ends = [store.get(job.id).status for job in jobs]
    assert ends == [Status.EXPIRED, Status.CANCELED, Status.SUCCEEDED, Status.FAILED]


def test_a_job_without_a_webhook_has_no_delivery(driver: Any, store: JobStore) -> None:
    store.cancel(driver.create().id)

    assert _claim(driver, "t") is None


def test_a_reused_result_has_a_delivery(driver: Any, store: JobStore) -> None:
    store.record_model_weights("auto", driver.MODEL.sha256)
    driver.end()
    job = driver.submit(reuse=True, webhook="https://example.org")

    assert job.status is Status.SUCCEEDED
    assert _claim(driver, "t") == (job.id, 1)


def test_a_claim_sent_twice_takes_one_delivery(driver: Any) -> None:
    first = _end_with_webhook(driver)
    _end_with_webhook(driver, "https://other.example")

    assert [_claim(driver, "t"), _claim(driver, "t")] == [(first, 1), (first, 1)]


def test_one_dispatcher_at_a_time_sends_to_a_host_for_an_owner(
    driver: Any, store: JobStore
) -> None:
    """However many wait for a host that is busy, another host's and another owner's are not held up."""
    busy = [_end_with_webhook(driver) for _ in range(5)]
    other, anna = (
        _end_with_webhook(driver, "https://other.example/a"),
        _end_with_webhook(driver, owner="anna"),
    )

    assert [_claim(driver, token) for token in "abcd"] == [
        (busy[0], 1),
        (other, 1),
        (anna, 1),
        None,
    ]
    assert store.complete_delivery(busy[0], "a", "delivered")
    assert _claim(driver, "e") == (busy[1], 1)


def test_a_completed_delivery_is_not_sent_again(driver: Any, store: JobStore) -> None:
    job_id = _end_with_webhook(driver)
    _claim(driver, "a")

    assert store.complete_delivery(job_id, "a", "delivered")
    assert not store.complete_delivery(job_id, "a", "delivered")
    assert _claim(driver, "b") is None


def test_a_failed_delivery_is_retried_when_due_up_to_the_limit(
    driver: Any, store: JobStore, valkey: Any
) -> None:
    job_id = _end_with_webhook(driver)
    for number in (1, 2, 3):
        assert _claim(driver, str(number)) == (job_id, number)
        store.complete_delivery(job_id, str(number), "given_up", 60)
        assert _claim(driver, f"early {number}") is None
        with redis.Redis.from_url(valkey.url) as client:  # now they are due
            for key in client.keys(PREFIX + "outbox*"):
                client.zadd(key, dict.fromkeys(client.zrange(key, 0, -1), 1))

    assert _claim(driver, "4") is None, "a fourth try of three"


def test_a_delivery_is_due_again_after_its_lease(driver: Any, store: JobStore, valkey: Any) -> None:
    """And what the first says when it turns out to be alive changes nothing."""
    job_id = _end_with_webhook(driver)
    _claim(driver, "frozen")
    assert _claim(driver, "b") is None
    with redis.Redis.from_url(valkey.url) as client:  # the lease runs out
        client.zadd(
            PREFIX + "dispatchers", dict.fromkeys(client.zrange(PREFIX + "dispatchers", 0, -1), 1)
        )

    assert _claim(driver, "b") == (job_id, 2)
    assert not store.complete_delivery(job_id, "frozen", "delivered")
    assert store.complete_delivery(job_id, "b", "given_up", 0)
    assert _claim(driver, "c") == (job_id, 3)


def test_a_job_that_is_deleted_during_delivery_blocks_no_other(
    driver: Any, store: JobStore
) -> None:
    """Its lane is free as soon as its courier is back, and no sooner."""
    deleted, following = _end_with_webhook(driver), _end_with_webhook(driver)
    _claim(driver, "a")
    store.delete(deleted)
    assert _claim(driver, "b") is None

    assert not store.complete_delivery(deleted, "a", "delivered")
    assert _claim(driver, "c") == (following, 1)


def test_a_late_dispatcher_of_a_deleted_job_frees_no_claim_of_another(
    driver: Any, store: JobStore, valkey: Any
) -> None:
    deleted, following, _ = (_end_with_webhook(driver) for _ in range(3))
    _claim(driver, "frozen", 0.03)
    with redis.Redis.from_url(
        valkey.url
    ) as client:  # as if all happened in the millisecond in which the lease ends
        client.persist(f"{PREFIX}delivery_claim:frozen")
    store.delete(deleted)
    time.sleep(0.04)
    assert _claim(driver, "b") == (following, 1)

    assert not store.complete_delivery(deleted, "frozen", "delivered")
    assert _claim(driver, "c") is None


def test_eight_concurrent_dispatchers_claim_each_delivery_once(driver: Any, valkey: Any) -> None:
    due = {_end_with_webhook(driver, f"https://host-{n % 9}.example/") for n in range(60)}
    taken: list[str] = []

    def courier(name: str) -> None:
        own = JobStore(valkey.url)
        for number in itertools.count():
            found = own.claim_delivery(f"{name} {number}", 60, 3)
            if found:
                taken.append(found[0].id)
                own.complete_delivery(found[0].id, f"{name} {number}", "delivered")
            elif len(taken) >= 60 or number > 10_000:
                break
        own.close()

    threads = [threading.Thread(target=courier, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(taken) == 60
    assert set(taken) == due


def test_a_deleted_job_has_no_delivery(driver: Any, store: JobStore, valkey: Any) -> None:
    waiting, taken = _end_with_webhook(driver), _end_with_webhook(driver, "https://other.example/")
    _claim(driver, "a")
    _claim(driver, "b")
    store.delete(waiting)
    store.delete(taken)

    assert not store.complete_delivery(taken, "b", "delivered")
    with redis.Redis.from_url(valkey.url, decode_responses=True) as client:
        assert client.keys(PREFIX + "outbox*") == []


def test_one_owner_has_a_few_deliveries_at_a_time(driver: Any) -> None:
    for number in range(9):
        _end_with_webhook(driver, f"https://host{number}.example/", owner="anna")
    other = _end_with_webhook(driver, "https://host.example/", owner="bob")
    taken = [_claim(driver, f"t{number}") for number in range(10)]

    assert sum(one is not None for one in taken) == 9
    assert (other, 1) in taken
