"""Writes the checkpoints of one attempt in a thread, and names the newest one to the store.

The run never waits for it. Checkpoints are rare enough that they take at most a fiftieth of the
run's time. Knows no tensors.
"""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Protocol

from core import errors
from core.jobs.store import LeaseStatus
from core.storage.checkpoints import Checkpoints

REST_FACTOR = 50  # seconds between two checkpoints, for each second that writing one took
# The same for each second of an upload to a bucket, which takes the network's time, not the run's.
UPLOAD_REST_FACTOR = 4

log = logging.getLogger(__name__)


class Saveable(Protocol):
    """A checkpoint, as far as the writer needs to know it."""

    def save(self, file: Path) -> bool:
        """Write the file. Returns False if the file is useless, for example not finite."""


class CheckpointWriter:
    """One thread, which writes one file at a time."""

    def __init__(
        self,
        folder: Checkpoints,
        name_file: Callable[[int], str],
        publish: Callable[[str], LeaseStatus],
        interval_seconds: float,
    ) -> None:
        """name_file: returns the name of the n-th file.

        publish: tells the store from which file the next attempt resumes. May raise Unavailable.
        """
        self._folder, self._name_file, self._publish = folder, name_file, publish
        self._interval_seconds = interval_seconds
        self.restart_interval()
        self._count = 0
        self._files: list[str] = []  # written and not yet deleted
        self._pool = ThreadPoolExecutor(1, "checkpoint-writer")
        self._write: Future[None] | None = None
        self._closed = False
        self._upload_seconds = 0.0  # of the newest checkpoint
        self._lock = threading.Lock()  # the run submits while the reporter may delete all

    def restart_interval(self) -> None:
        """Count the interval until the next checkpoint from now."""
        self._next = time.monotonic() + self._interval_seconds

    def is_due(self) -> bool:
        """Whether the run must submit a checkpoint now."""
        return (
            not self._closed
            and (self._write is None or self._write.done())
            and time.monotonic() >= self._next
        )

    def submit(self, checkpoint: Saveable) -> None:
        """Write the checkpoint and name it to the store, in the thread."""
        with self._lock:
            if not self._closed:
                self._write = self._pool.submit(self._write_and_publish, checkpoint)

    def flush(self, seconds: float) -> None:
        """Wait for the current write, at most so many seconds."""
        if self._write is not None:
            wait([self._write], seconds)

    def close(self) -> None:
        """Accept no more checkpoints, and wait for the current write."""
        with self._lock:
            self._closed = True
        self._pool.shutdown()

    def delete_all(self) -> None:
        """Close, and delete all files: the job has ended, or its result needs the room."""
        self.close()
        with self._lock:
            while self._files:
                self._folder.delete(self._files.pop())

    def _save(self, checkpoint: Saveable, name: str) -> bool:
        """Write a complete and useful file, or none: a torn one would take the result's room."""
        try:
            if checkpoint.save(self._folder.path(name)):
                self._upload(name)
                return True
        except (OSError, RuntimeError, errors.Unavailable) as error:
            log.warning("no checkpoint: %s", error)  # the run continues; the previous file stays
        self._folder.delete(name)
        return False

    def _upload(self, name: str) -> None:
        start = time.monotonic()
        try:
            self._folder.publish(name)
        finally:
            self._upload_seconds = time.monotonic() - start

    def _write_and_publish(self, checkpoint: Saveable) -> None:
        name, start = self._name_file(self._count), time.monotonic()
        self._count += 1
        self._upload_seconds = 0.0
        try:
            if self._save(checkpoint, name):
                self._files.append(name)
                if self._publish(name) == "stale":
                    # Another worker resumes from an earlier file, which must stay.
                    self._folder.delete(self._files.pop())
                    return
                # Only now is it certain that no attempt resumes from the earlier files.
                while len(self._files) > 1:
                    self._folder.delete(self._files.pop(0))
        except errors.Unavailable as error:
            # The store may have the old name or the new one, so both files stay.
            log.warning("no checkpoint: %s", error.message)
        except Exception:
            log.exception("no checkpoint")
        finally:
            upload = self._upload_seconds
            rest = REST_FACTOR * (time.monotonic() - start - upload) + UPLOAD_REST_FACTOR * upload
            self._next = time.monotonic() + max(self._interval_seconds, rest)
