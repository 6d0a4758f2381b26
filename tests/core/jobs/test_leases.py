"""Claims, leases, lost workers and leadership."""

import threading
import time
from typing import Any

import redis

from core.jobs.models import MAX_ATTEMPTS, Status
from core.jobs.store import LEASE_SECONDS, JobStore
from core.redis_client import PREFIX


def test_a_claim_sent_twice_takes_one_job(driver: Any, store: JobStore) -> None:
    driver.create(), driver.create()

    assert driver.claim("t").id == driver.claim("t").id
    assert store.get_load().queued == 1


def test_a_repeated_claim_renews_the_lease_of_its_job(driver: Any, valkey: Any) -> None:
    """It never claims a second job, not even when the first one has ended."""
    store = JobStore(valkey.url, lease_seconds=0.4)
    driver = driver.on(store)
    first, _ = driver.create(), driver.create()
    for _ in range(3):
        assert driver.claim("t").id == first.id
        time.sleep(0.25)
        assert store.reap_expired_leases() == (0, 0)
    store.succeed(first.id, "t", driver.OUTPUT, driver.MODEL, {})

    assert store.claim("t", "worker") is None
    assert store.get_load().queued == 1
    store.close()


def test_eight_concurrent_workers_claim_each_job_once(driver: Any, valkey: Any) -> None:
    jobs = {driver.create().id for _ in range(60)}
    claimed: list[str] = []

    def worker(name: str) -> None:
        own = JobStore(valkey.url)
        while job := own.claim(f"{name}-{len(claimed)}-{time.monotonic_ns()}", name):
            claimed.append(job.id)
        own.close()

    threads = [threading.Thread(target=worker, args=(str(number),)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(claimed) == 60
    assert set(claimed) == jobs


def test_a_job_whose_lease_expires_returns_to_the_head_of_the_queue(
    driver: Any, store: JobStore
) -> None:
    first, second = driver.create(), driver.create()
    driver.claim()
    driver.expire_leases()

    assert store.reap_expired_leases() == (1, 0)
    requeued = store.get(first.id)
    assert requeued.queue is not None
    assert (requeued.status, requeued.queue.position, requeued.attempt) == (Status.QUEUED, 0, 1)
    assert driver.claim("u").id == first.id
    assert store.get(first.id).attempt == 2
    assert driver.claim("v").id == second.id


def test_a_claim_and_a_renewal_extend_the_lease_by_its_length(
    driver: Any, store: JobStore, valkey: Any
) -> None:
    job = driver.create()
    with redis.Redis.from_url(valkey.url) as client:
        for start in (driver.claim, lambda: store.renew(job.id, "t")):
            before_ms = driver.server_time_ms()
            start()
            after_ms = driver.server_time_ms()
            ends_ms: Any = client.zscore(f"{PREFIX}leases", job.id)
            assert before_ms <= ends_ms - 1000 * LEASE_SECONDS <= after_ms


def test_a_renewed_lease_does_not_expire(driver: Any, valkey: Any) -> None:
    store = JobStore(valkey.url, lease_seconds=0.6)
    driver = driver.on(store)
    driver.create()
    job = driver.claim()

    for _ in range(4):
        time.sleep(0.25)
        assert store.renew(job.id, "t") == "ok"
        assert store.reap_expired_leases() == (0, 0)
    time.sleep(0.7)
    assert store.reap_expired_leases() == (1, 0)
    assert store.renew(job.id, "t") == "stale"
    store.close()


def test_after_three_losses_the_job_fails_as_worker_lost(driver: Any, store: JobStore) -> None:
    job = driver.create()
    for attempt in range(MAX_ATTEMPTS):
        driver.claim(str(attempt))
        driver.expire_leases()
        store.reap_expired_leases()

    ended = store.get(job.id)
    assert ended.error is not None
    assert (ended.status, ended.error.code, ended.attempt) == (
        Status.FAILED,
        "worker_lost",
        MAX_ATTEMPTS,
    )
    assert store.claim("one more", "worker") is None


def test_a_released_job_keeps_its_place_and_the_attempt_does_not_count(
    driver: Any, store: JobStore
) -> None:
    first, _ = driver.create(), driver.create()
    driver.claim()

    assert store.release(first.id, "t") == "ok"
    requeued = store.get(first.id)
    assert requeued.queue is not None
    assert (requeued.queue.position, requeued.attempt) == (0, 0)


def test_a_job_that_killed_two_workers_is_queued_behind_the_others(
    driver: Any, store: JobStore
) -> None:
    poison, *others = [driver.create() for _ in range(4)]
    driver.claim("a")
    store.requeue_jobs_of("worker")
    assert driver.claim("b").id == poison.id
    store.requeue_jobs_of("worker")

    assert [driver.claim(token).id for token in "cdef"] == [job.id for job in (*others, poison)]


def test_a_job_that_killed_two_workers_is_queued_behind_other_owners_jobs(
    driver: Any, store: JobStore
) -> None:
    poison, other = driver.submit("a"), driver.submit("b")
    for token in ("t", "u"):
        assert driver.claim(token).id == poison.id
        store.requeue_jobs_of("worker")

    assert [driver.claim(token).id for token in "vw"] == [other.id, poison.id]


def test_only_losses_in_a_row_without_a_checkpoint_count(driver: Any, store: JobStore) -> None:
    """A long job may lose many workers, as long as it makes progress in between."""
    job = driver.create()
    for attempt in range(10):
        token = f"t{attempt}"
        assert driver.claim(token).id == job.id
        if attempt % 2:
            assert store.save_checkpoint(job.id, token, f"{job.id}.{attempt}") == "ok"
        store.requeue_jobs_of("worker")
    seen = store.get(job.id)

    assert (seen.status, seen.attempt, seen.checkpoint) == (Status.QUEUED, 10, f"{job.id}.9")


def test_only_the_jobs_of_the_lost_worker_are_requeued(driver: Any, store: JobStore) -> None:
    mine, other = driver.create(), driver.create()
    store.claim("t", "dead")
    store.claim("u", "alive")

    assert store.requeue_jobs_of("dead") == 1
    assert (store.get(mine.id).status, store.get(other.id).status) == (
        Status.QUEUED,
        Status.RUNNING,
    )
    assert store.requeue_jobs_of("dead") == 0
    assert store.succeed(mine.id, "t", driver.OUTPUT, driver.MODEL, {}) == "stale"


def test_progress_survives_a_loss_only_with_a_checkpoint(driver: Any, store: JobStore) -> None:
    job = driver.create()
    for saved in (False, True):
        driver.claim(f"t{saved}")
        store.report_progress(job.id, f"t{saved}", driver.PROGRESS)
        if saved:
            store.save_checkpoint(job.id, f"t{saved}", "c")
        store.requeue_jobs_of("worker")
        assert store.get(job.id).progress == (driver.PROGRESS if saved else None)


def test_a_stale_token_saves_no_checkpoint(driver: Any, store: JobStore) -> None:
    job = driver.create()
    driver.claim()
    driver.expire_leases()
    store.reap_expired_leases()
    driver.claim("u")

    assert store.save_checkpoint(job.id, "t", "c") == "stale"
    assert store.get(job.id).checkpoint is None


def test_one_process_leads_until_its_term_ends(store: JobStore) -> None:
    assert store.acquire_leadership("a", 60)
    assert not store.acquire_leadership("b", 60)
    assert store.acquire_leadership("a", 0.001)
    time.sleep(0.01)
    assert store.acquire_leadership("b", 60)
