"""Faults of the server: restarts, foreign libraries, and damaged records."""

import time
from contextlib import suppress
from typing import Any

import pytest
import redis

from core import errors
from core.jobs.models import Status
from core.jobs.store import JobStore, load_library
from core.redis_client import PREFIX


def test_acknowledged_jobs_survive_kill_9_of_the_server(driver: Any, own_valkey: Any) -> None:
    store = JobStore(own_valkey.url)
    driver = driver.on(store)
    jobs = [driver.create() for _ in range(20)]
    driver.claim()
    own_valkey.kill()

    with pytest.raises(errors.StoreUnavailable):
        store.get(jobs[0].id)
    own_valkey.start()

    assert [store.get(job.id).status for job in jobs] == [Status.RUNNING] + [Status.QUEUED] * 19
    assert store.renew(jobs[0].id, "t") == "ok"
    store.close()


def test_a_missing_library_is_loaded(driver: Any, valkey: Any) -> None:
    with redis.Redis.from_url(valkey.url) as client:
        client.function_flush("SYNC")

    assert driver.create().status is Status.QUEUED


def test_a_library_of_another_version_does_not_interfere(driver: Any, valkey: Any) -> None:
    """The server keeps the functions of old versions on its disk."""
    version, code = load_library()
    other = (
        code.replace(version, "impasto_other")
        .replace("return nil", "error('old')")
        .replace("'queued'", "'gone'")
    )
    with redis.Redis.from_url(valkey.url) as client:
        client.function_load(other, replace=True)

    job = driver.create()
    assert driver.claim().id == job.id


def test_a_bug_does_not_look_like_an_outage(store: JobStore, valkey: Any) -> None:
    with redis.Redis.from_url(valkey.url) as client:
        client.set(f"{PREFIX}leases", "not a zset")

    with pytest.raises(redis.ResponseError):
        store.reap_expired_leases()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input", '{"content'),
        ("input", b'{"content\xe3'),
        ("created_at", None),
        ("status", "sleeping"),
    ],
)
def test_a_damaged_record_hides_no_other(
    driver: Any, store: JobStore, valkey: Any, field: str, value: str | bytes | None
) -> None:
    damaged, intact = driver.create(), driver.create()
    with redis.Redis(port=valkey.port) as client:
        key = f"{PREFIX}job:{damaged.id}"
        client.hdel(key, field) if value is None else client.hset(key, field, value)

    assert [job.id for job in store.list_page(limit=10)[0]] == [intact.id]
    with pytest.raises(errors.JobNotFound):
        store.get(damaged.id)


def test_a_damaged_index_entry_hides_no_other_job(
    driver: Any, store: JobStore, valkey: Any
) -> None:
    intact = driver.create()
    with redis.Redis(port=valkey.port) as client:
        client.zadd(f"{PREFIX}jobs_of:local", {b"job_\xe3": 999})

    assert [job.id for job in store.list_page(limit=10)[0]] == [intact.id]


@pytest.mark.parametrize("field", ["blobs", "progress"])
def test_a_damaged_record_stops_no_operation_on_others(
    driver: Any, store: JobStore, valkey: Any, field: str
) -> None:
    damaged, other, queued = driver.create(), driver.create(), driver.create()
    for token in "tu":
        driver.claim(token)
    with redis.Redis(port=valkey.port) as client:
        client.hset(f"{PREFIX}job:{damaged.id}", field, '{"sha')
    assert (store.get_load().queued, store.get_load().running) == (1, 2)
    assert store.get(queued.id).id == queued.id
    for job, token in ((damaged, "t"), (other, "u")):
        store.fail(job.id, token, driver.DIVERGED)
    store.expire_early(2)

    assert store.expire_due(0) == 2
    assert store.expire_due(0) == 2
    assert [job.id for job in store.list_page(limit=10)[0]] == [queued.id]


def _damage(client: redis.Redis, job_id: str, damage: str) -> None:
    """damage: `record`, or `without FIELD`, or a field that gets another value."""
    key = f"{PREFIX}job:{job_id}"
    if damage == "record":
        client.delete(key)
    elif damage.startswith("without "):
        client.hdel(key, damage.removeprefix("without "))
    else:
        client.hset(key, damage, "\x01")


MISSING = ["without owner", "without entry", "without place", "record"]


@pytest.mark.parametrize(
    "damage", ["status", "place", "attempt", "version", "owner", "entry", *MISSING]
)
def test_jobs_behind_a_damaged_one_are_claimed(
    driver: Any, store: JobStore, valkey: Any, damage: str
) -> None:
    damaged, other = driver.create(), driver.create()
    with redis.Redis(port=valkey.port) as client:
        _damage(client, damaged.id, damage)
    claimed = []
    for token in "tuv":
        with suppress(errors.JobNotFound):
            claimed += [job.id for job in [store.claim(token, "worker")] if job]

    assert other.id in claimed
    assert len(set(claimed)) == len(claimed)
    assert store.get_load().queued == 0


@pytest.mark.parametrize("damage", ["status", "lost_workers", "entry", *MISSING])
def test_jobs_beside_a_damaged_one_are_requeued(
    driver: Any, store: JobStore, valkey: Any, damage: str
) -> None:
    damaged, other = driver.create(), driver.create()
    for token in "tu":
        driver.claim(token)
    with redis.Redis(port=valkey.port) as client:
        _damage(client, damaged.id, damage)
    driver.expire_leases()

    assert store.reap_expired_leases() == (1 + (damage == "lost_workers"), 0)
    assert store.reap_expired_leases() == (0, 0)
    assert store.get_load().running == 0
    assert store.get(other.id).status == "queued"


@pytest.mark.parametrize("damage", ["status", "entry", *MISSING])
def test_a_damaged_job_with_a_deadline_stops_no_other(
    driver: Any, store: JobStore, valkey: Any, damage: str
) -> None:
    damaged, other = (driver.submit(deadline_seconds=1) for _ in range(2))
    with redis.Redis(port=valkey.port) as client:
        _damage(client, damaged.id, damage)
        for job in (damaged, other):
            client.zadd(f"{PREFIX}deadlines", {job.id: 1})

        assert store.reap_expired_leases() == (0, 1)
        assert store.get(other.id).status == "expired"
        assert client.zcard(f"{PREFIX}deadlines") == 0


@pytest.mark.parametrize("damage", ["owner", "entry", *MISSING])
def test_jobs_beside_a_damaged_one_expire(
    driver: Any, store: JobStore, valkey: Any, damage: str
) -> None:
    damaged, other = driver.end(), driver.end()
    with redis.Redis(port=valkey.port) as client:
        _damage(client, damaged.id, damage)
    driver.reach_expiry()
    store.expire_due(0)

    assert store.get(other.id).images_deleted
    time.sleep(0.01)
    store.expire_due(0)
    assert store.list_page(limit=10)[0] == []
    assert store.count_expiring() == 0
