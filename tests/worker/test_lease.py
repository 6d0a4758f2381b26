"""The lease's thread, on a real Valkey."""

from collections.abc import Callable
from typing import Any

import pytest
import redis

from core import errors
from core.jobs.models import Job, Status
from core.jobs.store import JobStore, LeaseStatus
from core.redis_client import PREFIX
from worker import lease
from worker.lease import Lease
from worker.spec_updates import SpecUpdates


@pytest.fixture(autouse=True)
def _renew_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)


def test_the_lease_is_renewed_until_the_context_ends(
    valkey: Any, until: Callable[..., None], claim_job: Callable[[JobStore], Job]
) -> None:
    store = JobStore(valkey.url, lease_seconds=0.5)
    job = claim_job(store)
    client = redis.Redis.from_url(valkey.url)
    with Lease(store, job.id, "t") as renewed:
        ends = client.zscore(PREFIX + "leases", job.id)
        until(
            lambda: client.zscore(PREFIX + "leases", job.id) > ends + 500,
            "a lease longer than the first",
        )
        assert store.reap_expired_leases() == (0, 0)
        assert not renewed.has_to_stop()

    until(lambda: store.reap_expired_leases() == (1, 0), "the lease expires")
    client.close()
    store.close()


def test_a_cancel_stops_the_run_and_is_announced_once(
    store: JobStore, job: Job, until: Callable[..., None]
) -> None:
    announced: list[LeaseStatus] = []
    with Lease(store, job.id, "t", on_stop=announced.append) as renewed:
        assert not renewed.has_to_stop()
        store.cancel(job.id)
        until(renewed.has_to_stop, "the run must stop")
        ends = store._redis.zscore(PREFIX + "leases", job.id)
        until(lambda: store._redis.zscore(PREFIX + "leases", job.id) > ends, "one more renewal")

    assert announced == ["cancel"]


def test_a_lost_lease_interrupts_the_run(
    store: JobStore, job: Job, until: Callable[..., None]
) -> None:
    def is_interrupted() -> bool:
        try:
            renewed.has_to_stop()
        except errors.LeaseLost:
            return True
        return False

    with Lease(store, job.id, "t") as renewed:
        store.delete(job.id)
        until(is_interrupted, "the lease is lost")

    assert renewed.is_lost


def test_a_spec_update_arrives_with_the_next_renewal(
    store: JobStore, job: Job, until: Callable[..., None]
) -> None:
    updates = SpecUpdates(store, job.id, "t")
    with Lease(store, job.id, "t", spec_updates=updates) as renewed:
        store.update_spec(job.id, lambda old: old.with_updates({"strength": 0.9}))
        until(lambda: updates.known_count == 1, "the update")
        assert not renewed.has_to_stop()

    spec = updates.take()
    assert spec is not None
    assert spec["strength"] == 0.9
    assert updates.take() is None


def test_an_unknown_update_keeps_the_spec_unlocked(store: JobStore, job: Job) -> None:
    updates = SpecUpdates(store, job.id, "t")
    store.update_spec(job.id, lambda old: old.with_updates({"strength": 0.9}))

    assert updates.lock_spec() == "spec_updated"
    assert updates.take() is not None
    assert updates.lock_spec() == "ok"
    with pytest.raises(errors.JobAlreadyEnded):
        store.update_spec(job.id, lambda old: old.with_updates({"strength": 0.1}))


def test_an_outage_of_the_store_does_not_lose_the_lease(
    own_valkey: Any, until: Callable[..., None], claim_job: Callable[[JobStore], Job]
) -> None:
    store = JobStore(own_valkey.url)
    job = claim_job(store)
    with Lease(store, job.id, "t") as renewed:
        own_valkey.kill()
        assert not renewed.has_to_stop()
        own_valkey.start()
        store.cancel(job.id)
        until(renewed.has_to_stop, "the cancel after the outage")

    assert store.get(job.id).status is Status.RUNNING
    store.close()


def test_an_unexpected_error_while_it_sleeps_does_not_end_the_lease(
    store: JobStore, job: Job, until: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> bool:
        raise RuntimeError("a bug")

    monkeypatch.setattr(store, "wait_for_signal", fail)
    with Lease(store, job.id, "t") as renewed:
        store.cancel(job.id)
        until(renewed.has_to_stop, "the run must stop")
