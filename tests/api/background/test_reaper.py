"""The reaper, tick by tick, on a real Valkey and a real broker."""

import socket
import time
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from api.background.reaper import Reaper
from core import errors
from core.celery_app import QUEUE, make_celery, notify_workers, pending_notifications
from core.jobs.models import Frame, Job, JobInput, Status, SubmissionContext, new_job_id
from core.jobs.store import JobStore
from core.redis_client import PREFIX
from core.storage.blobs import Blobs
from core.storage.checkpoints import Checkpoints
from core.style.spec import StyleSpec


class Clock:
    """The wall clock, as the reaper sees it."""

    def __init__(self) -> None:
        self.now = 1_000_000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr("api.background.reaper.time.time", lambda: made.now)
    return made


@pytest.fixture
def celery(valkey: Any) -> Any:
    app = make_celery(valkey.url)
    yield app
    app.close()


@pytest.fixture
def reaper(store: JobStore, blobs: Blobs, celery: Celery, clock: Clock) -> Reaper:
    """One that has long been in contact."""
    old = Reaper(store, blobs, Checkpoints(blobs._folder / "checkpoints"), celery)
    for _ in range(6):
        old.tick()
        clock.now += 1
    return old


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


def test_a_bell_is_heard_by_a_worker_and_counted_while_it_waits(celery: Celery) -> None:
    assert pending_notifications(celery) == 0
    assert notify_workers(celery)
    assert notify_workers(celery)
    assert pending_notifications(celery) == 2


def test_without_a_broker_ringing_says_so_at_once(celery: Celery) -> None:
    deaf = make_celery("redis://127.0.0.1:1/0")

    assert not notify_workers(deaf)
    deaf.close()


def test_a_broker_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        deaf, began = (
            make_celery(f"redis://127.0.0.1:{silent.getsockname()[1]}/0", timeout_seconds=0.5),
            time.monotonic(),
        )
        assert not notify_workers(deaf)
        assert time.monotonic() - began < 10
        deaf.close()


def test_a_job_whose_worker_is_gone_is_put_back_and_rung_for(
    reaper: Reaper, store: JobStore, blobs: Blobs, celery: Celery, valkey: Any
) -> None:
    job = _create(store, blobs)
    store.claim("t", "worker")
    reaper.tick()
    assert store.get(job.id).status is Status.RUNNING

    _expire(valkey.url, "leases")
    reaper.tick()

    assert store.get(job.id).status is Status.QUEUED
    assert pending_notifications(celery) == 1


@pytest.mark.parametrize("gap", ["the reaper is new", "the store did not answer", "the host slept"])
def test_after_a_gap_no_lease_is_taken_before_its_worker_could_renew_it(
    reaper: Reaper,
    store: JobStore,
    blobs: Blobs,
    celery: Celery,
    valkey: Any,
    clock: Clock,
    gap: str,
) -> None:
    """To a reaper all leases look as if they had run out; the workers are alive and about to renew."""
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


def test_lost_bells_are_rung_again_at_the_second_look(
    reaper: Reaper, store: JobStore, blobs: Blobs, celery: Celery, valkey: Any
) -> None:
    for _ in range(3):
        _create(store, blobs)
        notify_workers(celery)
    reaper.tick(), reaper.tick()
    assert pending_notifications(celery) == 3

    with redis.Redis.from_url(valkey.url) as client:
        client.delete(QUEUE)
    reaper.tick()
    assert pending_notifications(celery) == 0
    reaper.tick()
    assert pending_notifications(celery) == 3


def test_pictures_that_nobody_uses_are_deleted_and_others_are_not(
    reaper: Reaper, store: JobStore, blobs: Blobs, tmp_path: Path, valkey: Any
) -> None:
    one, two = _create(store, blobs), _create(store, blobs)
    upload = blobs.put(b"upload")
    store.reserve(upload, 60)
    store.delete(one.id)
    reaper.tick()
    assert all(blobs.has(digest) for digest in (two.input.content, *two.input.styles, upload))

    store.delete(two.id)
    _expire(valkey.url, "orphans")
    reaper.tick()

    assert not any(blobs.has(digest) for digest in (two.input.content, *two.input.styles, upload))
    assert [
        path.name
        for path in (tmp_path / "blobs").rglob("*")
        if path.is_file() and path.suffix != ".lock"
    ] == []
    store.reserve(upload, 60)


def test_a_leader_that_was_frozen_while_deleting_keeps_others_from_it(
    reaper: Reaper, store: JobStore, blobs: Blobs
) -> None:
    upload = blobs.put(b"upload")
    store.reserve(upload, 0)
    with blobs.try_deletion_lock() as alone:
        assert alone
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
    other._contact_since, other._last_contact = reaper._contact_since, reaper._last_contact
    other.tick()

    assert store.get(job.id).status is Status.RUNNING


def test_a_little_over_the_quota_few_jobs_go_however_many_frames_each_has(
    store: JobStore, blobs: Blobs, celery: Celery, clock: Clock
) -> None:
    for number in range(8):
        photo, painting = blobs.put(b"photo"), blobs.put(b"painting")
        for digest in (photo, painting):
            store.reserve(digest, 60)
        job_input = JobInput(content=photo, styles=[painting], spec={})
        job = store.create(new_job_id(), job_input, context=SubmissionContext(keep_seconds=1000))
        store.claim(str(number), "worker")
        for iteration in range(30):
            digest = blobs.put(bytes([number, iteration]) * 500)
            store.reserve(digest, 60)
            frame = Frame(index=0, iteration=iteration, scale=1, seconds=0, digest=digest)
            store.add_frame(job.id, str(number), frame)
        store.fail(job.id, str(number), errors.Diverged())
    full = Reaper(
        store, blobs, Checkpoints(blobs._folder / "c"), celery, disk_bytes=0.9 * sum(blobs.sizes())
    )
    full._make_room()

    assert store.expire_due(1000) == 1


def test_pictures_without_a_record_are_kept_for_a_while_and_then_go(
    reaper: Reaper, store: JobStore, blobs: Blobs, valkey: Any
) -> None:
    used, stray, held = _create(store, blobs).input.content, blobs.put(b"stray"), blobs.put(b"held")
    store.reserve(held, 60)
    reaper._next_look = 0.0
    reaper.tick()
    reaper.tick()
    assert blobs.has(stray)  # it may be the store that is the wrong one
    with redis.Redis.from_url(valkey.url, decode_responses=True) as client:
        assert {
            digest
            for digest, until in client.zrange(PREFIX + "orphans", 0, -1, withscores=True)
            if until > (client.time()[0] + 6 * 86_400) * 1000
        } == {stray}
        client.zadd(PREFIX + "orphans", {stray: 1})
    reaper.tick()

    assert [blobs.has(digest) for digest in (used, stray, held)] == [True, False, True]


@pytest.mark.parametrize(("checkpoint_bytes", "goes"), [(100, False), (2_000, True)])
def test_checkpoints_count_for_the_disks_quota(
    store: JobStore,
    blobs: Blobs,
    celery: Celery,
    clock: Clock,
    tmp_path: Path,
    checkpoint_bytes: int,
    goes: bool,
) -> None:
    """The oldest result makes room, also where results are kept for good."""
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    reaper = Reaper(store, blobs, checkpoints, celery, disk_bytes=1_000)
    ended, painted = _create(store, blobs), _create(store, blobs)
    store.cancel(ended.id)
    checkpoints.path(Checkpoints.name(painted.id, "t" * 32, 0)).write_bytes(b"x" * checkpoint_bytes)
    for _ in range(8):
        reaper.tick()
        clock.now += 1

    assert store.get(ended.id).images_deleted is goes
    assert not store.get(painted.id).images_deleted


def test_an_empty_folder_over_its_quota_harms_nothing(
    store: JobStore, blobs: Blobs, celery: Celery, clock: Clock, tmp_path: Path
) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.path(Checkpoints.name(new_job_id(), "t" * 32, 0)).write_bytes(b"x" * 10)
    reaper = Reaper(store, blobs, checkpoints, celery, disk_bytes=1)
    for _ in range(8):
        reaper.tick()
        clock.now += 1

    assert sum(checkpoints.sizes()) == 10


def test_what_cannot_be_deleted_keeps_nothing_else_from_going(
    reaper: Reaper,
    store: JobStore,
    blobs: Blobs,
    valkey: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    stuck, upload = blobs.put(b"stuck"), blobs.put(b"upload")
    blobs.path(stuck).unlink()
    (tmp_path / "blobs" / stuck[7:9] / stuck[9:]).mkdir()  # is no file, so nobody can unlink it
    for digest in (stuck, upload):
        store.reserve(digest, 0)
    with redis.Redis.from_url(valkey.url) as client:
        client.sadd(PREFIX + "deleting", "sha256:damaged")
    reaper.tick()

    assert not blobs.has(upload)
    with redis.Redis.from_url(valkey.url, decode_responses=True) as client:
        assert client.smembers(PREFIX + "deleting") == {stuck}
    assert "cannot be deleted" in caplog.text


def test_a_step_that_fails_keeps_no_other_from_its_turn(
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

    for step in ("reap_expired_leases", "get_load", "expire_due"):
        monkeypatch.setattr(store, step, fail)
    reaper.tick()

    assert not blobs.has(upload)
    assert caplog.text.count("no number\n") == 3


def test_bells_that_nobody_needs_are_taken_away(
    reaper: Reaper, store: JobStore, blobs: Blobs, celery: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.background.reaper.BELLS_AT_ONCE", 3)
    _create(store, blobs)
    for _ in range(9):
        notify_workers(celery)
    reaper._next_sweep = 0
    reaper.tick()

    assert pending_notifications(celery) == 4
