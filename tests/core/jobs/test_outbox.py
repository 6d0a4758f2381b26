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
    time.sleep(0.002)  # the outbox orders by ms
    job = driver.submit(owner, webhook=webhook)
    driver.store.cancel(job.id)
    return str(job.id)


def _claim(
    driver: Any, token: str, lease_seconds: float = 60, blocked: Sequence[str] = ()
) -> tuple[str, int] | None:
    claimed = driver.store.claim_delivery(token, lease_seconds, 3, blocked)
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


def test_a_blocked_owner_hides_no_other_owner(driver: Any) -> None:
    for number in range(600):
        _end_with_webhook(driver, f"https://host{number}.example/", owner="anna")
    other = _end_with_webhook(driver, "https://host.example/", owner="bob")

    started = time.monotonic()
    assert _claim(driver, "t", blocked=["anna"]) == (other, 1)
    assert _claim(driver, "u", blocked=["anna"]) is None
    assert time.monotonic() - started < 2


def test_blocked_deliveries_are_postponed_without_a_try_and_keep_their_order(driver: Any) -> None:
    first, second, third = (_end_with_webhook(driver) for _ in range(3))
    before_ms = time.time() * 1000
    assert _claim(driver, "t", blocked=["local example.org"]) is None
    with redis.Redis.from_url(driver.redis_url) as client:
        due = client.zrange(PREFIX + "outbox", 0, -1, withscores=True)
    assert all(due_ms >= before_ms + 399 for _, due_ms in due)

    time.sleep(0.5)
    claims = [_claim(driver, token) for token in "abc"]
    assert claims == [(first, 1), (second, 1), (third, 1)]


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

    # Those that ended in the same millisecond have no order.
    claims = sorted(_claim(driver, f"t{n}") or ("none", 0) for n in range(4))
    assert claims == sorted((job.id, 1) for job in jobs)
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


def test_a_busy_host_of_one_owner_blocks_neither_other_hosts_nor_other_owners(
    driver: Any,
) -> None:
    _end_with_webhook(driver)
    port = _end_with_webhook(driver, "https://example.org:8443/a")
    host = _end_with_webhook(driver, "https://other.example?a")
    owner = _end_with_webhook(driver, owner="anna")

    claims = [_claim(driver, token, blocked=["local example.org"]) for token in "abcd"]
    assert claims == [(port, 1), (host, 1), (owner, 1), None]


def test_a_completed_delivery_is_not_sent_again(driver: Any, store: JobStore) -> None:
    job_id = _end_with_webhook(driver)
    _claim(driver, "a")

    assert store.complete_delivery(job_id, "a", "delivered")
    assert not store.complete_delivery(job_id, "a", "delivered")
    assert _claim(driver, "b") is None


def test_a_failed_delivery_is_retried_when_due_up_to_the_limit(
    driver: Any, store: JobStore
) -> None:
    job_id = _end_with_webhook(driver)
    for number in (1, 2, 3):
        assert _claim(driver, str(number)) == (job_id, number)
        store.complete_delivery(job_id, str(number), "given_up", 60)
        assert _claim(driver, f"early {number}") is None
        driver.make_webhooks_due()

    assert _claim(driver, "4") is None, "a fourth try of three"


@pytest.mark.parametrize("retry_seconds", [None, 90.0])
def test_a_delivery_is_due_when_its_lease_or_its_pause_ends(
    driver: Any, store: JobStore, valkey: Any, retry_seconds: float | None
) -> None:
    job_id = _end_with_webhook(driver)
    before_ms = driver.server_time_ms()
    store.claim_delivery("a", 30.0, 3)
    if retry_seconds is not None:
        store.complete_delivery(job_id, "a", "given_up", retry_seconds)
    after_ms = driver.server_time_ms()
    with redis.Redis.from_url(valkey.url) as client:
        due_ms: Any = client.zscore(f"{PREFIX}outbox", job_id)

    assert before_ms <= due_ms - 1000 * (retry_seconds or 30.0) <= after_ms


def test_a_delivery_is_due_again_after_its_lease(driver: Any, store: JobStore) -> None:
    """The first dispatcher may resume later; then its report changes nothing."""
    job_id = _end_with_webhook(driver)
    _claim(driver, "suspended")
    assert _claim(driver, "b") is None
    driver.make_webhooks_due()

    assert _claim(driver, "b") == (job_id, 2)
    assert not store.complete_delivery(job_id, "suspended", "delivered")
    assert store.complete_delivery(job_id, "b", "given_up", 0)
    assert _claim(driver, "c") == (job_id, 3)


def test_a_job_that_is_deleted_during_delivery_blocks_no_other(
    driver: Any, store: JobStore
) -> None:
    deleted, following = _end_with_webhook(driver), _end_with_webhook(driver)
    assert _claim(driver, "a") == (deleted, 1)
    store.delete(deleted)

    assert _claim(driver, "b") == (following, 1)
    assert not store.complete_delivery(deleted, "a", "given_up", 0)
    assert _claim(driver, "c") is None


def test_eight_concurrent_dispatchers_claim_each_delivery_once(driver: Any, valkey: Any) -> None:
    due = {_end_with_webhook(driver, f"https://host-{n % 9}.example/") for n in range(60)}
    claimed: list[str] = []

    def dispatch(name: str) -> None:
        own = JobStore(valkey.url)
        for number in itertools.count():
            delivery = own.claim_delivery(f"{name} {number}", 60, 3)
            if delivery:
                claimed.append(delivery[0].id)
                own.complete_delivery(delivery[0].id, f"{name} {number}", "delivered")
            elif len(claimed) >= 60 or number > 10_000:
                break
        own.close()

    threads = [threading.Thread(target=dispatch, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(claimed) == 60
    assert set(claimed) == due


def test_a_deleted_job_has_no_delivery(driver: Any, store: JobStore, valkey: Any) -> None:
    claimed, queued = _end_with_webhook(driver), _end_with_webhook(driver)
    assert _claim(driver, "a") == (claimed, 1)
    store.delete(claimed)
    store.delete(queued)

    assert not store.complete_delivery(claimed, "a", "delivered")
    with redis.Redis.from_url(valkey.url, decode_responses=True) as client:
        assert client.keys(PREFIX + "outbox*") == []
