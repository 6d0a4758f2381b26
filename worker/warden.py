"""Watches from the worker's parent that its child works while jobs wait; ends a worker that is deaf or stuck.

The child's sign of life says nothing of that: the bells come through the parent, and a child may hang where no attempt
looks. Who watches the worker starts it again. Knows the store and the doorbell, no jobs.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from core import errors
from core.jobs.store import JobStore
from worker import exits
from worker.names import name_of

LOOK_SECONDS = 1.0
DEAF_SECONDS = 60.0  # longer than the broker's client waits between two tries to connect: 30
BEGIN_SECONDS = 120.0  # that a child may take to be ready: Celery gives it as long
LEAVE_SECONDS = 30.0  # after which a worker that was asked to go is made to

log = logging.getLogger(__name__)


class Warden:
    """Counts the seconds that jobs have waited for an idle worker."""

    def __init__(self, store: JobStore, ring: Callable[[], object], living: Callable[[], list[int]]) -> None:
        """living: the process ids of the children now."""
        self._store, self._ring, self._living = store, ring, living
        self._ages: dict[int, float] = {}  # seconds that each child has been seen
        self._idle = 0.0
        self._has_rung = False

    def start(self) -> None:
        """Look from now on."""
        threading.Thread(target=self._run, name="warden", daemon=True).start()

    def _run(self) -> None:
        pause, looked = threading.Event(), time.monotonic()
        while not self.is_deaf:
            pause.wait(LOOK_SECONDS)
            # Two looks may lie far apart because the whole worker was frozen.
            now, then = time.monotonic(), looked
            looked = now
            try:
                self.look(min(now - then, 2 * LOOK_SECONDS))
            except errors.Unavailable:  # nobody could work
                self._idle = 0.0
            except Exception:
                log.exception("looking at the child failed")
        log.critical("jobs wait, and this worker does nothing for %.0f s; it stops", self._idle)
        os.kill(os.getpid(), signal.SIGTERM)
        pause.wait(LEAVE_SECONDS)
        for child in self._living():
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        exits.at_once("this worker does not stop by itself; it is ended")

    @property
    def is_deaf(self) -> bool:
        """Whether the worker is to go."""
        return self._idle > DEAF_SECONDS

    def look(self, seconds: float) -> None:
        """One round, so many seconds after the last. Raises StoreUnavailable."""
        self._ages = {pid: self._ages.get(pid, 0.0) + seconds for pid in self._living()}
        ready = [pid for pid, age in self._ages.items() if age > BEGIN_SECONDS]
        if not ready or not all(self._store.idles(name_of(pid)) for pid in ready):
            self._idle, self._has_rung = 0.0, False
            return
        self._idle += seconds
        if self._idle > DEAF_SECONDS / 2 and not self._has_rung:  # the bells may be lost, and nobody there to ring
            self._has_rung = True
            self._ring()
