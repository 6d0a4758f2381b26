"""Blobs: bytes named by their SHA-256 digest, in a folder. Writes are atomic and durable.

Knows no pictures and no jobs. The store tracks which job uses which blob (jobs/scripts/blobs.lua).
"""

import fcntl
import hashlib
import io
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from cachetools import TTLCache

from core import errors
from core.storage.files import fsync

log = logging.getLogger(__name__)

# For so long a file counts as undamaged once it was read, unless its inode changes: a big result is
# fetched by many requests, and hashing it takes as long as sending it.
VERIFIED_SECONDS = 600.0
MAX_VERIFIED = 10_000  # files, some 500 bytes each

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_STALE_SECONDS = 3600


def digest_of(data: bytes) -> str:
    """Return the blob name of the data: `sha256:` and 64 hex digits."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def is_digest(text: str) -> bool:
    """Return whether the text has the form of a blob's name."""
    return _DIGEST.fullmatch(text) is not None


@contextmanager
def translate_write_errors() -> Iterator[None]:
    """Raise StorageFull for any OSError inside."""
    try:
        yield
    except OSError as error:
        raise errors.StorageFull() from error


@contextmanager
def _translate_read_errors() -> Iterator[None]:
    """Raise ImageNotFound for a missing file inside, and Unavailable for any other OSError."""
    try:
        yield
    except FileNotFoundError:
        raise errors.ImageNotFound() from None
    except OSError as error:
        raise errors.Unavailable("Pictures cannot be read at the moment; try again.") from error


def report_damage(digest: str) -> errors.ImageDamaged:
    """Log a damaged blob, and return the error to raise."""
    log.error("the picture %s is damaged on the disk", digest)
    return errors.ImageDamaged(
        f"The stored picture {digest} is damaged; upload it again or, if it is a result, retry its "
        "job."
    )


_FileState = tuple[str | int, ...]


def _state_of(digest: str, file: io.BufferedReader) -> _FileState:
    """Return what differs if the file or its inode has been changed."""
    found = os.fstat(file.fileno())
    return (digest, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class PendingBlob(io.BufferedRandom):
    """A temporary file that becomes a blob. Closing deletes it, unless it was committed."""

    def __init__(self, handle: int, path: Path) -> None:
        self.path = path
        super().__init__(io.FileIO(handle, "r+b"))

    def write(self, data: Any) -> int:
        """As for any file. Raises StorageFull."""
        with translate_write_errors():
            return super().write(data)

    def flush(self) -> None:
        """As for any file. Raises StorageFull."""
        with translate_write_errors():
            super().flush()

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As for any file, which first flushes its buffer. Raises StorageFull."""
        with translate_write_errors():
            return super().seek(offset, whence)

    @cached_property
    def digest(self) -> str:
        """The future blob's name; valid when everything is written. Raises StorageFull."""
        self.flush()
        self.seek(0)
        return f"sha256:{hashlib.file_digest(self, 'sha256').hexdigest()}"

    def close(self) -> None:
        """Close and delete the file, even if its buffer cannot be flushed to a full disk."""
        with suppress(OSError, errors.StorageFull):
            super().close()
        self.path.unlink(missing_ok=True)


class Blobs:
    """A folder of blobs, spread over 256 sub-folders. Many processes may use it at once.

    A read returns the bytes that the digest names, or raises ImageDamaged. Thread-safe.
    s3.py stores them in a bucket instead.
    """

    is_shared = False  # whether other machines may delete blobs, too
    deletion_batch = 1  # how many `delete` should get at once

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pending_folder = folder / "parts"
        self._verified: TTLCache[_FileState, bool] = TTLCache(MAX_VERIFIED, VERIFIED_SECONDS)
        self._lock = threading.Lock()  # of the cache

    def pending(self) -> PendingBlob:
        """Create a temporary file on the blobs' file system, so that a rename can commit it.

        Raises StorageFull.
        """
        with translate_write_errors():
            self._pending_folder.mkdir(parents=True, exist_ok=True)
            handle, path = tempfile.mkstemp(dir=self._pending_folder)
        return PendingBlob(handle, Path(path))

    def put(self, data: bytes, content_type: str = "") -> str:
        """Store the bytes as `commit` does, and return their digest."""
        with self.pending() as file:
            file.write(data)
            return self.commit(file, content_type)

    def commit(self, file: PendingBlob, content_type: str = "") -> str:  # noqa: ARG002
        """Publish the file as a blob and return its digest.

        When this returns, the blob is on disk (fsync of the file and of its folders). Raises
        StorageFull if the folder cannot be written. content_type: for links to a bucket.
        """
        with translate_write_errors():
            # Also if the blob exists already: the time taken must not reveal that another client
            # has sent the same file.
            os.fsync(file.fileno())
        self._sync_folders(self._move(file))
        return file.digest

    def _move(self, file: PendingBlob) -> Path:
        """Rename the file to its place among the blobs, and return its path."""
        path = self._path(file.digest)
        with translate_write_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            file.path.replace(path)
        return path

    def _sync_folders(self, path: Path) -> None:
        """Sync the folders of a blob, so that its name survives a power failure too."""
        with translate_write_errors():
            for folder in (path.parent, self._folder):
                fsync(folder)

    def get(self, digest: str) -> bytes:
        """Return a blob's bytes.

        Raises ImageNotFound; ImageDamaged if they are not those that were stored; Unavailable if
        the system cannot read (too many open files, a failing disk).
        """
        with _translate_read_errors():
            data = self._path(digest).read_bytes()
        if digest_of(data) != digest:
            raise report_damage(digest)
        return data

    def open(self, digest: str) -> BinaryIO:
        """Open a blob. It stays readable even if it is deleted meanwhile. Raises as `get`."""
        with _translate_read_errors():
            file = self._path(digest).open("rb")
            try:
                self._verify(digest, file)
                file.seek(0)
            except BaseException:
                file.close()
                raise
        return file

    def read_into(self, digest: str, file: PendingBlob) -> None:
        """Write a blob to an empty file. Raises as `get`, and StorageFull."""
        with self.open(digest) as source:
            shutil.copyfileobj(source, file, 1024 * 1024)

    def open_verified(self, digest: str) -> BinaryIO | None:
        """Open a blob as `open` does if that needs no hashing; otherwise return None.

        Quick enough for an event loop: the system has the file's data in memory. Raises as `get`.
        """
        with _translate_read_errors():
            file = self._path(digest).open("rb")
            try:
                if self._is_verified(_state_of(digest, file)):
                    return file
            except BaseException:
                file.close()
                raise
            file.close()
            return None

    def _is_verified(self, state: "_FileState") -> bool:
        with self._lock:
            return state in self._verified

    def _verify(self, digest: str, file: io.BufferedReader) -> None:
        """Hash the file, unless that was done within VERIFIED_SECONDS. Raises ImageDamaged."""
        state = _state_of(digest, file)
        if self._is_verified(state):
            return
        if f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" != digest:
            raise report_damage(digest)
        with self._lock:
            self._verified[state] = True

    def size_bytes(self, digest: str) -> int:
        """Return the size of a blob's file, which may be damaged. Raises as `get`."""
        with _translate_read_errors():
            return self._path(digest).stat().st_size

    def check(self, digest: str) -> None:
        """Check that the blob is stored and undamaged. Raises as `get`."""
        self.open(digest).close()

    def sign(self, digest: str, seconds: float) -> str:
        """Return a link to the blob in a bucket. Only for `is_shared`."""
        raise NotImplementedError

    def path(self, digest: str) -> Path:
        """Return the path of the blob's file. Raises as `get`."""
        self.open(digest).close()
        return self._path(digest)

    def has(self, digest: str) -> bool:
        """Return whether the blob exists; it may be damaged. Raises Unavailable, as `get` does."""
        try:
            self.size_bytes(digest)
        except errors.ImageNotFound:
            return False
        return True

    def delete(self, *digests: str) -> None:
        """Delete blobs. Safe to repeat. Raises OSError."""
        for digest in digests:
            self._path(digest).unlink(missing_ok=True)

    def sweep(self) -> int:
        """Delete temporary files that are older than an hour. Returns their number.

        A killed process leaves such files.
        """
        deleted = 0
        for path in self._pending_folder.glob("*"):
            with suppress(FileNotFoundError):  # committed or closed meanwhile
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()
                    deleted += 1
        return deleted

    def sizes(self) -> list[int]:
        """Return the sizes of all blobs now on disk, in bytes."""
        sizes = []
        for path in self._folder.glob("??/*"):
            with suppress(FileNotFoundError):
                sizes.append(path.stat().st_size)
        return sizes

    def digests(self) -> Iterator[str]:
        """Yield the digests of all blobs now on disk."""
        for path in self._folder.glob("??/*"):
            yield f"sha256:{path.parent.name}{path.name}"

    @contextmanager
    def try_deletion_lock(self) -> Iterator[bool]:
        """Try to lock deletions in the folder against other processes. Yields whether it did."""
        self._pending_folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "deletions.lock").open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True

    def is_writable(self) -> bool:
        """Return whether a blob could be written now."""
        try:
            self._pending_folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._pending_folder) as file:
                file.write(b"impasto")
        except OSError:
            return False
        return True

    def _path(self, digest: str) -> Path:
        match = _DIGEST.fullmatch(digest)
        if match is None:
            raise errors.ImageNotFound()
        return self._folder / match[1][:2] / match[1][2:]
