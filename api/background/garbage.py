"""The garbage collector: deletes blobs that no job and no reservation uses, and leftover files."""

import logging

from core import errors
from core.jobs.store import JobStore
from core.storage.blobs import Blobs, is_digest
from core.storage.checkpoints import Checkpoints

log = logging.getLogger(__name__)


def delete_unused_blobs(store: JobStore, blobs: Blobs) -> None:
    """Delete the blobs that nothing uses. Raises StoreUnavailable."""
    for digest in store.mark_deleting():
        try:
            if is_digest(digest):  # else the disk has damaged the record that names it
                blobs.delete(digest)
        except OSError as error:  # the next tick tries again
            log.warning("a picture cannot be deleted: %s", error.strerror)
        else:
            store.confirm_deleted(digest)


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
