"""Blobs, checkpoints and the store's identity in a bucket: S3, or a service with its protocol.

Each machine has a folder beside it, for temporary files and for copies of blobs. The bucket has the
same layout as the data folder. No call of this module belongs into an event loop.
"""

import hashlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

import obstore
from cachetools import TTLCache
from obstore.exceptions import BaseError
from obstore.store import S3Store

from core import errors
from core.blobs_url import BucketLocation
from core.storage.blobs import (
    MAX_VERIFIED,
    VERIFIED_SECONDS,
    Blobs,
    PendingBlob,
    report_damage,
    translate_write_errors,
)
from core.storage.checkpoints import MIN_AGE_SECONDS, Checkpoints

BLOBS, CHECKPOINTS, PROBE = "blobs", "checkpoints", "probe"

PART_BYTES = 8 * 1024 * 1024  # larger files are uploaded in parts of this size
MAX_PARTS_AT_ONCE = 4
# A request that neither sends nor receives anything for so long is tried again.
READ_TIMEOUT_SECONDS = 15.0
CONNECT_TIMEOUT_SECONDS = 3.0
REQUEST_TIMEOUT_SECONDS = 120.0
MAX_RETRIES = 4
RETRY_SECONDS = 10.0  # no retry starts later than this after the first try
# After a call that failed only after SLOW_SECONDS, others fail at once for COOLDOWN_SECONDS:
# callers that wait for a silent bucket must not occupy every thread.
SLOW_SECONDS, COOLDOWN_SECONDS = 2.0, 1.0

# A file that was used so recently stays in the cache: somebody may be about to open its path.
IN_USE_SECONDS = 60.0
_TOUCH_SECONDS = IN_USE_SECONDS / 2
# For so long a list may name an object that this process has deleted.
STALE_LIST_SECONDS = 3600.0

_READ_FAILED = "Pictures cannot be read at the moment; try again."
_WRITE_FAILED = "Pictures cannot be stored at the moment; try again."
# How services answer that a bucket or its quota is full.
_FULL = re.compile(r"status code: 507|<Code>\w*(StorageFull|QuotaExceeded|InsufficientStorage)\w*<")
_BLOB_KEY = re.compile(rf"{BLOBS}/([0-9a-f]{{2}})/([0-9a-f]{{62}})")

log = logging.getLogger(__name__)


class Bucket:
    """The objects below one prefix of a bucket, by key. Thread-safe.

    Every method raises Unavailable if the bucket does not answer, after retries, or refuses.
    """

    def __init__(self, location: BucketLocation) -> None:
        """Raises BadSettings. Credentials come from the AWS_* variables or the machine's role."""
        try:
            self._store = _connect(location, location.endpoint)
            self._signer = _connect(location, location.public_endpoint or location.endpoint)
        except BaseError as error:
            raise errors.BadSettings(f"IMPASTO_BLOBS_URL: {_first_line(error)}") from error
        self._name = f"s3://{location.bucket}/{location.prefix}"
        self._next_call_at = 0.0

    def __str__(self) -> str:
        return self._name

    @contextmanager
    def _translate(self, message: str) -> Iterator[None]:
        """Raise ImageNotFound for a missing object; StorageFull and Unavailable, with `message`."""
        start = time.monotonic()
        if start < self._next_call_at:
            raise errors.Unavailable(message)
        try:
            yield
        except FileNotFoundError as error:
            if "NoSuchBucket" not in str(error):
                raise errors.ImageNotFound() from None
            log.error("the bucket of the pictures does not exist: %s", self)  # noqa: TRY400
            raise errors.Unavailable(message) from error
        except BaseError as error:
            now = time.monotonic()
            if now - start > SLOW_SECONDS:
                self._next_call_at = now + COOLDOWN_SECONDS
            log.warning("%s: %s", self, _first_line(error))
            if _FULL.search(str(error)):
                raise errors.StorageFull() from error
            raise errors.Unavailable(message) from error

    def upload(self, key: str, file: Path, content_type: str = "") -> str:
        """Store a file with its SHA-256, which the bucket checks. Returns the object's ETag."""
        attributes = {"Content-Type": content_type} if content_type else {}
        is_large = file.stat().st_size > PART_BYTES
        with self._translate(_WRITE_FAILED):
            found = self._store.put(
                key,
                file,
                attributes=attributes,
                use_multipart=is_large,
                chunk_size=PART_BYTES,
                max_concurrency=MAX_PARTS_AT_ONCE,
            )
        return found["e_tag"] or ""

    def put(self, key: str, data: bytes) -> None:
        """Store the bytes as an object."""
        with self._translate(_WRITE_FAILED):
            self._store.put(key, data)

    def get(self, key: str) -> bytes:
        """Return an object's bytes. Raises ImageNotFound."""
        with self._translate(_READ_FAILED):
            return bytes(self._store.get(key).bytes())

    def download(self, key: str, file: BinaryIO) -> str:
        """Write an object to a file, and return its ETag. Raises ImageNotFound, StorageFull."""
        with self._translate(_READ_FAILED):
            found = self._store.get(key)
            for chunk in found.stream(min_chunk_size=1024 * 1024):
                file.write(chunk)
        if file.tell() != found.meta["size"]:
            raise errors.Unavailable(_READ_FAILED)
        return found.meta["e_tag"] or ""

    def head(self, key: str) -> Any:
        """Return an object's `size` and `e_tag`. Raises ImageNotFound."""
        with self._translate(_READ_FAILED):
            try:
                return self._store.head(key)
            except FileNotFoundError:  # perhaps the bucket: only the body of an answer says so
                return self._store.get(key).meta

    def list(self, prefix: str) -> Iterator[Any]:
        """Yield `path`, `size` and `last_modified` of all objects below the prefix."""
        with self._translate(_READ_FAILED):
            for batch in self._store.list(prefix):
                yield from batch

    def delete(self, keys: Sequence[str]) -> None:
        """Delete up to 1000 objects with one request. Safe to repeat."""
        with self._translate(_WRITE_FAILED):
            self._store.delete(keys)

    def sign(self, key: str, seconds: float) -> str:
        """Return a URL that reads the object without credentials for so long."""
        with self._translate(_READ_FAILED):
            return obstore.sign(self._signer, "GET", key, timedelta(seconds=seconds))


def _connect(location: BucketLocation, endpoint: str) -> S3Store:
    options: dict[str, Any] = {"checksum_algorithm": "SHA256"}
    if endpoint:
        options["endpoint"] = endpoint
    if location.region:
        options["region"] = location.region
    client: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_SECONDS),
        "read_timeout": timedelta(seconds=READ_TIMEOUT_SECONDS),
        "timeout": timedelta(seconds=REQUEST_TIMEOUT_SECONDS),
    }
    if endpoint.startswith("http://"):
        client["allow_http"] = True
    return S3Store(
        location.bucket,
        prefix=location.prefix or None,
        config=options,  # type: ignore[arg-type]
        client_options=client,  # type: ignore[arg-type]
        retry_config={
            "max_retries": MAX_RETRIES,
            "retry_timeout": timedelta(seconds=RETRY_SECONDS),
            "backoff": {"max_backoff": timedelta(seconds=2)},
        },
    )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:500]


class S3Blobs(Blobs):
    """Blobs in a bucket. The folder is a cache of this machine: its processes share it.

    A blob that is in the cache is served as from the folder of the superclass.
    """

    is_shared = True
    deletion_batch = 1000

    def __init__(self, bucket: Bucket, folder: Path, cache_bytes: int) -> None:
        super().__init__(folder)
        self._bucket, self._cache_bytes = bucket, cache_bytes
        self._added_bytes: float = cache_bytes  # since the last trim; at the start, trim at once
        # Of objects whose bytes were read or written: a digest -> its ETag.
        self._etags: TTLCache[str, str] = TTLCache(MAX_VERIFIED, VERIFIED_SECONDS)
        self._deleted: TTLCache[str, bool] = TTLCache(100_000, STALE_LIST_SECONDS)
        self._download_locks = [threading.Lock() for _ in range(64)]

    def __str__(self) -> str:
        return str(self._bucket)

    def commit(self, file: PendingBlob, content_type: str = "") -> str:
        """Publish the file in the bucket. When this returns, the bucket has confirmed it.

        Raises Unavailable, StorageFull.
        """
        etag = self._bucket.upload(_key(file.digest), file.path, content_type)
        with self._lock:
            self._etags[file.digest] = etag
            self._deleted.pop(file.digest, None)
        with suppress(errors.StorageFull):  # of the cache
            self._add_to_cache(file)
        return file.digest

    def get(self, digest: str) -> bytes:
        """As the superclass. Raises Unavailable also if the bucket does not answer."""
        with self.open(digest) as file:
            return file.read()

    def open(self, digest: str) -> BinaryIO:
        """As the superclass: from the cache, otherwise from the bucket."""
        self._mark_as_used(digest)
        with suppress(errors.ImageNotFound):  # also if the copy is damaged
            return super().open(digest)
        with self._download_locks[int(digest[-2:], 16) % len(self._download_locks)]:
            with suppress(errors.ImageNotFound):  # another thread has downloaded it
                return super().open(digest)
            self._download(digest)
            return super().open(digest)

    def open_verified(self, digest: str) -> BinaryIO | None:
        """As the superclass; None also for a blob that is not in the cache."""
        with suppress(errors.ImageNotFound):
            return super().open_verified(digest)
        return None

    def check(self, digest: str) -> None:
        """As the superclass. A copy in the cache does not count if the bucket has lost the blob."""
        etag = self._bucket.head(_key(digest))["e_tag"]
        with self._lock:
            is_known = self._etags.get(digest) == etag
        if not is_known:
            self._path(digest).unlink(missing_ok=True)
        self.open(digest).close()

    def sign(self, digest: str, seconds: float) -> str:
        """Return a link that reads the blob from the bucket for so long. Raises ImageNotFound."""
        self._bucket.head(_key(digest))
        return self._bucket.sign(_key(digest), seconds)

    def size_bytes(self, digest: str) -> int:
        """Return the size of a blob, which may be damaged. Raises as `get`."""
        return int(self._bucket.head(_key(digest))["size"])

    def delete(self, *digests: str) -> None:
        """Delete blobs. Safe to repeat. Raises Unavailable."""
        if digests:
            self._bucket.delete([_key(digest) for digest in digests])
        with self._lock:
            self._deleted.update(dict.fromkeys(digests, True))
        super().delete(*digests)

    def sizes(self) -> list[int]:
        """Return the sizes of all blobs in the bucket, in bytes."""
        return [size for _, size in self._list()]

    def digests(self) -> Iterator[str]:
        """Yield the digests of all blobs in the bucket."""
        return (digest for digest, _ in self._list())

    def is_writable(self) -> bool:
        """Return whether a blob could be written to the bucket, and read again, now."""
        probe = b"impasto"
        try:
            self._bucket.put(PROBE, probe)
            return super().is_writable() and self._bucket.get(PROBE) == probe
        except errors.ImpastoError:
            return False

    def _list(self) -> Iterator[tuple[str, int]]:
        # A stale list must not count what is deleted: the quota would delete further results.
        for found in self._bucket.list(BLOBS):
            if match := _BLOB_KEY.fullmatch(found["path"]):
                digest = f"sha256:{match[1]}{match[2]}"
                if digest not in self._deleted:
                    yield digest, found["size"]

    def read_into(self, digest: str, file: PendingBlob) -> None:
        """As the superclass, without a copy in the cache. Wrong bytes are read once more."""
        for _ in range(2):
            file.seek(0)
            file.truncate()
            etag = self._bucket.download(_key(digest), file)
            file.seek(0)
            if f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" == digest:
                with self._lock:
                    self._etags[digest] = etag
                return
        raise report_damage(digest)

    def _download(self, digest: str) -> None:
        with self.pending() as file:
            self.read_into(digest, file)
            self._add_to_cache(file)

    def _add_to_cache(self, file: PendingBlob) -> None:
        size_bytes = file.path.stat().st_size
        self._move(file)
        self._added_bytes += size_bytes
        if self._added_bytes >= self._cache_bytes / 16:
            self._added_bytes = 0.0
            self._trim()

    def _trim(self) -> None:
        """Keep the cache within its size. Deletes what was not used for longest."""
        self.sweep()
        files = []
        for path in self._folder.glob("??/*"):
            with suppress(FileNotFoundError):
                found = path.stat()
                files.append((found.st_mtime, found.st_size, path))
        excess = sum(size for _, size, _ in files) - self._cache_bytes
        for used_at, size, path in sorted(files):
            if excess <= 0 or time.time() - used_at < IN_USE_SECONDS:
                break
            path.unlink(missing_ok=True)
            excess -= size

    def _mark_as_used(self, digest: str) -> None:
        path = self._path(digest)
        with suppress(OSError):
            # Rarely, because a new time makes the next reader hash the file again.
            if time.time() - path.stat().st_mtime > _TOUCH_SECONDS:
                os.utime(path)


def _key(digest: str) -> str:
    hexadecimal = digest.removeprefix("sha256:")
    key = f"{BLOBS}/{hexadecimal[:2]}/{hexadecimal[2:]}"
    if not _BLOB_KEY.fullmatch(key):
        raise errors.ImageNotFound()
    return key


class S3Checkpoints(Checkpoints):
    """Checkpoints in a bucket. The folder has only files that are being written or read."""

    def __init__(self, bucket: Bucket, folder: Path) -> None:
        super().__init__(folder)
        self._bucket = bucket
        for file in self._files():  # of killed processes
            with suppress(OSError):
                if time.time() - file.stat().st_mtime > MIN_AGE_SECONDS:
                    file.unlink()

    def publish(self, name: str) -> None:
        """Upload the file that was written. Raises Unavailable, OSError."""
        file = self.path(name)
        try:
            self._bucket.upload(f"{CHECKPOINTS}/{file.name}", file)
        finally:
            file.unlink(missing_ok=True)

    @contextmanager
    def fetch(self, name: str) -> Iterator[Path]:
        """Download a checkpoint for the time of the context; a missing one is an empty file.

        Raises Unavailable, StorageFull.
        """
        with translate_write_errors():
            file = self.path(name)
        try:
            with (
                translate_write_errors(),
                file.open("wb") as stream,
                suppress(errors.ImageNotFound),
            ):
                self._bucket.download(f"{CHECKPOINTS}/{file.name}", stream)
            yield file
        finally:
            file.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        """Delete a checkpoint. Safe to repeat; what cannot be deleted now is swept later."""
        super().delete(name)
        with suppress(errors.Unavailable):
            self._bucket.delete([f"{CHECKPOINTS}/{Path(name).name}"])

    def sizes(self) -> list[int]:
        """Return the sizes of all checkpoints in the bucket, in bytes."""
        return [found["size"] for found in self._bucket.list(CHECKPOINTS)]

    def sweep(self, find_current: Callable[[str], str | None]) -> int:
        """As the superclass. Raises Unavailable."""
        unused = []
        for found in self._bucket.list(CHECKPOINTS):
            name = str(found["path"]).rpartition("/")[2]
            is_recent = time.time() - found["last_modified"].timestamp() < MIN_AGE_SECONDS
            if not is_recent and find_current(name.partition(".")[0]) != name:
                unused.append(found["path"])
        for start in range(0, len(unused), 1000):
            self._bucket.delete(unused[start : start + 1000])
        return len(unused)


class S3Identity:
    """The store's identity as an object. It is read once, because each check compares it."""

    def __init__(self, bucket: Bucket, key: str) -> None:
        self._bucket, self._key = bucket, key
        self._text: str | None = None

    def __str__(self) -> str:
        return f"{self._bucket}/{self._key}"

    def read(self) -> str:
        """Return the text. Raises FileNotFoundError; OSError if the bucket does not answer."""
        if self._text is None:
            self.refresh()
        if self._text is None:
            raise FileNotFoundError(str(self))
        return self._text

    def write(self, text: str) -> None:
        """Replace the object. Raises Unavailable."""
        self._bucket.put(self._key, text.encode("ascii"))
        self._text = text

    def refresh(self) -> None:
        """Read the object again. Raises OSError; the old text then stays."""
        try:
            self._text = self._bucket.get(self._key).decode("ascii")
        except errors.ImageNotFound:
            self._text = None
        except errors.Unavailable as error:
            raise OSError(error.message) from error
