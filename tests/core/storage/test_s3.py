"""Blobs, checkpoints and the identity in a bucket, and what happens if the bucket fails."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from s3_server import Fault, S3Server, Stale, answer, cut, delay, flip, flip_upload

from core import errors
from core.config import Settings
from core.jobs.models import new_job_id
from core.storage import s3 as storage_s3
from core.storage.blobs import digest_of
from core.storage.location import Storage, open_storage
from core.storage.s3 import PART_BYTES, S3Blobs

Machine = Callable[..., Storage]
BROKEN = answer("500 Internal Server Error", "InternalError")
DENIED = answer("403 Forbidden", "AccessDenied")
FULL = answer("507 Insufficient Storage", "XMinioStorageFull")


@pytest.fixture
def url(s3: S3Server) -> str:
    return s3.create_bucket()


@pytest.fixture
def machine(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Open the bucket as another machine would, with a folder of its own."""
    monkeypatch.setattr(storage_s3, "MAX_RETRIES", 2)  # takes less time
    folders = (tmp_path / f"machine-{number}" for number in range(99))

    def make(**settings: Any) -> Storage:
        return open_storage(Settings(blobs_url=url, data_dir=next(folders), **settings))

    return make


def _key(digest: str) -> str:
    return f"blobs/{digest[7:9]}/{digest[9:]}"


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


# ---------------------------------------------------------------------- blobs


def test_a_blob_of_one_machine_is_read_on_another(machine: Machine, s3: S3Server, url: str) -> None:
    digest = machine().blobs.put(b"paint", "image/png")
    other = machine().blobs

    assert digest == digest_of(b"paint")
    assert s3.keys(url) == [_key(digest)], "as in the folder"
    assert other.has(digest)
    assert other.size_bytes(digest) == 5
    assert (other.sizes(), list(other.digests())) == ([5], [digest])
    assert other.open_verified(digest) is None, "the event loop must not download it"
    assert other.get(digest) == other.path(digest).read_bytes() == b"paint"
    with other.open(digest) as file:
        assert file.read() == b"paint"
    quick = other.open_verified(digest)
    assert quick is not None
    with quick:
        assert quick.read() == b"paint"


def test_a_deleted_blob_is_not_found_and_deletion_is_safe_to_repeat(machine: Machine) -> None:
    first, second = machine().blobs, machine().blobs
    digests = [first.put(data) for data in (b"paint", b"photo")]
    second.get(digests[0])
    for _ in range(2):
        first.delete(*digests)

    for blobs in (first, second, machine().blobs):
        assert not blobs.has(digests[0])
        with pytest.raises(errors.ImageNotFound):
            blobs.check(digests[0])
    for name in (digests[1], "", "../../etc/passwd", "sha256:" + "g" * 64):
        with pytest.raises(errors.ImageNotFound):
            first.get(name)


@pytest.mark.parametrize("use", ["get", "open", "path", "check"])
def test_a_damaged_object_is_named_and_not_returned(
    use: str, machine: Machine, s3: S3Server, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    digest = machine().blobs.put(b"paint")
    s3.replace(url, _key(digest), b"pain!")
    blobs = machine().blobs

    with pytest.raises(errors.ImageDamaged, match=digest):
        getattr(blobs, use)(digest)
    assert digest in caplog.text
    assert blobs.get(blobs.put(b"paint")) == b"paint", "a new upload repairs it"
    assert machine().blobs.get(digest) == b"paint"


def test_a_picture_that_was_damaged_after_it_was_read_is_not_accepted_again(
    machine: Machine, s3: S3Server, url: str
) -> None:
    blobs = machine().blobs
    digest = blobs.put(b"paint")
    blobs.check(digest)
    s3.replace(url, _key(digest), b"pain!")

    with pytest.raises(errors.ImageDamaged):
        blobs.check(digest)


@pytest.mark.parametrize(
    ("method", "fault"),
    [("GET", BROKEN), ("GET", cut), ("GET", flip), ("PUT", BROKEN), ("HEAD", BROKEN)],
    ids=["get-500", "get-cut", "get-flipped", "put-500", "head-500"],
)
def test_one_failing_answer_is_not_noticed(
    method: str, fault: Any, machine: Machine, s3: S3Server
) -> None:
    first = machine().blobs
    s3.faults.append(Fault(method, "blobs/", fault, times=1))
    digest = first.put(b"paint")
    other = machine().blobs
    assert other.has(digest)
    assert other.get(digest) == b"paint"
    assert len(s3.faults[0].seen) == 1


@pytest.mark.parametrize("fault", [BROKEN, cut, DENIED], ids=["500", "cut", "denied"])
def test_a_bucket_that_cannot_be_read_is_not_reported_as_a_missing_picture(
    fault: Any, machine: Machine, s3: S3Server, tmp_path: Path
) -> None:
    digest = machine().blobs.put(b"paint")
    other = machine().blobs
    s3.faults.append(Fault("GET", "blobs/", fault))

    for use in (other.get, other.open, other.path, other.check):
        with pytest.raises(errors.Unavailable):
            use(digest)
    assert not _files(tmp_path / "machine-1")
    s3.faults.clear()
    assert other.get(digest) == b"paint"


def test_a_missing_bucket_is_not_reported_as_missing_pictures(
    machine: Machine, s3: S3Server, tmp_path: Path
) -> None:
    digest = digest_of(b"paint")
    missing = f"s3://no-such-bucket?endpoint={s3.endpoint}"
    blobs = open_storage(Settings(blobs_url=missing, data_dir=tmp_path)).blobs

    for use in (blobs.get, blobs.has, blobs.size_bytes, blobs.check):
        with pytest.raises(errors.Unavailable):
            use(digest)
    with pytest.raises(errors.Unavailable):
        blobs.put(b"paint")
    with pytest.raises(errors.Unavailable):
        list(blobs.digests())
    assert not blobs.is_writable()


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (BROKEN, errors.Unavailable),
        (DENIED, errors.Unavailable),
        (FULL, errors.StorageFull),
        (flip_upload, errors.Unavailable),
    ],
    ids=["500", "denied", "full", "flipped"],
)
def test_a_failed_upload_leaves_neither_an_object_nor_a_file(
    fault: Any,
    error: type[errors.Unavailable],
    machine: Machine,
    s3: S3Server,
    url: str,
    tmp_path: Path,
) -> None:
    """`flipped`: the upload carries its SHA-256, so the bucket refuses wrong bytes."""
    blobs = machine().blobs
    s3.faults.append(Fault("PUT", "", fault))

    with pytest.raises(errors.Unavailable) as failed:
        blobs.put(b"paint")
    assert type(failed.value) is error
    assert not blobs.is_writable()
    s3.faults.clear()
    assert s3.keys(url) == []
    assert not _files(tmp_path)
    assert blobs.is_writable()


def test_a_large_file_is_sent_in_parts_and_a_cut_download_goes_on(
    machine: Machine, s3: S3Server
) -> None:
    data = os.urandom(PART_BYTES + 1_000_000)
    s3.requests.clear()
    digest = machine().blobs.put(data)
    assert sum(request.startswith("PUT") for request in s3.requests) == 2

    s3.faults.append(Fault("GET", "blobs/", cut, times=2))
    assert machine().blobs.get(digest) == data
    assert len(s3.faults[0].seen) == 2


def test_a_bucket_that_answers_too_late_is_asked_again_and_then_unavailable(
    machine: Machine, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_s3, "READ_TIMEOUT_SECONDS", 0.2)
    digest = machine().blobs.put(b"paint")
    s3.faults.append(Fault("GET", "blobs/", delay(0.5), times=1))
    assert machine().blobs.get(digest) == b"paint"
    s3.faults[0].times = 99
    with pytest.raises(errors.Unavailable):
        machine().blobs.get(digest)


def test_callers_do_not_wait_for_a_bucket_that_is_known_to_be_silent(
    machine: Machine, s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_s3, "SLOW_SECONDS", 0.1)
    monkeypatch.setattr(storage_s3, "COOLDOWN_SECONDS", 60.0)
    blobs = machine().blobs
    s3.faults.append(Fault("HEAD", "", BROKEN))
    for _ in range(2):
        with pytest.raises(errors.Unavailable):
            blobs.has(digest_of(b"paint"))
    assert len(s3.faults[0].seen) == 1 + storage_s3.MAX_RETRIES


def test_the_cache_keeps_its_size_and_what_was_used_last(machine: Machine, tmp_path: Path) -> None:
    digests = [machine().blobs.put(bytes([number]) * 4000) for number in range(4)]
    blobs = machine(blobs_cache_gb=9e-6).blobs
    cache = tmp_path / "machine-4" / "blobs-cache"
    for age, digest in enumerate(digests[:3]):
        path = blobs.path(digest)
        os.utime(path, (time.time() - 500 - age,) * 2)
    blobs.path(digests[2])
    blobs.path(digests[3])

    assert {path.name for path in _files(cache)} == {digests[number][9:] for number in (2, 3)}
    assert blobs.get(digests[0]) == bytes(4000)


def test_a_stale_list_does_not_count_what_was_deleted(machine: Machine, s3: S3Server) -> None:
    """Otherwise the quota would delete more results, and more again."""
    blobs = machine().blobs
    kept, deleted = blobs.put(b"kept"), blobs.put(b"deleted")
    s3.faults.append(Fault("GET", "list-type", Stale()))
    assert len(blobs.sizes()) == 2
    blobs.delete(deleted)

    assert list(blobs.digests()) == [kept]
    assert blobs.sizes() == [4]
    blobs.put(b"deleted")
    assert set(blobs.digests()) == {kept, deleted}


# ---------------------------------------------------------------------- checkpoints, identity


def test_a_checkpoint_of_one_machine_is_read_on_another(
    machine: Machine, s3: S3Server, url: str, tmp_path: Path
) -> None:
    checkpoints, other = machine().checkpoints, machine().checkpoints
    name = checkpoints.name(new_job_id(), "t" * 32, 0)
    checkpoints.path(name).write_bytes(b"tensors")
    checkpoints.publish(name)

    assert s3.keys(url) == [f"checkpoints/{name}"]
    assert other.sizes() == [7]
    with other.fetch(name) as file:
        assert file.read_bytes() == b"tensors"
    other.delete(name)
    other.delete(name)
    with checkpoints.fetch(name) as file:
        assert file.read_bytes() == b""
    assert not _files(tmp_path), "no copies stay"


def test_a_failed_upload_or_download_of_a_checkpoint_leaves_no_file(
    machine: Machine, s3: S3Server, tmp_path: Path
) -> None:
    checkpoints = machine().checkpoints
    name = checkpoints.name(new_job_id(), "t" * 32, 0)
    checkpoints.path(name).write_bytes(b"tensors")
    s3.faults.append(Fault("", "checkpoints/", BROKEN))

    with pytest.raises(errors.Unavailable):
        checkpoints.publish(name)
    with pytest.raises(errors.Unavailable), checkpoints.fetch(name):
        pass
    checkpoints.delete(name)
    assert not _files(tmp_path)


@pytest.mark.parametrize("age_seconds", [0, -1], ids=["recent", "old"])
def test_old_checkpoints_that_no_job_would_resume_from_are_deleted(
    age_seconds: int, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    if age_seconds:
        monkeypatch.setattr(storage_s3, "MIN_AGE_SECONDS", -3600.0)
    checkpoints, job_id = machine().checkpoints, new_job_id()
    current, outdated = (checkpoints.name(job_id, "t" * 32, count) for count in (0, 1))
    for name in (current, outdated):
        checkpoints.path(name).write_bytes(b"x")
        checkpoints.publish(name)
    deleted = checkpoints.sweep(lambda found: current if found == job_id else None)

    assert deleted == (1 if age_seconds else 0)
    assert len(checkpoints.sizes()) == 2 - deleted


def test_the_identity_is_read_once_until_it_is_refreshed(machine: Machine, s3: S3Server) -> None:
    first, second = machine().identity, machine().identity
    with pytest.raises(FileNotFoundError):
        first.read()
    first.write("one\n")
    assert (first.read(), second.read()) == ("one\n", "one\n")
    second.write("two\n")
    assert first.read() == "one\n"
    first.refresh()
    assert first.read() == "two\n"

    s3.faults.append(Fault("GET", "store.identity", BROKEN))
    with pytest.raises(OSError, match="cannot be read"):
        first.refresh()
    assert first.read() == "two\n"
    with pytest.raises(OSError, match="cannot be read"):
        machine().identity.read()


def test_a_folder_is_opened_without_the_library_of_s3(tmp_path: Path) -> None:
    blobs, checkpoints, identity = open_storage(Settings(data_dir=tmp_path))

    assert not isinstance(blobs, S3Blobs)
    assert blobs.path(blobs.put(b"paint")).parts[:-2] == (tmp_path / "blobs").parts
    assert checkpoints.path("job_x").parent == tmp_path / "checkpoints"
    identity.write("one\n")
    assert (tmp_path / "blobs" / "store.identity").read_text() == identity.read() == "one\n"
