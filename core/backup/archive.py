"""A folder with backups: copies of the store, and the blobs that they need, each once.

blobs/              as in the data folder
<time>.digests      the blobs of one backup, one a line
<time>.store        the copy of the store, written last: without it, the backup is not complete
"""

import re
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from core import errors
from core.backup import store_dump
from core.jobs.deletion_lock import lock_deletions
from core.jobs.store import JobStore
from core.storage.blobs import Blobs, is_digest
from core.storage.files import atomic_write, exclusive_lock
from core.storage.location import Storage

LOCK_SECONDS = 120.0  # the garbage collector holds its lock for as long, on a slow disk
MAX_AT_ONCE = 8  # blobs that are copied at the same time; a bucket answers slowly
NAME = re.compile(r"\d{8}T\d{12}Z")


@dataclass
class Transfer:
    """What one backup or restore has done."""

    name: str
    keys: int = 0
    blobs: int = 0  # copied; others were there
    known_blobs: int = 0
    bytes: int = 0
    missing: list[str] = field(default_factory=list)  # digests that jobs use, lost or damaged


class Archive:
    """The folder. One process at a time may use it."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._blobs = folder, Blobs(folder / "blobs")

    def names(self) -> list[str]:
        """Return the names of all complete backups, the oldest first."""
        return sorted(file.stem for file in self._folder.glob("*.store") if NAME.match(file.stem))

    @contextmanager
    def _lock(self) -> Iterator[None]:
        locked = errors.Conflict(f"Another command uses {self._folder}; wait until it has ended.")
        with exclusive_lock(self._folder, locked):
            yield

    def backup(self, store: JobStore, redis_url: str, blobs: Blobs, keep: int) -> Transfer:
        """Copy the store as it is at one moment, and the blobs that are not in the folder yet.

        keep: how many backups stay. Raises Unavailable, StorageFull, Conflict.
        """
        with self._lock():
            self._folder.chmod(0o700)  # it has the pictures of all callers
            self._remove_leftovers()
            with _hold_deletions(store, blobs), store_dump.connect(redis_url) as client:
                transfer = self._backup(client, blobs)
            self._prune(keep)
        return transfer

    def _backup(self, client: Any, blobs: Blobs) -> Transfer:
        if store_dump.is_unfinished(client):
            raise errors.Conflict("A restore has not ended; repeat `impasto restore` first.")
        found: list[store_dump.StoreState] = []

        def dump(path: Path) -> None:
            with path.open("wb") as file:
                found.append(store_dump.dump_store(client, file))

        # The moment is named by its end, but the file is not a backup before its blobs are there.
        pending = self._folder / "new.pending"
        atomic_write(pending, dump)
        transfer = Transfer(f"{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}", keys=found[0].keys)
        lost = _copy_blobs(found[0].used | found[0].reserved, blobs, self._blobs, transfer)
        transfer.missing = sorted(found[0].used & lost)
        kept = sorted((found[0].used | found[0].reserved) - lost)
        text = "".join(f"{digest}\n" for digest in kept)
        atomic_write(self._file(transfer.name, "digests"), lambda path: path.write_text(text))
        atomic_write(self._file(transfer.name, "store"), pending.replace)
        return transfer

    def restore(
        self, store: JobStore, redis_url: str, storage: Storage, name: str, *, force: bool
    ) -> Transfer:
        """Replace the store by that of a backup, and add its blobs to the storage.

        The service may run. Repeat this if it was interrupted. force: also if the store has jobs,
        or the storage belongs to another store. Raises BadBackup, Conflict, Unavailable,
        StorageFull.
        """
        path = self._file(name, "store")
        transfer = Transfer(name)
        with self._lock(), store_dump.connect(redis_url) as client:
            if name not in self.names():
                raise errors.BadBackup(f"There is no backup {name} in {self._folder}.")
            for _ in store_dump.read_dump(path):  # a damaged copy must replace nothing
                pass
            if not force:
                _require_empty(client, path, storage)
            with _hold_deletions(store, storage.blobs):
                digests = self._read_digests(name)
                lost = _copy_blobs(digests, self._blobs, storage.blobs, transfer)
                transfer.missing = sorted(lost)
                store_dump.mark_unfinished(client, name)
                # A new one: a service that still runs on the old store then deletes no blob.
                identity = secrets.token_hex(16)
                storage.identity.write(f"{identity}\n")
                transfer.keys = store_dump.restore_store(client, path, identity)
        return transfer

    def _file(self, name: str, kind: str) -> Path:
        return self._folder / f"{name}.{kind}"

    def _read_digests(self, name: str) -> set[str]:
        return {*self._file(name, "digests").read_text(encoding="ascii").split()}

    def _remove_leftovers(self) -> None:
        """Remove what a killed backup has left, but its blobs, which the next one needs."""
        names = {*self.names()}
        for file in self._folder.iterdir():
            if file.suffix in (".part", ".pending") or (
                file.suffix == ".digests" and file.stem not in names
            ):
                file.unlink()
        self._blobs.sweep()

    def _prune(self, keep: int) -> None:
        """Delete the oldest backups, and the blobs that no other one needs."""
        for name in self.names()[:-keep]:
            self._file(name, "store").unlink()
            self._file(name, "digests").unlink()
        needed: set[str] = set()
        for name in self.names():
            needed |= self._read_digests(name)
        self._blobs.delete(*({*self._blobs.digests()} - needed))


def _require_empty(client: Any, path: Path, storage: Storage) -> None:
    """Raise Conflict if a restore would replace jobs, or the identity of other pictures."""
    if store_dump.is_unfinished(client):
        return
    if store_dump.has_jobs(client):
        raise errors.Conflict(
            "The store is not empty. Restore to an empty one, or replace all that it has: --force."
        )
    identity = ""
    with suppress(FileNotFoundError):
        identity = storage.identity.read().strip()
    known = store_dump.read_identity(path), store_dump.find_identity(client)
    if identity and identity not in known and any(True for _ in storage.blobs.digests()):
        raise errors.Conflict(
            "The pictures there belong to another store, perhaps of a service that runs. Use an "
            "empty folder or prefix, or take them over: --force."
        )


@contextmanager
def _hold_deletions(store: JobStore, blobs: Blobs) -> Iterator[None]:
    """Keep the garbage collectors of all processes from deleting blobs. Raises Unavailable."""
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        with lock_deletions(store, blobs, renews=True) as is_locked:
            if is_locked:
                yield
                return
        if time.monotonic() > deadline:
            raise errors.Unavailable("The garbage collector is busy; try again.")
        time.sleep(0.2)


def _copy_blobs(digests: set[str], source: Blobs, target: Blobs, transfer: Transfer) -> set[str]:
    """Copy those that the target does not have. Returns those that the source does not have."""
    known = {*target.digests()}
    wanted = sorted(digest for digest in digests - known if is_digest(digest))
    lost: set[str] = set()
    transfer.known_blobs = len(digests & known)
    pool = ThreadPoolExecutor(MAX_AT_ONCE)
    try:
        for digest, size in zip(
            wanted, pool.map(partial(_copy_blob, source, target), wanted), strict=True
        ):
            if size is None:
                lost.add(digest)
            else:
                transfer.blobs += 1
                transfer.bytes += size
    finally:
        pool.shutdown(cancel_futures=True)
    return lost


def _copy_blob(source: Blobs, target: Blobs, digest: str) -> int | None:
    """Return the size of the copied blob; None if it is missing or damaged."""
    try:
        with target.pending() as file:
            source.read_into(digest, file)
            size = file.tell()
            target.commit(file)
            return size
    except errors.ImageNotFound:
        return None
