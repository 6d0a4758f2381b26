"""Keeps blobs and checkpoints within the disk quota."""

import logging
import math

from core.jobs.store import JobStore
from core.storage.blobs import Blobs
from core.storage.checkpoints import Checkpoints

log = logging.getLogger(__name__)


def enforce_quota(
    store: JobStore, blobs: Blobs, checkpoints: Checkpoints, quota_bytes: float
) -> None:
    """Expire the oldest results while the folder is over its quota; 0 means no quota.

    The garbage collector then deletes their blobs. Raises StoreUnavailable.
    """
    if not quota_bytes:
        return
    # Only blobs can be deleted: a checkpoint belongs to a job that has not ended.
    sizes = blobs.sizes()
    excess = sum(sizes) + sum(checkpoints.sizes()) - quota_bytes
    if excess <= 0 or not sizes:
        return
    share = min(1.0, excess / max(1, sum(sizes)))
    # A job has many small blobs, its frames, and a few large ones. So the share applies to the
    # number of jobs, not of blobs.
    most = min(len(sizes), store.count_expiring())
    jobs = store.expire_early(math.ceil(share * most))
    log.warning("the disk quota is exceeded by %.1f MB: %d jobs expire early", excess / 1e6, jobs)
