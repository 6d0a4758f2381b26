"""Store bytes under their digest."""

import errno
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cachetools import TTLCache

from core import errors
from core.storage.blobs import VERIFIED_SECONDS, Blobs, PendingBlob, digest_of, is_digest


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_blob_is_read_by_its_digest(blobs: Blobs, tmp_path: Path) -> None:
    digest = blobs.put(b"paint")

    assert digest == "sha256:" + hashlib.sha256(b"paint").hexdigest()
    assert digest_of(b"paint") == digest == blobs.put(b"paint")
    assert blobs.get(digest) == b"paint"
    assert blobs.has(digest)
    assert len(_files(tmp_path)) == 1


def test_a_deleted_blob_is_not_found_and_deletion_is_safe_to_repeat(blobs: Blobs) -> None:
    digest = blobs.put(b"paint")
    blobs.delete(digest)
    blobs.delete(digest)

    assert not blobs.has(digest)
    with pytest.raises(errors.ImageNotFound):
        blobs.get(digest)


@pytest.mark.parametrize(
    "name", ["", "sha256:", "../../etc/passwd", "sha256:" + "g" * 64, "sha256:" + "a" * 64 + "\n"]
)
def test_only_a_digest_becomes_a_path(blobs: Blobs, name: str) -> None:
    assert not is_digest(name)
    assert not blobs.has(name)
    with pytest.raises(errors.ImageNotFound):
        blobs.get(name)


@pytest.mark.parametrize("use", [Blobs.get, Blobs.open, Blobs.path, Blobs.has, Blobs.size_bytes])
def test_a_read_error_is_not_reported_as_a_missing_picture(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch, use: Callable[[Blobs, str], object]
) -> None:
    digest = blobs.put(b"x")

    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(Path, "open", failing)
    monkeypatch.setattr(Path, "stat", failing)
    with pytest.raises(errors.Unavailable):
        use(blobs, digest)


def test_a_failed_write_leaves_no_file(
    blobs: Blobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(errors.StorageFull):
        blobs.put(b"paint")

    assert _files(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
@pytest.mark.parametrize(
    "use",
    [
        lambda file: file.flush(),
        lambda file: file.seek(0),
        lambda file: file.digest,
        lambda file: file.write(b"p" * 99_999),
    ],
)
def test_every_first_write_to_a_full_disk_raises_storage_full(
    tmp_path: Path, use: Callable[[PendingBlob], object]
) -> None:
    with PendingBlob(os.open("/dev/full", os.O_RDWR), tmp_path / "part") as file:
        file.write(b"paint")  # stays in the buffer

        with pytest.raises(errors.StorageFull):
            use(file)


def test_a_pending_file_becomes_a_blob_without_a_copy_or_is_deleted_on_close(
    blobs: Blobs, tmp_path: Path
) -> None:
    with blobs.pending() as first:
        first.write(b"paint")
        digest = blobs.commit(first)
    with blobs.pending() as second:
        second.write(b"paint")
        inode = os.fstat(second.fileno()).st_ino
        assert blobs.commit(second) == digest
    with blobs.pending() as uncommitted:
        uncommitted.write(b"other")

    assert digest == digest_of(b"paint")
    assert [path.stat().st_ino for path in _files(tmp_path)] == [inode]
    assert blobs.path(digest).read_bytes() == b"paint"


def test_pending_files_of_killed_processes_are_deleted_after_an_hour(
    blobs: Blobs, tmp_path: Path
) -> None:
    digest = blobs.put(b"paint")
    pending = tmp_path / "blobs" / "parts" / "left-by-a-killed-process"
    pending.write_bytes(b"pai")
    assert blobs.sweep() == 0

    os.utime(pending, (time.time() - 7200,) * 2)
    assert blobs.sweep() == 1
    assert blobs.has(digest)


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")

    assert Blobs(tmp_path / "good").is_writable()
    assert not Blobs(blocked).is_writable()
    with pytest.raises(errors.StorageFull):
        Blobs(blocked).put(b"paint")


# ---------------------------------------------------------------------- damage


def _flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("use", [Blobs.get, Blobs.open, Blobs.path])
@pytest.mark.parametrize("damage", [_flip_byte, lambda path: path.write_bytes(b"")])
def test_a_damaged_blob_is_named_and_not_returned(
    blobs: Blobs,
    caplog: pytest.LogCaptureFixture,
    use: Callable[[Blobs, str], object],
    damage: Callable[[Path], None],
) -> None:
    digest = blobs.put(b"paint")
    blobs.open(digest).close()
    damage(blobs.path(digest))

    with pytest.raises(errors.ImageDamaged, match=digest):
        use(blobs, digest)
    assert digest in caplog.text
    assert blobs.get(blobs.put(b"paint")) == b"paint", "a new upload repairs it"


def test_a_blob_is_hashed_once_for_many_readers_and_again_later(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk may damage a file without changing its times."""
    hashed, real = list[int](), hashlib.file_digest

    def count(*args: object) -> object:
        hashed.append(1)
        return real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr("core.storage.blobs.hashlib.file_digest", count)
    now = 0.0
    monkeypatch.setattr(blobs, "_verified", TTLCache(9, VERIFIED_SECONDS, lambda: now))
    digest = blobs.put(b"paint")
    hashed.clear()
    for _ in range(3):
        with blobs.open(digest) as file:
            assert file.read() == b"paint"
    assert len(hashed) == 1
    now += VERIFIED_SECONDS + 1
    blobs.path(digest)
    assert len(hashed) == 2
