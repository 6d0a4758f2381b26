"""Blobs: bytes under their SHA-256 digest, in a folder. Written whole and durable, or not at all.

Knows no pictures and no jobs; who uses which blob is the store's business (store.lua, refs and orphans).
"""

import fcntl
import hashlib
import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from core import errors

_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_STALE_PART_SECONDS = 3600


def digest_of(data: bytes) -> str:
    """`sha256:` and 64 hex digits."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def is_digest(text: str) -> bool:
    """Whether this could be a blob's name at all."""
    return _DIGEST.fullmatch(text) is not None


class Blobs:
    """A folder of blobs, spread over 256 sub-folders. Safe for many processes at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts = folder / "parts"

    def put(self, data: bytes) -> str:
        """Keep the bytes and return their digest; on disk (fsync of file and folder) when it returns.

        Raises StorageFull when the folder cannot be written.
        """
        digest = digest_of(data)
        path = self._path(digest)
        try:
            # Also where it is already: nobody is to learn from the time it takes that another has sent the same.
            path.parent.mkdir(parents=True, exist_ok=True)
            self._parts.mkdir(parents=True, exist_ok=True)
            self._write(path, data)
        except OSError as error:
            raise errors.StorageFull() from error
        return digest

    def _write(self, path: Path, data: bytes) -> None:
        handle, part = tempfile.mkstemp(dir=self._parts)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            Path(part).replace(path)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise
        self._sync_names(path)

    def _sync_names(self, path: Path) -> None:
        """The names, too, must outlive a power cut."""
        for folder in (path.parent, self._folder):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)

    def get(self, digest: str) -> bytes:
        """Raises ImageNotFound."""
        try:
            return self._path(digest).read_bytes()
        except FileNotFoundError:
            raise errors.ImageNotFound() from None

    def has(self, digest: str) -> bool:
        """Whether the blob is here."""
        return is_digest(digest) and self._path(digest).exists()

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

    def writable(self) -> bool:
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
