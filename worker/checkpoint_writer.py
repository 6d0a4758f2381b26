"""Writes the checkpoints of one attempt beside the painting, and names the newest to the store.

Rare enough that it takes at most a fiftieth of the run; the painting never waits for it. Knows no tensors.
"""

import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Protocol

from core import errors
from core.jobs.store import LeaseStatus
from core.storage.checkpoints import Checkpoints

# Seconds between two checkpoints, for each second that writing one took.
_REST = 50

log = logging.getLogger(__name__)


class Saveable(Protocol):
    """A checkpoint, as far as a keeper cares."""

    def save(self, file: Path) -> bool:
        """False if the file is worth nothing."""


class CheckpointWriter:
    """One thread, one file at a time."""

    def __init__(
        self,
        folder: Checkpoints,
        name: Callable[[int], str],
        tell: Callable[[str], LeaseStatus],
        every_seconds: float,
    ) -> None:
        """name: of the n-th file. tell: tells the store which is the next to go on from; may raise Unavailable."""
        self._folder, self._name, self._tell, self._every = folder, name, tell, every_seconds
        self.restart_interval()
        self._count = 0
        self._files: list[str] = []  # written, and not deleted
        self._pool = ThreadPoolExecutor(1, "keeper")
        self._write: Future[None] | None = None
        self._closed = False

    def restart_interval(self) -> None:
        """Count the seconds until the first checkpoint from now."""
        self._next = time.monotonic() + self._every

    def is_due(self) -> bool:
        """Whether to take a checkpoint now."""
        return (
            not self._closed
            and (self._write is None or self._write.done())
            and time.monotonic() >= self._next
        )

    def submit(self, checkpoint: Saveable) -> None:
        """Write it and name it, on the thread."""
        if not self._closed:
            self._write = self._pool.submit(self._kept, checkpoint)

    def flush(self, seconds: float) -> None:
        """Wait for what is being written, at most so long."""
        if self._write is not None:
            wait([self._write], seconds)

    def close(self) -> None:
        """Take no more; and wait for what is being written."""
        self._closed = True
        self._pool.shutdown()

    def delete_all(self) -> None:
        """Delete all that was written: the job has ended, or its result needs the room."""
        self.close()
        while self._files:
            self._folder.delete(self._files.pop())

    def _is_written(self, checkpoint: Saveable, name: str) -> bool:
        """Whole and good, or not there at all: what is torn must not take the room of the result."""
        try:
            if checkpoint.save(self._folder.path(name)):
                return True
        except (OSError, RuntimeError) as error:  # the run goes on; so does the file before
            log.warning("no checkpoint: %s", error)
        self._folder.delete(name)
        return False

    def _kept(self, checkpoint: Saveable) -> None:
        name, began = self._name(self._count), time.monotonic()
        self._count += 1
        try:
            if self._is_written(checkpoint, name):
                self._files.append(name)
                if (
                    self._tell(name) == "stale"
                ):  # another worker goes on from an earlier one, which must stay
                    self._folder.delete(self._files.pop())
                    return
                while (
                    len(self._files) > 1
                ):  # only now is it sure that nobody will look for the earlier ones
                    self._folder.delete(self._files.pop(0))
        except errors.Unavailable as error:  # whether it was named is not known: both stay
            log.warning("no checkpoint: %s", error.message)
        except Exception:
            log.exception("no checkpoint")
        finally:
            took = time.monotonic() - began
            self._next = time.monotonic() + max(self._every, _REST * took)
