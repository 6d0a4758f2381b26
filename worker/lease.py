"""Renews the lease of a running job in a thread, and tells the run when it must stop.

The thread renews about once a second, or at once when the store signals a change: a cancel, a
deletion, a spec update. It does nothing else that could take longer than a lease. The run never
waits for the store, and continues while the store is unavailable.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from core import errors
from core.jobs.store import JobStore, LeaseStatus
from worker.spec_updates import SpecUpdates

RENEW_SECONDS = 0.8  # shorter than the timeout after which a silent store is unavailable
RELEASE_SECONDS = 8.0  # after a shutdown began, the current iteration may take so long

# The statuses with which the run must stop and the job end.
STOPPING = ("cancel", "deadline_exceeded", "time_limit_exceeded")

log = logging.getLogger(__name__)


class Lease:
    """A context manager around one attempt at one job."""

    def __init__(
        self,
        store: JobStore,
        job_id: str,
        token: str,
        *,
        spec_updates: SpecUpdates | None = None,
        on_stop: Callable[[LeaseStatus], object] = lambda _: None,
        is_over_limit: Callable[[], bool] = lambda: False,
        shutting_down: threading.Event | None = None,
    ) -> None:
        """on_stop: called once when the job must stop: is canceled, over its deadline or the limit.

        It runs in the lease's thread and must not block. is_over_limit: whether the run has taken
        longer than the service allows. shutting_down: set when the worker must stop.
        """
        self._store, self._job_id, self._token = store, job_id, token
        self._spec_updates = spec_updates or SpecUpdates(store, job_id, token)
        self._on_stop, self._is_over_limit = on_stop, is_over_limit
        self._shutting_down = shutting_down or threading.Event()
        self._shutdown_at: float | None = None  # when the thread saw the shutdown first
        self._status: LeaseStatus = "ok"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lease-{job_id}", daemon=True)

    def __enter__(self) -> "Lease":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        with suppress(errors.Unavailable):
            self._store.send_signal(self._token)  # wakes the thread
        self._thread.join()

    @property
    def is_lost(self) -> bool:
        """Whether the job belongs to another worker, or has ended."""
        return self._status == "stale"

    def mark_lost(self) -> None:
        """The store has refused the token."""
        self._status = "stale"

    @property
    def status(self) -> LeaseStatus:
        """What the last renewal said."""
        return self._status

    def has_to_stop(self) -> bool:
        """Whether the job is canceled, over its deadline or over the limit. Raises LeaseLost."""
        if self.is_lost:
            raise errors.LeaseLost()
        return self._status != "ok"

    def _run(self) -> None:
        while not self._over.is_set():
            self._sleep()
            if self._over.is_set():
                return
            try:
                self._renew()
            except errors.Unavailable as error:  # retries after the next sleep
                log.warning("%s: the lease is not renewed: %s", self._job_id, error.message)
            except Exception:  # a thread that ended silently would lose the job to another worker
                log.exception("%s: the lease is not renewed", self._job_id)
            if self.is_lost:
                return

    def _sleep(self) -> None:
        """Sleep until the next renewal, or until the store signals a change."""
        try:
            self._store.wait_for_signal(self._token, RENEW_SECONDS)
        except errors.Unavailable:
            self._over.wait(RENEW_SECONDS)
        except Exception:
            log.exception("%s: the lease receives no signals", self._job_id)
            self._over.wait(RENEW_SECONDS)

    def _renew(self) -> None:
        status = self._store.renew(self._job_id, self._token, self._spec_updates.known_count)
        if status == "spec_updated":
            self._spec_updates.fetch()
            status = "ok"
        if status == "ok" and self._is_over_limit():
            status = "time_limit_exceeded"
        if self.is_lost:  # another thread has learned so meanwhile
            return
        previous, self._status = self._status, status
        if previous == "ok" and status in STOPPING:
            self._on_stop(status)
        if status == "ok" and self._is_release_due():
            self._store.release(self._job_id, self._token)
            self.mark_lost()

    def _is_release_due(self) -> bool:
        """Whether the shutdown began so long ago that the current iteration may outlast it."""
        if not self._shutting_down.is_set():
            return False
        self._shutdown_at = self._shutdown_at or time.monotonic()
        return time.monotonic() - self._shutdown_at > RELEASE_SECONDS
