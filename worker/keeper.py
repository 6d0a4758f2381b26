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
from core.checkpoints import Checkpoints

# Seconds between two checkpoints, for each second that writing one took.
_REST = 50

log = logging.getLogger(__name__)


class Savable(Protocol):
    """A checkpoint, as far as a keeper cares."""

    def save(self, file: Path) -> bool:
        """False if the file is worth nothing."""


class Keeper:
    """One thread, one file at a time."""

    def __init__(
        self, folder: Checkpoints, name: Callable[[int], str], tell: Callable[[str], object], every_seconds: float
    ) -> None:
        """name: of the n-th file. tell: the store, which is the next to go on from; may raise Unavailable."""
        self._folder, self._name, self._tell, self._every = folder, name, tell, every_seconds
        self._next = time.monotonic() + every_seconds
        self._count = 0
        self._files: list[str] = []  # written, and not deleted
        self._pool = ThreadPoolExecutor(1, "keeper")
        self._write: Future[None] | None = None

    def is_due(self) -> bool:
        """Whether to take a checkpoint now."""
        return (self._write is None or self._write.done()) and time.monotonic() >= self._next

    def take(self, checkpoint: Savable) -> None:
        """Write it and name it, on the thread."""
        self._write = self._pool.submit(self._kept, checkpoint)

    def settle(self, seconds: float) -> None:
        """Wait for what is being written, at most so long."""
        if self._write is not None:
            wait([self._write], seconds)

    def close(self) -> None:
        """Take no more; and wait for what is being written."""
        self._pool.shutdown()

    def forget(self) -> None:
        """Delete all that was written: the job has ended."""
        self.close()
        for name in self._files:
            self._folder.delete(name)

    def _kept(self, checkpoint: Savable) -> None:
        name, began = self._name(self._count), time.monotonic()
        self._count += 1
        try:
            self._files.append(name)
            if checkpoint.save(self._folder.path(name)):
                self._tell(name)
                # Only now is it sure that nobody will look for the earlier ones.
                while len(self._files) > 1:
                    self._folder.delete(self._files.pop(0))
        except (OSError, RuntimeError, errors.Unavailable) as error:  # the run goes on; so does the file before
            log.warning("no checkpoint: %s", error)
        except Exception:
            log.exception("no checkpoint")
        took = time.monotonic() - began
        self._next = time.monotonic() + max(self._every, _REST * took)
