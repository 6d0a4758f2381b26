"""Finds blobs that the store does not know, and lets them expire.

Their record was lost with the end of a torn log, or is younger than the backup that the store was
restored from.
"""

import logging
from itertools import islice

from core.jobs.store import JobStore
from core.storage.blobs import Blobs

# A week: time to notice that the store is not the one that belongs to these blobs.
KEEP_SECONDS = 7 * 86_400.0
BATCH_SIZE = 1000

log = logging.getLogger(__name__)


def register_orphans(store: JobStore, blobs: Blobs) -> None:
    """Tell the store about unknown blobs, so that they are deleted in a week.

    Raises StoreUnavailable.
    """
    digests = blobs.digests()
    orphans = 0
    while batch := [*islice(digests, BATCH_SIZE)]:
        orphans += store.register_orphans(batch, KEEP_SECONDS)
    if orphans:
        log.warning(
            "%d pictures belong to no job that the store knows; they are deleted in a week", orphans
        )
