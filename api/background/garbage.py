"""The garbage collector: deletes blobs that no job and no reservation uses, and leftover files."""

import logging
import time

from core import errors
from core.jobs.store import JobStore
from core.storage.blobs import Blobs, is_digest
from core.storage.checkpoints import Checkpoints

# Of one deletion; less than the lock on deletions lasts.
MAX_SECONDS = 60.0

log = logging.getLogger(__name__)


def delete_unused_blobs(store: JobStore, blobs: Blobs) -> None:
    """Delete the blobs that nothing uses. Raises Unavailable."""
    digests, started = store.mark_deleting(), time.time()
    if digests and blobs.is_shared:  # another service may have taken over the bucket
        store.monitor.refresh_identity()
        if not store.monitor.check().may_delete_blobs:
            return
    for start in range(0, len(digests), blobs.deletion_batch):
        batch = digests[start : start + blobs.deletion_batch]
        # A machine that slept may no longer delete: another one has, and the pictures may be new.
        if time.time() - started > MAX_SECONDS:
            return
        try:
            # A name that is no digest: the disk has damaged the record.
            blobs.delete(*filter(is_digest, batch))
        except (OSError, errors.Unavailable) as error:  # the next tick tries again
            log.warning("a picture cannot be deleted: %s", error)
        else:
            store.confirm_deleted(*batch)


def sweep_files(store: JobStore, blobs: Blobs, checkpoints: Checkpoints) -> None:
    """Delete half-written files, and checkpoints from which no job will resume.

    Raises StoreUnavailable.
    """

    def get_checkpoint(job_id: str) -> str | None:
        try:
            return store.get(job_id).checkpoint
        except errors.JobNotFound:
            return None

    blobs.sweep()
    checkpoints.sweep(get_checkpoint)
