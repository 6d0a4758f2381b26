"""Watches the pool's children from the parent: the job of one that died is put back at once, not when its lease ends.

A thread in the worker's parent process, which never loads torch. Knows the store and the doorbell, no pictures.
"""

import logging
import threading
from collections.abc import Callable, Iterable

from core import errors
from core.jobs.store import JobStore
from worker.names import name_of

LOOK_SECONDS = 0.2

log = logging.getLogger(__name__)


class Mourner:
    """Buries who was there and is not any more."""

    def __init__(self, store: JobStore, ring: Callable[[], object], living: Callable[[], Iterable[int]]) -> None:
        """living: the process ids of the children now."""
        self._store, self._ring, self._living = store, ring, living
        self._known: set[int] = set()
        self._dead: set[int] = set()

    def start(self) -> None:
        """Look from now on."""
        threading.Thread(target=self._run, name="mourner", daemon=True).start()

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            try:
                self.look()
            except errors.Unavailable as error:  # the dead wait for the next look
                log.warning("%s", error.message)
            except Exception:
                log.exception("looking for dead children failed")
            pause.wait(LOOK_SECONDS)

    def look(self) -> None:
        """One round. Raises StoreUnavailable."""
        living = set(self._living())
        self._dead |= self._known - living
        self._known = living
        for pid in sorted(self._dead):
            again = self._store.bury(name_of(pid))
            self._dead.discard(pid)
            for _ in range(again):
                log.warning("process %d died; its job is put back", pid)
                self._ring()
