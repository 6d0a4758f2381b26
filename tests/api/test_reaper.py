"""The reaper, tick by tick, on a real Valkey and a real broker."""

from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery

from api.reaper import Reaper
from core.blobs import Blobs
from core.jobs import Job, JobInput, Status, new_job_id
from core.queue import QUEUE, make_celery, ring, waiting_bells
from core.spec import StyleSpec
from core.store import PREFIX, JobStore


@pytest.fixture
def celery(valkey: Any) -> Any:
    app = make_celery(valkey.url)
    yield app
    app.close()


@pytest.fixture
def reaper(store: JobStore, blobs: Blobs, celery: Celery, monkeypatch: pytest.MonkeyPatch) -> Reaper:
    monkeypatch.setattr(store, "settled", lambda: True)
    return Reaper(store, blobs, celery)


def _create(store: JobStore, blobs: Blobs) -> Job:
    return store.create(
        new_job_id(), JobInput(content=blobs.put(b"photo"), styles=[blobs.put(b"painting")], spec=StyleSpec())
    )


def _expire(url: str, key: str) -> None:
    with redis.Redis.from_url(url) as client:
        for member in client.zrange(PREFIX + key, 0, -1):
            client.zadd(PREFIX + key, {member: 1})


def test_a_bell_is_heard_by_a_worker_and_counted_while_it_waits(celery: Celery) -> None:
    assert 0 == waiting_bells(celery)
    assert ring(celery)
    assert ring(celery)
    assert 2 == waiting_bells(celery)


def test_without_a_broker_ringing_says_so_at_once(celery: Celery) -> None:
    deaf = make_celery("redis://127.0.0.1:1/0")

    assert not ring(deaf)
    deaf.close()


def test_a_job_whose_worker_is_gone_is_put_back_and_rung_for(
    reaper: Reaper, store: JobStore, blobs: Blobs, celery: Celery, valkey: Any
) -> None:
    job = _create(store, blobs)
    store.claim("t", "worker")
    reaper.tick()
    assert Status.RUNNING is store.get(job.id).status

    _expire(valkey.url, "leases")
    reaper.tick()

    assert Status.QUEUED is store.get(job.id).status
    assert 1 == waiting_bells(celery)


def test_after_a_restart_of_the_server_no_lease_is_taken_before_its_worker_could_renew_it(
    store: JobStore, blobs: Blobs, celery: Celery, valkey: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "settled", lambda: False)
    job = _create(store, blobs)
    store.claim("t", "worker")
    _expire(valkey.url, "leases")

    Reaper(store, blobs, celery).tick()

    assert Status.RUNNING is store.get(job.id).status


def test_lost_bells_are_rung_again_at_the_second_look(
    reaper: Reaper, store: JobStore, blobs: Blobs, celery: Celery, valkey: Any
) -> None:
    for _ in range(3):
        _create(store, blobs)
        ring(celery)
    reaper.tick(), reaper.tick()
    assert 3 == waiting_bells(celery)

    with redis.Redis.from_url(valkey.url) as client:
        client.delete(QUEUE)
    reaper.tick()
    assert 0 == waiting_bells(celery)
    reaper.tick()
    assert 3 == waiting_bells(celery)


def test_pictures_that_nobody_uses_are_deleted_and_others_are_not(
    reaper: Reaper, store: JobStore, blobs: Blobs, tmp_path: Path, valkey: Any
) -> None:
    one, two = _create(store, blobs), _create(store, blobs)
    upload = blobs.put(b"upload")
    store.hold(upload, 60)
    store.delete(one.id)
    reaper.tick()
    assert all(blobs.has(digest) for digest in (two.input.content, *two.input.styles, upload))

    store.delete(two.id)
    _expire(valkey.url, "orphans")
    reaper.tick()

    assert not any(blobs.has(digest) for digest in (two.input.content, *two.input.styles, upload))
    assert [] == [path for path in (tmp_path / "blobs").rglob("*") if path.is_file()]
    assert store.hold(upload, 60)


def test_only_one_process_reaps(reaper: Reaper, store: JobStore, blobs: Blobs, celery: Celery, valkey: Any) -> None:
    reaper.tick()
    job = _create(store, blobs)
    store.claim("t", "worker")
    _expire(valkey.url, "leases")

    Reaper(store, blobs, celery).tick()

    assert Status.RUNNING is store.get(job.id).status
