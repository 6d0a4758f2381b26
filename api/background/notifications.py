"""Wakes workers that are idle although jobs are queued.

A notification may be lost with the broker, or its worker may die. A batch and a dead worker
notify only once for many jobs.
"""

from celery import Celery

from core.celery_app import MAX_PENDING, notify_workers
from core.jobs.store import JobStore


def notify_idle_workers(store: JobStore, celery: Celery) -> None:
    """Send a message for each idle worker while jobs are queued. Raises StoreUnavailable.

    Not only one per queued job: perhaps only the last idle worker may take it. A message too many
    does no harm: its worker finds no job.
    """
    if not store.count_queued():
        return
    idle = sum(not is_busy for _, is_busy in store.list_workers())
    for _ in range(min(idle, MAX_PENDING)):
        if not notify_workers(celery):
            return  # the broker is unavailable; the next tick tries again
