"""Deletes the images, and later the records, of jobs that ended long ago."""

from core.jobs.store import JobStore


def expire_jobs(store: JobStore, record_seconds: float) -> None:
    """Expire the jobs that are due. record_seconds: a record outlives its images by so long.

    Raises StoreUnavailable.
    """
    store.expire_due(record_seconds)
