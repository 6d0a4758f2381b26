"""The lock of those who delete blobs, or need all blobs to stay."""

from collections.abc import Iterator
from contextlib import contextmanager

from core.jobs.store import JobStore
from core.storage.blobs import Blobs


@contextmanager
def lock_deletions(store: JobStore, blobs: Blobs, *, renews: bool = False) -> Iterator[bool]:
    """Try to lock deletions against other processes. Yields whether it did.

    A folder is locked by the system, which ends the lock with the process; a bucket, which several
    machines may use, by the store, for ten minutes unless the lock `renews`.
    Raises StoreUnavailable.
    """
    if not blobs.is_shared:
        with blobs.try_deletion_lock() as is_locked:
            yield is_locked
        return
    with store.try_deletion_lock(renews=renews) as is_locked:
        yield is_locked
