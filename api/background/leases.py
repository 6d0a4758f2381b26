"""Requeues the jobs of workers that no longer renew their leases."""

import logging

from core.jobs.store import JobStore

log = logging.getLogger(__name__)


def requeue_expired(store: JobStore) -> None:
    """Requeue jobs whose lease has expired; end those that were lost too often or waited too long.

    Raises StoreUnavailable.
    """
    requeued, ended = store.reap_expired_leases()
    if requeued or ended:
        log.warning("leases expired: %d jobs are requeued, %d have ended", requeued, ended)
