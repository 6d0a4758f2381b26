"""Whether an attempt still moves. One that hangs ends its process: a card, a disk or a lock may never answer.

The lease and the sign of life vouch for the process, and would do so for ever. A thread beside the painting counts the
seconds in which nothing has ended. Knows no jobs and no store.
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
STEP_SECONDS = 60.0  # that an iteration may take, and the beginning of a scale
STEP_FACTOR = 20  # or so many times the slowest so far: each scale begins with a look at the paintings, and is slower
PHASE_SECONDS = (
    600.0  # for what has no iterations: to read, load and measure, begin a run, write a result
)
CPU_PROGRESS_SECONDS = 0.02  # of the painting thread's own time, that show that it works


class HangWatchdog:
    """A context manager, to be entered by the thread that paints."""

    def __init__(
        self, spins: Callable[[], bool], end: Callable[[str], object] = process.exit_now
    ) -> None:
        """spins: whether who waits for the device computes meanwhile: then a thread that computes may hang.

        end: is told why.
        """
        self._spins, self._end = spins, end
        self._on: Literal["host", "device"] = "host"
        self._silent = self._slowest = 0.0
        self._patience = PHASE_SECONDS
        self._lock = threading.Lock()
        self._over = threading.Event()

    def __enter__(self) -> "HangWatchdog":
        self._painting = threading.get_ident()
        threading.Thread(target=self._watch, name="pulse", daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()

    def begin_phase(self, on: Literal["host", "device"]) -> None:
        """Something that has no iterations begins. On the device: that the thread computes may mean nothing."""
        with self._lock:
            self._on, self._silent, self._patience = on, 0.0, PHASE_SECONDS

    def report_step(self) -> None:
        """An iteration has ended."""
        with self._lock:
            self._slowest = max(self._slowest, self._silent)
            self._on, self._silent, self._patience = (
                "device",
                0.0,
                max(STEP_SECONDS, STEP_FACTOR * self._slowest),
            )

    def reset_timer(self) -> None:
        """It is known what is waited for, and that it is away."""
        with self._lock:
            self._silent = 0.0

    def _watch(self) -> None:
        # By the thread's own clock, where there is one; else by that of the process.
        clock = getattr(time, "pthread_getcpuclockid", lambda _: time.CLOCK_PROCESS_CPUTIME_ID)(
            self._painting
        )
        looked, computed = time.monotonic(), time.clock_gettime(clock)
        while not self._over.wait(POLL_SECONDS):
            # Two looks may lie far apart because the whole process was frozen, which is no fault of the painting.
            now, then = time.monotonic(), looked
            looked, seconds = now, min(now - then, 2 * POLL_SECONDS)
            with self._lock:
                self._silent += seconds
                counts = self._on == "host" or not self._spins()
                if (
                    counts
                    and (by_now := time.clock_gettime(clock)) - computed > CPU_PROGRESS_SECONDS
                ):
                    self._silent, computed = 0.0, by_now
                silent, hangs = self._silent, self._silent > self._patience
            if hangs:
                self._end(
                    f"nothing has moved for {silent:.0f} s; this process ends; it hangs in {self._place()}"
                )
                return

    def _place(self) -> str:
        """The innermost first."""
        stack = traceback.extract_stack(sys._current_frames().get(self._painting))
        return " < ".join(
            f"{Path(call.filename).name}:{call.lineno} {call.name}" for call in reversed(stack[-8:])
        )
