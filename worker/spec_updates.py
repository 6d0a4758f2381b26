"""The spec updates of a running job: which ones the run knows, and which ones it has applied."""

import threading
from contextlib import suppress
from typing import Any

from core import errors
from core.jobs.store import JobStore, LeaseStatus


class SpecUpdates:
    """Carries the newest spec from the lease's thread to the run."""

    def __init__(self, store: JobStore, job_id: str, token: str, count: int = 0) -> None:
        """count: updates that the run knows from the start."""
        self._store, self._job_id, self._token = store, job_id, token
        self._known_count = self._applied_count = count
        self._spec: dict[str, Any] | None = None  # fetched, and not yet taken by the run
        self._lock = threading.Lock()

    @property
    def known_count(self) -> int:
        """Updates that were fetched. With each renewal the store says whether there are more."""
        return self._known_count

    def fetch(self) -> None:
        """Read the newest spec. Raises StoreUnavailable."""
        with suppress(errors.JobNotFound):  # the next renewal reports the lost lease
            job = self._store.get(self._job_id)
            with self._lock:
                self._spec, self._known_count = job.input.spec, job.spec_update_count

    def take(self) -> dict[str, Any] | None:
        """Return the job's spec, once after each update; else None."""
        with self._lock:
            spec, self._spec, self._applied_count = self._spec, None, self._known_count
        return spec

    def lock_spec(self) -> LeaseStatus:
        """Ask the store to refuse further updates, because the run is at its end.

        If there is an update that the run has not applied, the spec stays unlocked, and `take`
        returns the update. Raises StoreUnavailable.
        """
        status = self._store.lock_spec(self._job_id, self._token, self._applied_count)
        if status == "spec_updated":
            self.fetch()
        return status
