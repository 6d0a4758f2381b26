"""Backups in a folder: only complete ones count, each picture is copied once, nothing is lost."""

import threading
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from s3_server import S3Server

from api.background import garbage
from core import errors
from core.backup import store_dump
from core.backup.archive import Archive
from core.config import Settings
from core.jobs.deletion_lock import lock_deletions
from core.jobs.models import JobInput, Status, new_job_id
from core.jobs.store import JobStore
from core.redis_client import PREFIX
from core.storage.blobs import digest_of
from core.storage.location import Storage, open_storage
from core.style.spec import StyleSpec

Place = Callable[[Any], tuple[JobStore, Storage]]


@pytest.fixture(params=["folder", "bucket"])
def place(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Place]:
    """Open a store, and a storage of its own."""
    numbers, stores = count(), list[JobStore]()

    def open_place(valkey: Any) -> tuple[JobStore, Storage]:
        url = ""
        if request.param == "bucket":
            s3: S3Server = request.getfixturevalue("s3")
            url = s3.create_bucket()
        folder = tmp_path / f"host-{next(numbers)}"
        storage = open_storage(Settings(blobs_url=url, data_dir=folder))
        stores.append(JobStore(valkey.url, identity_file=storage.identity))
        return stores[-1], storage

    yield open_place
    for store in stores:
        store.close()


def _submit(store: JobStore, storage: Storage, number: int) -> str:
    digests = [storage.blobs.put(f"{kind} {number}".encode()) for kind in ("photo", "painting")]
    for digest in digests:
        store.reserve(digest)
    spec = StyleSpec().model_dump()
    job_input = JobInput(content=digests[0], styles=digests[1:], spec=spec)
    return store.create(new_job_id(), job_input).id


@pytest.fixture
def source(place: Place, valkey: Any) -> tuple[JobStore, Storage]:
    """A service with five queued jobs, of which one runs."""
    store, storage = place(valkey)
    store.monitor.check()
    for number in range(5):
        _submit(store, storage, number)
    assert store.claim("t", "worker") is not None
    return store, storage


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    return Archive(tmp_path / "backup")


@pytest.fixture
def backup(archive: Archive, source: tuple[JobStore, Storage], valkey: Any) -> Callable[..., Any]:
    store, storage = source
    return lambda keep=7: archive.backup(store, valkey.url, storage.blobs, keep)


def test_another_host_goes_on_with_the_jobs_and_pictures(
    backup: Any, archive: Archive, place: Place, own_valkey: Any, source: Any
) -> None:
    made = backup()
    assert (made.blobs, made.known_blobs, made.missing) == (10, 0, [])
    _submit(*source, 5)
    store, storage = place(own_valkey)
    store.monitor.check()  # the service runs already
    restored = archive.restore(store, own_valkey.url, storage, made.name, force=False)

    assert (restored.keys, restored.blobs, restored.missing) == (made.keys, 10, [])
    jobs, _ = store.list_page(limit=50)
    assert [job.status for job in jobs] == [Status.QUEUED] * 4 + [Status.RUNNING]
    for job in jobs:
        assert storage.blobs.get(job.input.content).startswith(b"photo ")
    claimed = [store.claim(f"t{number}", "worker") for number in range(5)]
    assert [job and job.id for job in claimed] == [*(job.id for job in jobs[3::-1]), None]
    storage.identity.refresh()
    assert store.monitor.check().identity == "same"


def test_the_old_service_deletes_no_picture_of_a_storage_that_was_restored(
    backup: Any, archive: Archive, own_valkey: Any, source: Any
) -> None:
    """The old store is not there any more, or it is, and its service runs."""
    old, storage = source
    made = backup()
    new = JobStore(own_valkey.url, identity_file=storage.identity)
    archive.restore(new, own_valkey.url, storage, made.name, force=False)
    old.monitor.refresh_identity()

    assert old.monitor.check().identity == "changed"
    assert old.mark_deleting() == []
    assert new.monitor.check().identity == "same"
    new.close()


def test_each_picture_is_copied_once_and_old_backups_go_with_their_pictures(
    backup: Any, archive: Archive, source: Any, valkey: Any, tmp_path: Path
) -> None:
    store, storage = source
    first = backup()
    jobs, _ = store.list_page(limit=50)
    store.delete(jobs[0].id)
    with store_dump.connect(valkey.url) as client:  # the reservations have ended
        for digest in (jobs[0].input.content, *jobs[0].input.styles):
            client.zadd(f"{PREFIX}orphans", {digest: 0})
    garbage.delete_unused_blobs(store, storage.blobs)
    _submit(store, storage, 6)
    second = backup()
    assert (second.blobs, second.known_blobs) == (2, 8)
    assert archive.names() == [first.name, second.name]
    copies = tmp_path / "backup" / "blobs"
    assert len([*copies.glob("??/*")]) == 12

    third = backup(keep=2)
    assert archive.names() == [second.name, third.name]
    assert len([*copies.glob("??/*")]) == 10
    assert {path.suffix for path in (tmp_path / "backup").iterdir()} == {"", ".store", ".digests"}


def test_lost_and_damaged_pictures_are_named_and_the_rest_is_kept(
    backup: Any, archive: Archive, place: Place, own_valkey: Any, source: Any, tmp_path: Path
) -> None:
    _, storage = source
    lost, damaged = digest_of(b"photo 0"), digest_of(b"painting 1")
    storage.blobs.delete(lost)
    made = backup()
    assert (made.blobs, made.missing) == (9, [lost])

    copy = tmp_path / "backup" / "blobs" / damaged[7:9] / damaged[9:]
    copy.write_bytes(b"?")
    other, other_storage = place(own_valkey)
    restored = archive.restore(other, own_valkey.url, other_storage, made.name, force=False)
    assert (restored.blobs, restored.missing) == (8, [damaged])
    assert len(other.list_page(limit=50)[0]) == 5


def test_no_picture_is_deleted_during_a_backup(
    backup: Any, source: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, storage = source
    dump = store_dump.dump_store

    def dump_and_delete(*args: Any) -> Any:
        state = dump(*args)
        for job in store.list_page(limit=50)[0]:
            store.delete(job.id)
        with lock_deletions(store, storage.blobs) as is_locked:
            assert not is_locked
        return state

    monkeypatch.setattr(store_dump, "dump_store", dump_and_delete)
    assert backup().missing == []


def test_a_store_with_jobs_or_pictures_of_another_store_are_not_replaced_unless_forced(
    backup: Any, archive: Archive, place: Place, own_valkey: Any, source: Any
) -> None:
    made = backup()
    store, storage = place(own_valkey)
    store.monitor.check()
    job_id = _submit(store, storage, 7)
    with pytest.raises(errors.Conflict, match="not empty"):
        archive.restore(store, own_valkey.url, storage, made.name, force=False)
    assert [job.id for job in store.list_page(limit=50)[0]] == [job_id]

    with store_dump.connect(own_valkey.url) as client:
        client.flushall()
    with pytest.raises(errors.Conflict, match="another store"):
        archive.restore(store, own_valkey.url, storage, made.name, force=False)

    archive.restore(store, own_valkey.url, storage, made.name, force=True)
    assert len(store.list_page(limit=50)[0]) == 5


@pytest.mark.parametrize("place", ["folder"], indirect=True)
@pytest.mark.parametrize("survivors", [0, 1], ids=["before-the-first", "before-the-last"])
def test_half_a_restore_accepts_and_runs_nothing_until_it_is_repeated(
    survivors: int,
    backup: Any,
    archive: Archive,
    place: Place,
    own_valkey: Any,
    source: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = backup()
    store, storage = place(own_valkey)
    execute, calls = store_dump._execute, count()

    def fail(pipe: Any) -> None:
        if next(calls) == survivors:
            raise ConnectionResetError
        execute(pipe)

    monkeypatch.setattr(store_dump, "_execute", fail)
    with pytest.raises(ConnectionResetError):
        archive.restore(store, own_valkey.url, storage, made.name, force=False)
    store.monitor.invalidate()
    assert store.claim("x", "worker") is None
    assert store.mark_deleting() == []
    with pytest.raises(errors.StoreUnsafe, match="impasto restore"):
        _submit(store, storage, 9)
    with pytest.raises(errors.Conflict, match="impasto restore"):
        archive.backup(store, own_valkey.url, storage.blobs, 7)

    monkeypatch.undo()
    archive.restore(store, own_valkey.url, storage, made.name, force=False)
    store.monitor.invalidate()
    assert len(store.list_page(limit=50)[0]) == 5
    _submit(store, storage, 9)


@pytest.mark.parametrize("place", ["folder"], indirect=True)
def test_two_commands_do_not_use_one_folder(
    backup: Any, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused: list[errors.Conflict] = []
    dump = store_dump.dump_store

    def backup_again(*args: Any) -> Any:
        def run() -> None:
            try:
                backup()
            except errors.Conflict as error:
                refused.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        return dump(*args)

    monkeypatch.setattr(store_dump, "dump_store", backup_again)
    backup()
    assert len(refused) == 1
    assert len(archive.names()) == 1
