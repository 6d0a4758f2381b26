"""The reaper's duties on a bucket, which other machines may clean as well."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis
from celery import Celery
from s3_server import Fault, S3Server, answer

from api.background import garbage
from api.background.orphans import register_orphans
from api.background.quota import enforce_quota
from api.background.reaper import Reaper
from core.celery_app import make_celery
from core.config import Settings
from core.jobs.store import JobStore
from core.redis_client import PREFIX
from core.storage import s3 as storage_s3
from core.storage.location import Storage, open_storage


@pytest.fixture
def storage(s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setattr(storage_s3, "MAX_RETRIES", 1)
    return open_storage(Settings(blobs_url=s3.create_bucket(), data_dir=tmp_path))


@pytest.fixture
def store(valkey: Any, storage: Storage) -> Iterator[JobStore]:
    store = JobStore(valkey.url, identity_file=storage.identity)
    store.monitor.check()
    yield store
    store.close()


@pytest.fixture
def orphan(store: JobStore, storage: Storage) -> str:
    """A blob that nothing protects any more."""
    digest = storage.blobs.put(b"paint")
    store.reserve(digest, keep_seconds=0)
    return digest


@pytest.fixture
def reaper(valkey: Any, store: JobStore, storage: Storage) -> Reaper:
    """A reaper that need not wait for contact with the workers."""
    celery: Celery = make_celery(valkey.url)
    made = Reaper(store, storage.blobs, storage.checkpoints, celery)
    for part in made._parts.values():
        part.contact.record_answer = lambda: True  # type: ignore[method-assign]
    return made


def test_unused_blobs_are_deleted_with_one_request(
    reaper: Reaper, store: JobStore, storage: Storage, s3: S3Server
) -> None:
    used = storage.blobs.put(b"used")
    store.reserve(used)
    unused = [storage.blobs.put(bytes([number])) for number in range(5)]
    for digest in unused:
        store.reserve(digest, keep_seconds=0)
    s3.requests.clear()
    reaper.tick()

    assert list(storage.blobs.digests()) == [used]
    assert len([request for request in s3.requests if request.startswith("POST")]) == 1
    store.reserve(unused[0]), "its deletion is confirmed"


def test_a_bucket_that_fails_keeps_the_blobs_and_stops_no_other_duty(
    reaper: Reaper, orphan: str, store: JobStore, storage: Storage, s3: S3Server
) -> None:
    s3.faults.append(Fault("POST", "", answer("500 Internal Server Error", "InternalError")))
    reaper.tick()
    assert s3.faults[0].seen
    s3.faults.clear()
    assert storage.blobs.has(orphan)

    reaper.tick()
    assert not storage.blobs.has(orphan)


def test_only_one_machine_deletes(
    reaper: Reaper, orphan: str, store: JobStore, storage: Storage
) -> None:
    """A leader that was frozen in a deletion may thaw after another machine leads."""
    with store.try_deletion_lock() as is_locked:
        assert is_locked
        reaper.tick()
        assert storage.blobs.has(orphan)
    reaper.tick()
    assert not storage.blobs.has(orphan)


def test_a_machine_that_slept_during_a_deletion_deletes_nothing_more(
    orphan: str, store: JobStore, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([0.0, garbage.MAX_SECONDS + 1])
    monkeypatch.setattr(garbage, "time", SimpleNamespace(time=lambda: next(times)))
    garbage.delete_unused_blobs(store, storage.blobs)

    assert storage.blobs.has(orphan)


def test_a_service_deletes_nothing_from_a_bucket_that_another_one_has_taken_over(
    reaper: Reaper, orphan: str, store: JobStore, storage: Storage, s3: S3Server
) -> None:
    """Both have the same records, because the other one began with a copy of the store."""
    reaper.tick()
    digest = storage.blobs.put(b"photo")
    store.reserve(digest, keep_seconds=0)
    bucket = str(storage.blobs).removeprefix("s3://").partition("/")[0]
    s3.replace(f"s3://{bucket}", "blobs/store.identity", b"another\n")
    reaper.tick()

    assert storage.blobs.has(digest)
    assert store.monitor.check().identity == "changed"


def test_unknown_blobs_are_registered_and_a_quota_counts_the_bucket(
    store: JobStore, storage: Storage, valkey: Any, caplog: pytest.LogCaptureFixture
) -> None:
    digest = storage.blobs.put(b"x" * 1000)
    register_orphans(store, storage.blobs)
    with redis.Redis.from_url(valkey.url) as client:
        assert client.zscore(f"{PREFIX}orphans", digest) is not None

    enforce_quota(store, storage.blobs, storage.checkpoints, 999)
    assert "exceeded by 0.0 MB" in caplog.text
    caplog.clear()
    enforce_quota(store, storage.blobs, storage.checkpoints, 1001)
    assert not caplog.text
