"""Bytes under their digest."""

import errno
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from core import errors
from core.storage.blobs import Blobs, PendingBlob, digest_of, is_digest


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_what_was_put_is_got_by_its_digest(blobs: Blobs, tmp_path: Path) -> None:
    digest = blobs.put(b"paint")

    assert digest == "sha256:" + hashlib.sha256(b"paint").hexdigest()
    assert digest_of(b"paint") == digest == blobs.put(b"paint")
    assert blobs.get(digest) == b"paint"
    assert blobs.has(digest)
    assert len(_files(tmp_path)) == 1


def test_a_deleted_blob_is_gone_and_deleting_is_safe_to_repeat(blobs: Blobs) -> None:
    digest = blobs.put(b"paint")
    blobs.delete(digest)
    blobs.delete(digest)

    assert not blobs.has(digest)
    with pytest.raises(errors.ImageNotFound):
        blobs.get(digest)


@pytest.mark.parametrize(
    "name", ["", "sha256:", "../../etc/passwd", "sha256:" + "g" * 64, "sha256:" + "a" * 64 + "\n"]
)
def test_only_a_digest_is_ever_a_path(blobs: Blobs, name: str) -> None:
    assert not is_digest(name)
    assert not blobs.has(name)
    with pytest.raises(errors.ImageNotFound):
        blobs.get(name)


@pytest.mark.parametrize("use", [Blobs.get, Blobs.open, Blobs.path, Blobs.has, Blobs.size_bytes])
def test_a_disk_that_fails_to_read_is_no_missing_picture(
    blobs: Blobs, monkeypatch: pytest.MonkeyPatch, use: Callable[[Blobs, str], object]
) -> None:
    digest = blobs.put(b"x")

    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(Path, "open", failing)
    monkeypatch.setattr(Path, "stat", failing)
    with pytest.raises(errors.Unavailable):
        use(blobs, digest)


def test_a_write_that_fails_leaves_nothing(
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
        lambda part: part.flush(),
        lambda part: part.seek(0),
        lambda part: part.digest,
        lambda part: part.write(b"p" * 99_999),
    ],
)
def test_whatever_first_writes_to_a_full_disk_says_so(
    tmp_path: Path, use: Callable[[PendingBlob], object]
) -> None:
    with PendingBlob(os.open("/dev/full", os.O_RDWR), tmp_path / "part") as part:
        part.write(b"paint")  # stays in memory

        with pytest.raises(errors.StorageFull):
            use(part)


def test_a_part_becomes_a_blob_without_a_copy_or_is_gone_when_it_is_closed(
    blobs: Blobs, tmp_path: Path
) -> None:
    with blobs.pending() as first:
        first.write(b"paint")
        digest = blobs.commit(first)
    with blobs.pending() as kept:
        kept.write(b"paint")
        inode = os.fstat(kept.fileno()).st_ino
        assert blobs.commit(kept) == digest
    with blobs.pending() as dropped:
        dropped.write(b"other")

    assert digest == digest_of(b"paint")
    assert [path.stat().st_ino for path in _files(tmp_path)] == [inode]
    assert blobs.path(digest).read_bytes() == b"paint"


def test_half_written_files_are_swept_after_an_hour(blobs: Blobs, tmp_path: Path) -> None:
    digest = blobs.put(b"paint")
    part = tmp_path / "blobs" / "parts" / "left-by-a-killed-process"
    part.write_bytes(b"pai")
    assert blobs.sweep() == 0

    os.utime(part, (time.time() - 7200,) * 2)
    assert blobs.sweep() == 1
    assert blobs.has(digest)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")

    assert Blobs(tmp_path / "good").is_writable()
    assert not Blobs(blocked).is_writable()
    with pytest.raises(errors.StorageFull):
        Blobs(blocked).put(b"paint")
