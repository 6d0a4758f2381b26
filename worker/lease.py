"""Keeps the right to run a job alive beside the painting, and sends its progress. Turns loss and cancel into a stop.

A thread renews the lease about once a second, or at once when somebody wants the run to stop, and hears when the job's
spec was changed. A second one then carries what there is to tell, which may take longer than a lease: the disk may be
slow, the last picture large. They alone talk to the store during a run: the painting never waits for Redis, and goes on
when Redis is away for a while. Knows no tensors.
"""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Any

from PIL import Image

from core import errors
from core.jobs.models import JobProgress
from core.jobs.store import JobStore, LeaseStatus

RENEW_SECONDS = 0.8  # shorter than the time after which the store's silence is an error
FIRST_POLL_SECONDS = (
    0.1  # between two looks for the first news: who waits wants to see that it begins
)
MAX_DEFERRED = 4  # that wait for a beat
HAND_BACK_SECONDS = 8.0  # that an iteration has to end in, when the worker is asked to go

log = logging.getLogger(__name__)


class Lease:
    """A context manager around one attempt at one job."""

    def __init__(
        self,
        store: JobStore,
        job_id: str,
        token: str,
        keep_preview: Callable[[Image.Image], str],
        *,
        end: Callable[[LeaseStatus], object] = lambda _: None,
        leaving: threading.Event | None = None,
        spec_update_count: int = 0,
    ) -> None:
        """keep_preview: stores a picture as a blob and returns its digest; may raise Unavailable.

        end: ends the job that is canceled or late, without waiting for the painting. leaving: the worker is to go.
        spec_update_count: changes of the spec that the run knows of from the start.
        """
        self._store, self._job_id, self._token = store, job_id, token
        self._keep_preview, self._end = keep_preview, end
        self._leaving = leaving or threading.Event()
        self._left_at: float | None = None
        self._has_told = self._is_ending = False
        self._standing: LeaseStatus = "ok"
        self._heard = self._taken = spec_update_count
        self._spec: dict[str, Any] | None = None  # heard of, and not taken
        self._errands: list[Callable[[], object]] = []
        self._news: tuple[JobProgress, Image.Image | None] | None = None
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._beaten = threading.Event()  # since something was carried last
        self._threads = [
            threading.Thread(target=run, name=f"{name}-{job_id}", daemon=True)
            for name, run in (("lease", self._run), ("news", self._carry))
        ]

    def __enter__(self) -> "Lease":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        with suppress(errors.Unavailable):
            self._store.send_signal(self._token)
        self._beaten.set()
        for thread in self._threads:
            thread.join()

    def report(self, progress: JobProgress, preview: Image.Image | None = None) -> None:
        """Leave the newest progress for the next beat; a preview not yet sent stays until a newer one comes."""
        with self._lock:
            waiting = self._news[1] if self._news else None
            self._news = (progress, preview or waiting)

    def defer(self, errand: Callable[[], object]) -> None:
        """Leave something to be done after the next beat, beside the painting. Where too much waits, it is left out."""
        with self._lock:
            if len(self._errands) < MAX_DEFERRED:
                self._errands.append(errand)

    def should_stop(self) -> bool:
        """True when somebody canceled the job or its deadline is over. Raises LeaseLost when it is no longer ours."""
        if self._standing == "stale":
            raise errors.LeaseLost()
        return self._standing != "ok"

    def take_spec_update(self) -> dict[str, Any] | None:
        """The job's spec, once, when somebody has changed it."""
        with self._lock:
            spec, self._spec, self._taken = self._spec, None, self._heard
        return spec

    def lock_spec(self) -> LeaseStatus:
        """The painting is at its end: ask the store to change the spec no more, unless it has done so just now.

        Then `spec_updates` has it. Raises StoreUnavailable.
        """
        standing = self._store.lock_spec(self._job_id, self._token, self._taken)
        if standing == "spec_updated":
            self._hear()
        return standing

    def _hear(self) -> None:
        with suppress(errors.JobNotFound):  # the next beat finds out
            job = self._store.get(self._job_id)
            with self._lock:
                self._spec, self._heard = job.input.spec, job.spec_update_count

    def _run(self) -> None:
        while not self._over.is_set():
            self._sleep()
            if self._over.is_set():
                return
            try:
                self._beat()
            except errors.Unavailable as error:  # the next beat tries again
                log.warning("%s: beat failed: %s", self._job_id, error.message)
            except (
                Exception
            ):  # a thread that has died in silence would lose the job to another worker
                log.exception("%s: beat failed", self._job_id)
            self._beaten.set()
            if self._standing == "stale":
                return

    def _sleep(self) -> None:
        """Until the next beat: sooner if somebody asks for it, or when there is news for the first time."""
        until = time.monotonic() + RENEW_SECONDS
        try:
            while (left := until - time.monotonic()) > 0 and not self._over.is_set():
                if self._store.wait_for_signal(
                    self._token, left if self._has_told else min(left, FIRST_POLL_SECONDS)
                ):
                    return
                if self._news is not None and not self._has_told:
                    return
        except errors.Unavailable:
            self._over.wait(RENEW_SECONDS)
        except Exception:
            log.exception("%s: the lease does not hear", self._job_id)
            self._over.wait(RENEW_SECONDS)

    def _beat(self) -> None:
        standing = self._store.renew(self._job_id, self._token, self._heard)
        if standing == "spec_updated":
            self._hear()
            standing = "ok"
        self._standing = standing
        if standing == "ok" and self._must_leave():
            self._store.release(self._job_id, self._token)
            self._standing = "stale"

    def _carry(self) -> None:
        """After each beat, until the run is over."""
        while not self._over.is_set() and self._standing != "stale":
            self._beaten.wait()
            self._beaten.clear()
            if self._over.is_set():
                return
            try:
                self._end_early()
                self._send()
                self._run_errands()
            except errors.Unavailable as error:
                log.warning("%s: nothing is told: %s", self._job_id, error.message)
            except (Exception, errors.Interrupt):  # the run meets the interrupt as well
                log.exception("%s: nothing is told", self._job_id)

    def _end_early(self) -> None:
        """Once. Should it fail, the run ends itself."""
        if self._standing in ("cancel", "deadline_exceeded") and not self._is_ending:
            self._is_ending = True
            self._end(self._standing)

    def _run_errands(self) -> None:
        with self._lock:
            errands, self._errands = self._errands, []
        for errand in errands:
            if self._standing != "stale":
                errand()

    def _must_leave(self) -> bool:
        """The worker was asked to go a while ago, and one iteration takes longer than that."""
        if not self._leaving.is_set():
            return False
        self._left_at = self._left_at or time.monotonic()
        return time.monotonic() - self._left_at > HAND_BACK_SECONDS

    def _send(self) -> None:
        with self._lock:
            news, self._news = self._news, None
        if news is None or self._standing == "stale":
            return
        self._has_told = True
        progress, preview = news
        digest = None if preview is None else self._keep_preview(preview)
        standing = self._store.report_progress(self._job_id, self._token, progress, digest)
        if standing == "stale":
            self._standing = standing
