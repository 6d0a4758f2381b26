"""Ends the process of an attempt that hangs: a card, a disk or a lock may never answer.

The lease and the heartbeat show only that the process lives, so they would be renewed for ever. A
thread beside the run counts the seconds without progress. Knows no jobs and no store.
"""

import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Literal

from worker import process

POLL_SECONDS = 1.0
# Timeout of an iteration, and of the start of a scale; or this many times the slowest iteration so
# far, because the first iteration of a scale also computes the style targets and is slower.
STEP_SECONDS = 60.0
STEP_FACTOR = 20
# Timeout of a phase without iterations: reading, loading, measuring, the start of a run, writing a
# result.
PHASE_SECONDS = 600.0
CPU_PROGRESS_SECONDS = 0.02  # CPU time of the run's thread that counts as progress


class HangWatchdog:
    """A context manager; the thread that runs the job must enter it."""

    def __init__(
        self, busy_waits: Callable[[], bool], end: Callable[[str], object] = process.exit_now
    ) -> None:
        """busy_waits: whether a thread that waits for the device uses CPU time all the while.

        Then CPU time is no progress during a device phase. end: called with the reason.
        """
        self._busy_waits, self._end = busy_waits, end
        self._phase: Literal["host", "device"] = "host"
        self._idle_seconds = self._slowest_seconds = 0.0
        self._timeout_seconds = PHASE_SECONDS
        self._lock = threading.Lock()
        self._stop = threading.Event()

    def __enter__(self) -> "HangWatchdog":
        self._watched_thread = threading.get_ident()
        threading.Thread(target=self._run, name="hang-watchdog", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()

    def begin_phase(self, phase: Literal["host", "device"]) -> None:
        """A phase without iterations begins. On the device, CPU time may be no progress."""
        with self._lock:
            self._phase, self._idle_seconds, self._timeout_seconds = phase, 0.0, PHASE_SECONDS

    def report_step(self) -> None:
        """An iteration has completed."""
        with self._lock:
            self._slowest_seconds = max(self._slowest_seconds, self._idle_seconds)
            self._phase, self._idle_seconds = "device", 0.0
            self._timeout_seconds = max(STEP_SECONDS, STEP_FACTOR * self._slowest_seconds)

    def reset_timer(self) -> None:
        """Reset the timer while the run waits for a dependency that is known to be unavailable."""
        with self._lock:
            self._idle_seconds = 0.0

    def _run(self) -> None:
        # The CPU clock of the watched thread, where the system has one; else that of the process.
        clock_of = getattr(time, "pthread_getcpuclockid", lambda _: time.CLOCK_PROCESS_CPUTIME_ID)
        clock = clock_of(self._watched_thread)
        last_poll, last_cpu = time.monotonic(), time.clock_gettime(clock)
        while not self._stop.wait(POLL_SECONDS):
            # Two polls may lie far apart because the whole process was frozen. The run did not hang
            # then.
            now, previous = time.monotonic(), last_poll
            last_poll, seconds = now, min(now - previous, 2 * POLL_SECONDS)
            with self._lock:
                self._idle_seconds += seconds
                cpu = time.clock_gettime(clock)
                cpu_counts = self._phase == "host" or not self._busy_waits()
                if cpu_counts and cpu - last_cpu > CPU_PROGRESS_SECONDS:
                    self._idle_seconds, last_cpu = 0.0, cpu
                idle_seconds = self._idle_seconds
                hangs = idle_seconds > self._timeout_seconds
            if hangs:
                self._end(
                    f"nothing has moved for {idle_seconds:.0f} s; this process ends; "
                    f"it hangs in {self._format_stack()}"
                )
                return

    def _format_stack(self) -> str:
        """The watched thread's stack, innermost call first."""
        stack = traceback.extract_stack(sys._current_frames().get(self._watched_thread))
        return " < ".join(
            f"{Path(call.filename).name}:{call.lineno} {call.name}" for call in reversed(stack[-8:])
        )
