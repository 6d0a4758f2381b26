"""Three threads in the worker's parent process, which never loads torch.

ChildMonitor requeues the jobs of pool children that have exited. StallMonitor ends a worker that
stays idle while jobs are queued. DrainMonitor ends a worker that the operator drains. They know the
store and the notification of workers, and not what a job contains.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime

from core import errors
from core.jobs.store import JobStore
from worker import process
from worker.process import process_name

CHILD_POLL_SECONDS = 0.2
STALL_POLL_SECONDS = 1.0
DRAIN_POLL_SECONDS = 1.0
# Longer than the 30 s that the broker's client waits between two attempts to connect.
STALL_SECONDS = 60.0
CHILD_START_SECONDS = 120.0  # Celery allows a child as long to become ready
SHUTDOWN_SECONDS = 30.0  # after SIGTERM, the worker is killed

log = logging.getLogger(__name__)


class ChildMonitor:
    """Requeues the jobs of pool children that have exited, before their leases expire."""

    def __init__(
        self,
        store: JobStore,
        notify: Callable[[], object],
        list_children: Callable[[], Iterable[int]],
    ) -> None:
        """list_children: the process ids of the pool's children now."""
        self._store, self._notify, self._list_children = store, notify, list_children
        self._alive: set[int] = set()
        self._exited: set[int] = set()

    def start(self) -> None:
        """Poll in a daemon thread."""
        threading.Thread(target=self._run, name="child-monitor", daemon=True).start()

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            try:
                self.poll()
            except errors.Unavailable as error:  # retries on the next poll
                log.warning("%s", error.message)
            except Exception:
                log.exception("polling the pool's children failed")
            pause.wait(CHILD_POLL_SECONDS)

    def poll(self) -> None:
        """One round. Raises StoreUnavailable."""
        alive = set(self._list_children())
        self._exited |= self._alive - alive
        self._alive = alive
        for pid in sorted(self._exited):
            requeued = self._store.requeue_jobs_of(process_name(pid))
            self._exited.discard(pid)
            if requeued:
                log.warning("process %d exited; its job is requeued", pid)
                self._notify()


class StallMonitor:
    """Ends this worker when jobs have been queued for a minute and its children run none.

    The heartbeat of a child does not show this: notifications arrive through the parent, and a
    child may hang outside an attempt. Whatever supervises the worker (a container runtime,
    `impasto up`) starts it again.
    """

    def __init__(
        self, store: JobStore, notify: Callable[[], object], list_children: Callable[[], list[int]]
    ) -> None:
        """list_children: the process ids of the pool's children now."""
        self._store, self._notify, self._list_children = store, notify, list_children
        self._child_ages: dict[int, float] = {}  # pid: seconds since it was first seen
        self._idle_seconds = 0.0
        self._has_notified = False

    def start(self) -> None:
        """Poll in a daemon thread."""
        threading.Thread(target=self._run, name="stall-monitor", daemon=True).start()

    def _run(self) -> None:
        pause, last_poll = threading.Event(), time.monotonic()
        while not self.is_stalled:
            pause.wait(STALL_POLL_SECONDS)
            now, previous = time.monotonic(), last_poll
            last_poll = now
            try:
                # Two polls may lie far apart because the whole worker was frozen.
                self.poll(min(now - previous, 2 * STALL_POLL_SECONDS))
            except errors.Unavailable:  # no worker could claim a job
                self._idle_seconds = 0.0
            except Exception:
                log.exception("polling the store for a stall failed")
        log.critical(
            "jobs are queued, and this worker has run none for %.0f s; it stops", self._idle_seconds
        )
        os.kill(os.getpid(), signal.SIGTERM)
        pause.wait(SHUTDOWN_SECONDS)
        for child in self._list_children():
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        process.exit_now("this worker does not stop by itself; it is ended")

    @property
    def is_stalled(self) -> bool:
        """Whether the worker must end."""
        return self._idle_seconds > STALL_SECONDS

    def poll(self, seconds: float) -> None:
        """One round, so many seconds after the last. Raises StoreUnavailable."""
        self._child_ages = {
            pid: self._child_ages.get(pid, 0.0) + seconds for pid in self._list_children()
        }
        ready = [pid for pid, age in self._child_ages.items() if age > CHILD_START_SECONDS]
        if not ready or not all(
            self._store.is_idle_with_backlog(process_name(pid)) for pid in ready
        ):
            self._idle_seconds, self._has_notified = 0.0, False
            return
        self._idle_seconds += seconds
        # The notification may be lost, and no reaper may be alive to repeat it.
        if self._idle_seconds > STALL_SECONDS / 2 and not self._has_notified:
            self._has_notified = True
            self._notify()


class DrainMonitor:
    """Ends this worker, with the exit code DRAINED, when the operator drains it.

    The running job ends first, or is released if the operator asks for that. A drain from before
    the start of this process has ended another one; this one stays, and is paused by it.
    """

    def __init__(
        self,
        store: JobStore,
        worker_id: str,
        list_children: Callable[[], Iterable[int]],
        release_jobs: Callable[[], object],
        stop: Callable[[int], object] = process.stop_worker,
    ) -> None:
        """list_children: the process ids of the pool's children now."""
        self._store, self._worker_id, self._list_children = store, worker_id, list_children
        self._release_jobs, self._stop = release_jobs, stop
        self._drained_before: datetime | None = None
        self._is_first_poll, self._has_released = True, False

    def start(self) -> None:
        """Poll in a daemon thread."""
        threading.Thread(target=self._run, name="drain-monitor", daemon=True).start()

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            try:
                if self.poll():
                    return
            except errors.Unavailable:  # retries on the next poll
                pass
            except Exception:
                log.exception("polling the store for a drain failed")
            pause.wait(DRAIN_POLL_SECONDS)

    def poll(self) -> bool:
        """One round. Returns whether the worker stops. Raises StoreUnavailable."""
        drain = self._store.suspensions.get(self._worker_id)
        if drain is not None and drain.kind != "draining":
            drain = None
        if self._is_first_poll:
            self._is_first_poll = False
            self._drained_before = drain.since if drain is not None else None
        if drain is None or drain.since == self._drained_before:
            return False
        if drain.release and not self._has_released:
            self._has_released = True
            self._release_jobs()
        if any(self._store.is_running(process_name(pid)) for pid in self._list_children()):
            return False
        log.warning("this worker is drained and stops")
        self._stop(process.DRAINED)
        return True
