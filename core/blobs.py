"""Blobs: bytes under their SHA-256 digest, in a folder. Written whole and durable, or not at all.

Knows no pictures and no jobs; who uses which blob is the store's business (store.lua, refs and orphans).
"""

import hashlib
import os
import re
import tempfile
import time
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
        if path.exists():
            return digest
        try:
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
        for folder in (path.parent, self._folder):  # the names, too, must outlive a power cut
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
        stale = [part for part in self._parts.glob("*") if time.time() - part.stat().st_mtime > _STALE_PART_SECONDS]
        for part in stale:
            part.unlink(missing_ok=True)
        return len(stale)

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
