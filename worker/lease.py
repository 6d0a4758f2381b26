"""Keeps the right to run a job alive beside the painting, and sends its progress. Turns loss and cancel into a stop.

A thread renews the lease once a second and carries the newest progress along. It alone talks to the store during
a run: the painting never waits for Redis, and goes on when Redis is away for a while. Knows no tensors.
"""

import logging
import threading
from collections.abc import Callable
from types import TracebackType

from PIL import Image

from core import errors
from core.jobs import JobProgress
from core.store import JobStore, Standing

BEAT_SECONDS = 1.0

log = logging.getLogger(__name__)


class Lease:
    """A context manager around one attempt at one job."""

    def __init__(self, store: JobStore, job_id: str, token: str, keep_preview: Callable[[Image.Image], str]) -> None:
        """`keep_preview` stores a picture as a blob and returns its digest; it may raise Unavailable."""
        self._store, self._job_id, self._token = store, job_id, token
        self._keep_preview = keep_preview
        self._standing: Standing = "ok"
        self._news: tuple[JobProgress, Image.Image | None] | None = None
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease-{job_id}", daemon=True)

    def __enter__(self) -> "Lease":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()

    def report(self, progress: JobProgress, preview: Image.Image | None = None) -> None:
        """Leave the newest progress for the next beat; a preview not yet sent stays until a newer one comes."""
        with self._lock:
            waiting = self._news[1] if self._news else None
            self._news = (progress, preview or waiting)

    def must_stop(self) -> bool:
        """True when somebody canceled the job. Raises LeaseLost when it is no longer ours."""
        if self._standing == "stale":
            raise errors.LeaseLost()
        return self._standing == "cancel"

    def _beat(self) -> None:
        while not self._over.wait(BEAT_SECONDS):
            try:
                self._standing = self._store.renew(self._job_id, self._token)
                self._send()
            except errors.Unavailable as error:  # the next beat tries again
                log.warning("%s: beat failed: %s", self._job_id, error.message)
            except Exception:  # a thread that has died in silence would lose the job to another worker
                log.exception("%s: beat failed", self._job_id)
            if self._standing == "stale":
                return

    def _send(self) -> None:
        with self._lock:
            news, self._news = self._news, None
        if news is None or self._standing == "stale":
            return
        progress, preview = news
        digest = None if preview is None else self._keep_preview(preview)
        self._standing = self._store.progress(self._job_id, self._token, progress, digest)
