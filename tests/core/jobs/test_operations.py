"""What the operator sees and does, on a real server."""

from typing import Any

import pytest
import redis

from core import errors
from core.jobs.models import Priority, Status, WorkerInfo
from core.jobs.operations import HOUR_SECONDS, MAX_HOURS
from core.jobs.store import WORKER_TTL_MS, JobStore
from core.redis_client import PREFIX

INFO = WorkerInfo(device="cpu", precision="float32", network="vgg16", networks=["vgg16"])


def _queue(store: JobStore) -> list[str]:
    return [job.id for job in store.operations.list_queue(0, 100)[0]]


def test_the_queue_shows_the_jobs_of_all_owners_in_the_order_of_claims(
    driver: Any, store: JobStore
) -> None:
    jobs = [driver.submit("anna"), driver.submit("anna"), driver.submit("ben")]
    jobs.append(driver.submit("ben", priority=Priority.HIGH))
    shown, total = store.operations.list_queue(0, 100)

    assert [job.owner for job in shown] == ["ben", "anna", "ben", "anna"]
    assert [job.position for job in shown] == [0, 1, 2, 3]
    assert (shown[0].id, shown[0].priority, shown[0].size) == (jobs[3].id, Priority.HIGH, 512)
    assert shown[0].created_at == jobs[3].created_at
    assert total == 4
    page, total = store.operations.list_queue(1, 2)
    assert [(job.id, job.position) for job in page] == [
        (job.id, job.position) for job in shown[1:3]
    ]
    assert [store.claim(token, "w").id for token in "abcd"] == [job.id for job in shown]  # type: ignore[union-attr]
    assert store.operations.list_queue(0, 100) == ([], 0)


def test_a_damaged_record_hides_no_other_job_of_the_queue(
    driver: Any, store: JobStore, valkey: Any
) -> None:
    ids = [driver.create().id for _ in range(4)]
    with redis.Redis.from_url(valkey.url) as client:
        client.hset(f"{PREFIX}job:{ids[0]}", "priority", "x")
        client.hset(f"{PREFIX}job:{ids[1]}", "input", "{")
        client.delete(f"{PREFIX}job:{ids[2]}")

    assert _queue(store) == [ids[1], ids[3]]


def test_a_moved_job_starts_first_or_last_whatever_its_priority(
    driver: Any, store: JobStore
) -> None:
    low, normal, high = (
        driver.submit(priority=priority).id for priority in ("low", "normal", "high")
    )
    later = driver.submit("ben", priority="high").id
    store.operations.move_in_queue(normal, "first")
    store.operations.move_in_queue(high, "last")
    store.operations.move_in_queue(low, "first")
    new = driver.submit("ben", priority="high").id

    assert _queue(store) == [low, normal, later, new, high]
    assert [store.claim(token, "w").id for token in "abcde"] == [low, normal, later, new, high]  # type: ignore[union-attr]


def test_a_moved_job_keeps_its_place_when_its_worker_is_lost(driver: Any, store: JobStore) -> None:
    first, moved = driver.create().id, driver.create().id
    store.operations.move_in_queue(moved, "first")
    assert driver.claim("t").id == moved
    driver.expire_leases()
    store.reap_expired_leases()

    assert _queue(store) == [moved, first]


def test_only_a_queued_job_can_be_moved(driver: Any, store: JobStore) -> None:
    job = driver.create()
    driver.claim("t")

    with pytest.raises(errors.Conflict):
        store.operations.move_in_queue(job.id, "first")
    assert store.get(job.id).status == Status.RUNNING
    assert _queue(store) == []
    with pytest.raises(errors.JobNotFound):
        store.operations.move_in_queue("job_x", "first")


def test_a_pause_refuses_new_jobs_and_runs_the_accepted_ones(driver: Any, store: JobStore) -> None:
    accepted = driver.submit(idempotency_key="k")
    assert store.operations.get_intake_pause() is None
    store.operations.pause_intake()
    since = store.operations.get_intake_pause()
    store.operations.pause_intake()

    assert since is not None
    assert store.operations.get_intake_pause() == since
    with pytest.raises(errors.IntakePaused) as paused:
        driver.create()
    assert paused.value.retry_seconds == 60
    with pytest.raises(errors.IntakePaused):
        store.check_limits("local", driver.LIMITS)
    assert driver.submit(idempotency_key="k").id == accepted.id  # it repeats an accepted request
    assert driver.claim("t").id == accepted.id
    store.operations.resume_intake()
    assert driver.create().status == Status.QUEUED


def test_workers_are_shown_with_what_they_run(driver: Any, store: JobStore, valkey: Any) -> None:
    store.heartbeat("worker", INFO)
    store.heartbeat("idle")
    store.heartbeat("gone", INFO)
    with redis.Redis.from_url(valkey.url) as client:
        client.zincrby(f"{PREFIX}workers", -WORKER_TTL_MS - 1, "gone")
    job = driver.submit("anna")
    driver.claim("t")
    store.report_progress(job.id, "t", driver.PROGRESS)
    states = {state.name: state for state in store.operations.list_workers(WORKER_TTL_MS)}

    assert {*states} == {"worker", "idle"}
    busy, idle = states["worker"], states["idle"]
    assert (busy.info, busy.job_id, busy.owner, busy.progress) == (INFO, job.id, "anna", 0.5)
    assert (idle.info, idle.job_id, idle.owner, idle.progress) == (None, None, None, None)
    assert 0 <= busy.seconds_since_heartbeat < 5


def test_ends_failures_and_waits_are_counted_by_the_hour(
    driver: Any, store: JobStore, valkey: Any
) -> None:
    waits = [0, 2, 2, 100]
    for number, seconds in enumerate(waits):
        job = driver.create()
        with redis.Redis.from_url(valkey.url) as client:
            created = int(client.hget(f"{PREFIX}job:{job.id}", "created_at"))  # type: ignore[arg-type]
            client.hset(f"{PREFIX}job:{job.id}", "created_at", created - 1000 * seconds)
        driver.claim(f"t{number}")
        if number < 2:
            store.fail(job.id, f"t{number}", errors.OutOfMemory())
        elif number == 2:
            store.reserve(driver.RESULT, 0)
            store.succeed(job.id, f"t{number}", driver.OUTPUT, driver.MODEL, {})
    store.release(job.id, "t3")
    driver.claim("again")  # only the first start ends the wait
    store.cancel(driver.create().id)
    total, hours = store.operations.list_hours(24)

    assert len(hours) == 24
    assert (total.succeeded, total.failed, total.canceled, total.expired) == (1, 2, 1, 0)
    assert (total.started, total.failures) == (4, {"out_of_memory": 2})
    assert total.wait_p50_seconds is not None
    assert total.wait_p95_seconds is not None
    assert 2 <= total.wait_p50_seconds <= 2 * 1.25
    assert 100 <= total.wait_p95_seconds <= 100 * 1.25
    assert sum(hour.started for hour in hours) == 4
    assert total.start == hours[0].start
    assert (hours[-1].start - hours[0].start).total_seconds() == 23 * HOUR_SECONDS
    assert hours[0].wait_p50_seconds is None


def test_the_counts_of_an_hour_expire_and_are_few(
    driver: Any, store: JobStore, valkey: Any
) -> None:
    for _ in range(50):
        driver.end()
    with redis.Redis.from_url(valkey.url) as client:
        (name, *others) = client.keys(f"{PREFIX}hour:*")
        assert len(others) <= 1  # the hour may have ended meanwhile
        assert client.hlen(name) < 10
        days = client.ttl(name) / 86_400

    assert MAX_HOURS / 24 < days <= 8


def test_what_expires_is_counted(driver: Any, store: JobStore) -> None:
    driver.end(result_retention_seconds=3600)
    driver.end(result_retention_seconds=7 * 86_400)
    counts = store.operations.count_expiry()

    assert (counts.with_pictures, counts.expiring_within_a_day) == (2, 1)
    assert (counts.records_without_pictures, counts.pictures) == (0, 3)
    driver.reach_expiry()
    store.expire_due(60)
    assert store.operations.count_expiry().records_without_pictures == 2


def test_the_usage_of_each_owner_is_shown(driver: Any, store: JobStore) -> None:
    driver.end(owner="anna")
    driver.submit("anna")
    driver.claim("t")
    driver.submit("anna")
    store.reserve(driver.PREVIEW, 60, "anna", size_bytes=7, max_bytes=100)
    usage = store.operations.get_usage(["anna", "ben"])

    assert usage["anna"].model_dump() == {
        "queued": 1,
        "running": 1,
        "jobs": 3,
        "uploads": 1,
        "upload_bytes": 7,
    }
    assert {*usage["ben"].model_dump().values()} == {0}
    assert store.operations.get_usage([]) == {}
