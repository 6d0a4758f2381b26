"""Blobs: bytes under their SHA-256 digest, in a folder. Written whole and durable, or not at all.

Knows no pictures and no jobs; who uses which blob is the store's business (jobs/scripts/blobs.lua).
"""

import fcntl
import hashlib
import io
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from core import errors

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_STALE_PART_SECONDS = 3600


def digest_of(data: bytes) -> str:
    """`sha256:` and 64 hex digits."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def is_digest(text: str) -> bool:
    """Whether this could be a blob's name at all."""
    return _DIGEST.fullmatch(text) is not None


@contextmanager
def _room() -> Iterator[None]:
    """Inside, any refusal of the system to write is StorageFull."""
    try:
        yield
    except OSError as error:
        raise errors.StorageFull() from error


@contextmanager
def _reading() -> Iterator[None]:
    """Inside, what is not there is ImageNotFound, and any other refusal of the system to read is Unavailable."""
    try:
        yield
    except FileNotFoundError:
        raise errors.ImageNotFound() from None
    except OSError as error:
        raise errors.Unavailable("Pictures cannot be read at the moment; try again.") from error


class PendingBlob(io.BufferedRandom):
    """A file on its way to being a blob: gone when it is closed, unless it was kept."""

    def __init__(self, handle: int, path: Path) -> None:
        self.path = path
        super().__init__(io.FileIO(handle, "r+b"))

    def write(self, data: Any) -> int:
        """As of any file. Raises StorageFull."""
        with _room():
            return super().write(data)

    def flush(self) -> None:
        """As of any file. Raises StorageFull."""
        with _room():
            super().flush()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of any file, which first writes what is still to be written. Raises StorageFull."""
        with _room():
            return super().seek(offset, whence)

    @cached_property
    def digest(self) -> str:
        """The blob's name to be, when all is written. Raises StorageFull."""
        self.flush()
        self.seek(0)
        return f"sha256:{hashlib.file_digest(self, 'sha256').hexdigest()}"

    def close(self) -> None:
        """Leaves nothing, also where what is still to be written no longer has room."""
        with suppress(OSError, errors.StorageFull):
            super().close()
        self.path.unlink(missing_ok=True)


class Blobs:
    """A folder of blobs, spread over 256 sub-folders. Safe for many processes at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts = folder / "parts"

    def pending(self) -> PendingBlob:
        """A file to write to, where the blobs are. Raises StorageFull."""
        with _room():
            self._parts.mkdir(parents=True, exist_ok=True)
            handle, path = tempfile.mkstemp(dir=self._parts)
        return PendingBlob(handle, Path(path))

    def put(self, data: bytes) -> str:
        """Keep the bytes, as `commit` does, and return their digest."""
        with self.pending() as part:
            part.write(data)
            return self.commit(part)

    def commit(self, part: PendingBlob) -> str:
        """Make the part a blob and return its digest; on disk (fsync of file and folder) when it returns.

        Raises StorageFull when the folder cannot be written.
        """
        path = self._path(part.digest)
        with _room():
            # Also where it is already: nobody is to learn from the time it takes that another has sent the same.
            path.parent.mkdir(parents=True, exist_ok=True)
            os.fsync(part.fileno())
            part.path.replace(path)
            self._sync_names(path)
        return part.digest

    def _sync_names(self, path: Path) -> None:
        """The names, too, must outlive a power cut."""
        for folder in (path.parent, self._folder):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def get(self, digest: str) -> bytes:
        """Raises ImageNotFound; Unavailable where the system refuses to read: out of open files, a disk that fails."""
        with _reading():
            return self._path(digest).read_bytes()

    def open(self, digest: str) -> BinaryIO:
        """The blob's file, which can be read to its end though it is deleted meanwhile. Raises as `get`."""
        with _reading():
            return self._path(digest).open("rb")

    def size_bytes(self, digest: str) -> int:
        """Raises as `get`."""
        with _reading():
            return self._path(digest).stat().st_size

    def path(self, digest: str) -> Path:
        """Where the blob's file is, for a process that reads it itself. Raises as `get`."""
        self.size_bytes(digest)
        return self._path(digest)

    def has(self, digest: str) -> bool:
        """Whether the blob is here. Raises Unavailable, as `get`."""
        try:
            self.size_bytes(digest)
        except errors.ImageNotFound:
            return False
        return True

    def delete(self, digest: str) -> None:
        """Safe to repeat."""
        self._path(digest).unlink(missing_ok=True)

    def sweep(self) -> int:
        """Remove half-written files that a killed process left an hour ago or earlier; how many."""
        swept = 0
        for part in self._parts.glob("*"):
            with suppress(FileNotFoundError):  # finished meanwhile
                if time.time() - part.stat().st_mtime > _STALE_PART_SECONDS:
                    part.unlink()
                    swept += 1
        return swept

    def sizes(self) -> list[int]:
        """Of every blob, in bytes, as they are on the disk now."""
        found = []
        for path in self._folder.glob("??/*"):
            with suppress(FileNotFoundError):
                found.append(path.stat().st_size)
        return found

    def digests(self) -> Iterator[str]:
        """Of every blob that is on the disk now."""
        for path in self._folder.glob("??/*"):
            yield f"sha256:{path.parent.name}{path.name}"

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Inside, whether this process alone has the word over deletions in the folder."""
        self._parts.mkdir(parents=True, exist_ok=True)
        with (self._folder / "deletions.lock").open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def is_writable(self) -> bool:
        """Whether a blob could be written now."""
        try:
            self._parts.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._parts) as file:
                file.write(b"impasto")
        except OSError:
            return False
        return True

    def _path(self, digest: str) -> Path:
        match = _DIGEST.fullmatch(digest)
        if match is None:
            raise errors.ImageNotFound()
        return self._folder / match[1][:2] / match[1][2:]
