"""Deletes the images, and later the records, of jobs that ended long ago."""

from core.jobs.store import JobStore


def expire_jobs(store: JobStore, job_retention_seconds: float) -> None:
    """Expire the jobs that are due. job_retention_seconds: a record outlives its images by so long.

    Raises StoreUnavailable.
    """
    store.expire_due(job_retention_seconds)
