"""The reaper and its duties, tick by tick, on a real Valkey and a real broker."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from api.background import expiry
from api.background.quota import enforce_quota
from api.background.reaper import Duty, Reaper
from core import errors
from core.blobs_url import IDENTITY_FILE
from core.celery_app import QUEUE, make_celery
from core.jobs.models import Frame, Job, JobInput, Status, SubmissionContext, new_job_id
from core.jobs.store import JobStore
from core.redis_client import PREFIX
from core.storage.blobs import Blobs
from core.storage.checkpoints import Checkpoints
from core.storage.files import SmallFile
from core.style.spec import StyleSpec


class Clock:
    """The wall clock, as the reaper sees it."""

    def __init__(self) -> None:
        self.now = 1_000_000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    wall = Clock()
    monkeypatch.setattr("api.background.reaper.time.time", lambda: wall.now)
    return wall


@pytest.fixture
def celery(valkey: Any) -> Iterator[Celery]:
    app = make_celery(valkey.url)
    yield app
    app.close()


@pytest.fixture
def count_messages(valkey: Any) -> Iterator[Callable[[], int]]:
    """Count the messages that wait in the broker."""
    with redis.Redis.from_url(valkey.url) as client:
        yield lambda: int(client.llen(QUEUE))


@pytest.fixture
def reaper(store: JobStore, blobs: Blobs, celery: Celery, clock: Clock) -> Reaper:
    """One that has been in contact with the store for more than a lease."""
    settled = Reaper(store, blobs, Checkpoints(blobs._folder / "checkpoints"), celery)
    for _ in range(6):
        settled.tick()
        clock.now += 1
    return settled


def _duties(reaper: Reaper) -> list[Duty]:
    return [duty for part in reaper._parts.values() for duty in part.duties]


def _create(store: JobStore, blobs: Blobs) -> Job:
    photo, painting = blobs.put(b"photo"), blobs.put(b"painting")
    for digest in (photo, painting):
        store.reserve(digest, 60)
    job_input = JobInput(content=photo, styles=[painting], spec=StyleSpec().model_dump())
    return store.create(new_job_id(), job_input)


def _expire(url: str, key: str) -> None:
    with redis.Redis.from_url(url) as client:
        for member in client.zrange(PREFIX + key, 0, -1):
            client.zadd(PREFIX + key, {member: 1})


def test_a_job_with_an_expired_lease_is_requeued_and_an_idle_worker_notified(
    reaper: Reaper,
    store: JobStore,
    blobs: Blobs,
    valkey: Any,
    count_messages: Callable[[], int],
) -> None:
    job = _create(store, blobs)
    store.claim("t", "worker")
    reaper.tick()
    assert store.get(job.id).status is Status.RUNNING

    _expire(valkey.url, "leases")
    store.heartbeat("another worker")
    reaper.tick()

    assert store.get(job.id).status is Status.QUEUED
    assert count_messages() == 1


@pytest.mark.parametrize("gap", ["the reaper is new", "the store did not answer", "the host slept"])
def test_after_a_gap_no_job_is_requeued_before_its_worker_could_renew(
    reaper: Reaper,
    store: JobStore,
    blobs: Blobs,
    celery: Celery,
    valkey: Any,
    clock: Clock,
    gap: str,
) -> None:
    """All leases seem to have expired, but the workers are alive and about to renew."""
    job = _create(store, blobs)
    store.claim("t", "worker")
    if gap == "the reaper is new":
        with redis.Redis.from_url(valkey.url) as client:
            client.delete(PREFIX + "leader")
        reaper = Reaper(store, blobs, Checkpoints(blobs._folder / "checkpoints"), celery)
    clock.now += 600
    _expire(valkey.url, "leases")

    for _ in range(5):
        reaper.tick()
        assert store.get(job.id).status is Status.RUNNING
        clock.now += 1
    reaper.tick()
    assert store.get(job.id).status is Status.QUEUED


@pytest.mark.parametrize(("jobs", "workers", "sent"), [(3, 2, 2), (1, 2, 2), (0, 2, 0), (3, 0, 0)])
def test_each_idle_worker_is_notified_while_jobs_are_queued(
    reaper: Reaper,
    store: JobStore,
    blobs: Blobs,
    count_messages: Callable[[], int],
    jobs: int,
    workers: int,
    sent: int,
) -> None:
    for number in range(workers):
        store.heartbeat(f"worker {number}")
    for _ in range(jobs):
        _create(store, blobs)
    reaper.tick()

    assert count_messages() == sent


def test_a_busy_worker_is_not_notified(
    reaper: Reaper, store: JobStore, blobs: Blobs, count_messages: Callable[[], int]
) -> None:
    for _ in range(2):
        _create(store, blobs)
    store.heartbeat("worker")
    store.claim("t", "worker")
    reaper.tick()

    assert count_messages() == 0


def test_unused_blobs_are_deleted_and_others_are_not(
    reaper: Reaper, store: JobStore, blobs: Blobs, tmp_path: Path, valkey: Any
) -> None:
    first, second = _create(store, blobs), _create(store, blobs)
    upload = blobs.put(b"upload")
    store.reserve(upload, 60)
    store.delete(first.id)
    reaper.tick()
    assert all(blobs.has(digest) for digest in (second.input.content, *second.input.styles, upload))

    store.delete(second.id)
    _expire(valkey.url, "orphans")
    reaper.tick()

    assert not any(
        blobs.has(digest) for digest in (second.input.content, *second.input.styles, upload)
    )
    assert [
        path.name
        for path in (tmp_path / "blobs").rglob("*")
        if path.is_file() and path.suffix != ".lock"
    ] == []
    store.reserve(upload, 60)


def test_a_leader_that_was_frozen_while_deleting_blocks_other_deletions(
    reaper: Reaper, store: JobStore, blobs: Blobs
) -> None:
    upload = blobs.put(b"upload")
    store.reserve(upload, 0)
    with blobs.try_deletion_lock() as is_locked:
        assert is_locked
        reaper.tick()
        assert blobs.has(upload)
    reaper.tick()

    assert not blobs.has(upload)


def test_only_one_process_reaps(
    reaper: Reaper, store: JobStore, blobs: Blobs, celery: Celery, valkey: Any
) -> None:
    job = _create(store, blobs)
    store.claim("t", "worker")
    _expire(valkey.url, "leases")

    other = Reaper(store, blobs, Checkpoints(blobs._folder / "checkpoints"), celery)
    for name, part in other._parts.items():
        part.contact = reaper._parts[name].contact
    other.tick()

    assert store.get(job.id).status is Status.RUNNING


def test_slightly_over_the_quota_few_jobs_expire_however_many_frames_they_have(
    store: JobStore, blobs: Blobs
) -> None:
    for number in range(8):
        photo, painting = blobs.put(b"photo"), blobs.put(b"painting")
        for digest in (photo, painting):
            store.reserve(digest, 60)
        job_input = JobInput(content=photo, styles=[painting], spec={})
        job = store.create(
            new_job_id(), job_input, context=SubmissionContext(result_retention_seconds=1000)
        )
        store.claim(str(number), "worker")
        for iteration in range(30):
            digest = blobs.put(bytes([number, iteration]) * 500)
            store.reserve(digest, 60)
            frame = Frame(index=0, iteration=iteration, scale=1, seconds=0, digest=digest)
            store.add_frame(job.id, str(number), frame)
        store.fail(job.id, str(number), errors.Diverged())
    enforce_quota(store, blobs, Checkpoints(blobs._folder / "c"), 0.9 * sum(blobs.sizes()))

    assert store.expire_due(1000) == 1


def test_one_tick_expires_all_jobs_that_have_become_due_since_the_last(
    store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At ten million jobs a day, 116 a second become due."""
    due = [100, 100, 30, 0]
    monkeypatch.setattr(store, "expire_due", lambda *_: due.pop(0))
    expiry.expire_jobs(store, 1000)

    assert due == [0]


def test_blobs_without_a_record_are_kept_for_a_while_and_then_deleted(
    reaper: Reaper, store: JobStore, blobs: Blobs, valkey: Any
) -> None:
    used = _create(store, blobs).input.content
    orphan, reserved = blobs.put(b"orphan"), blobs.put(b"reserved")
    store.reserve(reserved, 60)
    for duty in _duties(reaper):
        duty.next_run = 0.0
    reaper.tick()
    reaper.tick()
    assert blobs.has(orphan)  # the store may be the wrong one
    with redis.Redis.from_url(valkey.url, decode_responses=True) as client:
        assert {
            digest
            for digest, until in client.zrange(PREFIX + "orphans", 0, -1, withscores=True)
            if until > (client.time()[0] + 6 * 86_400) * 1000
        } == {orphan}
        client.zadd(PREFIX + "orphans", {orphan: 1})
    reaper.tick()

    assert [blobs.has(digest) for digest in (used, orphan, reserved)] == [True, False, True]


@pytest.mark.parametrize(("checkpoint_bytes", "expires"), [(100, False), (2_000, True)])
def test_checkpoints_count_for_the_disk_quota(
    store: JobStore,
    blobs: Blobs,
    celery: Celery,
    clock: Clock,
    tmp_path: Path,
    checkpoint_bytes: int,
    expires: bool,
) -> None:
    """The oldest result expires, even if results are kept for ever."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    reaper = Reaper(store, blobs, checkpoints, celery, storage_quota_bytes=1_000)
    ended, queued = _create(store, blobs), _create(store, blobs)
    store.cancel(ended.id)
    checkpoints.path(Checkpoints.name(queued.id, "t" * 32, 0)).write_bytes(b"x" * checkpoint_bytes)
    for _ in range(8):
        reaper.tick()
        clock.now += 1

    assert store.get(ended.id).images_deleted is expires
    assert not store.get(queued.id).images_deleted


def test_a_folder_without_blobs_over_its_quota_does_no_harm(
    store: JobStore, blobs: Blobs, celery: Celery, clock: Clock, tmp_path: Path
) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.path(Checkpoints.name(new_job_id(), "t" * 32, 0)).write_bytes(b"x" * 10)
    reaper = Reaper(store, blobs, checkpoints, celery, storage_quota_bytes=1)
    for _ in range(8):
        reaper.tick()
        clock.now += 1

    assert sum(checkpoints.sizes()) == 10


def test_a_blob_that_cannot_be_deleted_blocks_no_other(
    reaper: Reaper,
    store: JobStore,
    blobs: Blobs,
    valkey: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stuck, upload = blobs.put(b"stuck"), blobs.put(b"upload")
    blobs.path(stuck).unlink()
    (tmp_path / "blobs" / stuck[7:9] / stuck[9:]).mkdir()  # a folder, which cannot be unlinked
    for digest in (stuck, upload):
        store.reserve(digest, 0)
    with redis.Redis.from_url(valkey.url) as client:
        client.sadd(PREFIX + "deleting", "sha256:damaged")
    reaper.tick()

    assert not blobs.has(upload)
    with redis.Redis.from_url(valkey.url, decode_responses=True) as client:
        assert client.smembers(PREFIX + "deleting") == {stuck}
    assert "cannot be deleted" in caplog.text


def test_a_duty_that_fails_prevents_no_other(
    reaper: Reaper,
    store: JobStore,
    blobs: Blobs,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    upload = blobs.put(b"upload")
    store.reserve(upload, 0)

    def fail(*_: Any) -> None:
        raise ValueError("no number")

    for step in ("reap_expired_leases", "count_queued", "expire_due"):
        monkeypatch.setattr(store, step, fail)
    reaper.tick()

    assert not blobs.has(upload)
    assert caplog.text.count("no number\n") == 3


def test_a_store_that_lost_its_data_deletes_no_picture(
    valkey: Any, blobs: Blobs, celery: Celery, clock: Clock
) -> None:
    """Neither the pictures of jobs, nor the checkpoints, nor by way of orphans or the quota."""
    store = JobStore(valkey.url, identity_file=SmallFile(blobs._folder / IDENTITY_FILE))
    checkpoints = Checkpoints(blobs._folder / "checkpoints")
    reaper = Reaper(store, blobs, checkpoints, celery, storage_quota_bytes=1)

    def tick(times: int) -> None:
        for _ in range(times):
            reaper.tick()
            clock.now += 1

    job = _create(store, blobs)
    tick(7)
    with redis.Redis.from_url(valkey.url) as client:
        client.flushall()
    store.reserve(job.input.content, -1)  # what this store calls unused
    for duty in _duties(reaper):
        duty.next_run = 0
    tick(7)

    assert all(blobs.has(digest) for digest in job.input.digests())
    with redis.Redis.from_url(valkey.url) as client:
        assert client.zrange(f"{PREFIX}orphans", 0, -1) == [job.input.content.encode()]
    (blobs._folder / IDENTITY_FILE).unlink()
    tick(7)
    assert [blobs.has(digest) for digest in job.input.digests()] == [False, True]
    store.close()


def test_records_of_an_earlier_version_are_indexed_at_the_first_tick(
    store: JobStore, blobs: Blobs, celery: Celery, clock: Clock, valkey: Any
) -> None:
    job = _create(store, blobs)
    store.cancel(job.id)
    with redis.Redis.from_url(valkey.url) as client:
        client.delete(f"{PREFIX}removable:local")
        Reaper(store, blobs, Checkpoints(blobs._folder / "checkpoints"), celery).tick()

        assert client.zrange(f"{PREFIX}removable:local", 0, -1) == [job.id.encode()]
