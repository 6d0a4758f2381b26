"""Deletes the images, and later the records, of jobs that ended long ago."""

from core.jobs.store import JobStore

BATCH_JOBS = 100  # in one call, so that other callers wait for some milliseconds at most
MAX_BATCHES = 20  # in one tick: more than jobs can be submitted in a second


def expire_jobs(store: JobStore, job_retention_seconds: float) -> None:
    """Expire the jobs that are due. job_retention_seconds: a record outlives its images by so long.

    What exceeds MAX_BATCHES follows in the next tick. Raises StoreUnavailable.
    """
    for _ in range(MAX_BATCHES):
        if store.expire_due(job_retention_seconds, BATCH_JOBS) < BATCH_JOBS:
            return
