"""Brings records of an earlier version into the indexes of this one."""

from core.jobs.store import JobStore


def rebuild_indexes(store: JobStore) -> None:
    """Index what earlier versions have written, also while their processes still run.

    Raises StoreUnavailable.
    """
    store.rebuild_indexes()
