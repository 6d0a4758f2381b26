"""Sends the progress and the previews of a run, and makes deferred calls, in a thread beside it.

A call may take longer than a lease, because the disk may be slow and a picture large. So the
lease has a thread of its own. The run never waits for the store. Knows no tensors.
"""

import logging
import threading
from collections.abc import Callable
from types import TracebackType

from PIL import Image

from core import errors
from core.jobs.models import JobProgress
from core.jobs.store import JobStore
from worker.lease import Lease

REPORT_SECONDS = 0.8
MAX_DEFERRED = 4  # calls that may wait for the next report

log = logging.getLogger(__name__)


class Reporter:
    """A context manager inside the lease's."""

    def __init__(
        self,
        store: JobStore,
        job_id: str,
        token: str,
        lease: Lease,
        write_preview: Callable[[Image.Image], str],
    ) -> None:
        """write_preview: stores a picture and returns its digest; may raise Unavailable."""
        self._store, self._job_id, self._token = store, job_id, token
        self._lease, self._write_preview = lease, write_preview
        self._urgent: list[Callable[[], object]] = []
        self._deferred: list[Callable[[], object]] = []
        self._pending: tuple[JobProgress | None, Image.Image | None] | None = None
        self._has_reported = False
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(
            target=self._report_loop, name=f"reporter-{job_id}", daemon=True
        )

    def __enter__(self) -> "Reporter":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._wake.set()
        self._thread.join()

    def report(self, progress: JobProgress | None, preview: Image.Image | None = None) -> None:
        """Leave the progress for the next report. An unsent preview stays until a newer one.

        progress: None before the first iteration.

        The first progress and each preview are reported at once.
        """
        with self._lock:
            unsent = self._pending[1] if self._pending else None
            self._pending = (progress, preview or unsent)
        # The client wants to see at once that its job has started.
        if preview is not None or not self._has_reported:
            self._wake.set()

    def defer(self, call: Callable[[], object]) -> None:
        """Make the call after the next report. If too many calls wait already, drop it."""
        with self._lock:
            if len(self._deferred) < MAX_DEFERRED:
                self._deferred.append(call)

    def call_soon(self, call: Callable[[], object]) -> None:
        """Make the call as soon as possible, before the next report."""
        with self._lock:
            self._urgent.append(call)
        self._wake.set()

    def _report_loop(self) -> None:
        while True:
            self._wake.wait(REPORT_SECONDS)
            self._wake.clear()
            if self._over.is_set() or self._lease.is_lost:
                return
            try:
                self._make_calls(self._urgent)
                self._send_pending()
                self._make_calls(self._deferred)
            except errors.Unavailable as error:
                log.warning("%s: no progress is reported: %s", self._job_id, error.message)
            except (Exception, errors.Interrupt):  # an interrupt reaches the run as well
                log.exception("%s: no progress is reported", self._job_id)

    def _make_calls(self, calls: list[Callable[[], object]]) -> None:
        with self._lock:
            due = calls.copy()
            calls.clear()
        for call in due:
            if not self._lease.is_lost:
                call()

    def _send_pending(self) -> None:
        with self._lock:
            pending, self._pending = self._pending, None
        if pending is None or self._lease.is_lost:
            return
        self._has_reported = True
        progress, preview = pending
        digest = None if preview is None else self._write_preview(preview)
        status = self._store.report_progress(self._job_id, self._token, progress, digest)
        if status == "stale":
            self._lease.mark_lost()
