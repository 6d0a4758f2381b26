"""What this process does and uses, for the metrics of the service. Heartbeats carry it.

The run counts its steps here, the thread of the heartbeats takes the counts. Knows no job.
"""

import logging
import os
import statistics
import threading
import time
from collections import deque

from core.jobs.models import WorkCounts, WorkerUse
from core.neural import device as devices
from core.neural.transfer.stylize import RunProgress
from core.neural.vgg import Network

# A run of less than so many planned seconds says little: starting it takes as long.
MIN_PLANNED_SECONDS = 1.0
RECENT_RUNS = 5
PACES = 0.5, 8.0  # beyond these, something else is wrong than the speed

log = logging.getLogger(__name__)


class RunStatistics:
    """The counts since the last heartbeat, and the speed of the run. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending = WorkCounts()
        self._counted = WorkCounts()  # of the current run
        self._iterations_per_second = 0.0
        self._paces: deque[float] = deque(maxlen=RECENT_RUNS)
        self._cpu_seconds, self._measured_at = time.process_time(), time.monotonic()

    def begin_run(self) -> None:
        """A run begins; its counts start at 0, its iteration perhaps not: it may resume."""
        with self._lock:
            self._counted = WorkCounts(iterations=-1)

    def count_step(self, progress: RunProgress) -> None:
        """Count what the run has done since its last step."""
        with self._lock:
            before = self._counted
            if before.iterations < 0:
                before = WorkCounts(iterations=progress.iteration - 1)
            self._counted = WorkCounts(
                iterations=progress.iteration,
                evaluations=progress.evaluations,
                evaluated_pixels=progress.evaluated_pixels,
            )
            self._pending += WorkCounts(
                # A scale that runs out of memory starts again.
                iterations=max(0, progress.iteration - before.iterations),
                evaluations=progress.evaluations - before.evaluations,
                evaluated_pixels=progress.evaluated_pixels - before.evaluated_pixels,
            )
            self._iterations_per_second = progress.iterations_per_second

    def end_run(self) -> None:
        """No job runs now."""
        with self._lock:
            self._iterations_per_second = 0.0

    def record_run(self, planned_seconds: float, seconds: float) -> None:
        """A run has ended as planned, after so many seconds."""
        if planned_seconds >= MIN_PLANNED_SECONDS:
            with self._lock:
                self._paces.append(seconds / planned_seconds)

    @property
    def pace(self) -> float:
        """How many times the planned seconds a run takes: the median of the recent ones, or 1.

        The throughput is measured once. Other programs may use the device since then.
        """
        with self._lock:
            pace = statistics.median(self._paces or [1.0])
        return min(max(pace, PACES[0]), PACES[1])

    def take(self) -> WorkCounts:
        """Return the counts, and start again at 0."""
        with self._lock:
            taken, self._pending = self._pending, WorkCounts()
            return taken

    def give_back(self, counts: WorkCounts) -> None:
        """Count again what could not be reported."""
        with self._lock:
            self._pending += counts

    def measure(self, network: Network) -> WorkerUse:
        """Return what is used now of the network's device. Call it from one thread."""
        device = network.device
        used = total = 0
        utilization = None
        try:
            used, total = devices.measure_memory(device)
            utilization = devices.measure_utilization(device)
        except (RuntimeError, OSError):
            log.debug("the device's use cannot be measured", exc_info=True)
        cpu_share = self._measure_cpu_share()
        if device.type == "cpu":
            utilization = cpu_share
        with self._lock:
            return WorkerUse(
                device=devices.device_label(device),
                memory_used_bytes=used,
                memory_total_bytes=total,
                utilization=utilization,
                iterations_per_second=round(self._iterations_per_second, 3),
            )

    def _measure_cpu_share(self) -> float:
        """Return the share of the machine's cores that this process used since the last call."""
        cpu_seconds, now = time.process_time(), time.monotonic()
        used, elapsed = cpu_seconds - self._cpu_seconds, now - self._measured_at
        self._cpu_seconds, self._measured_at = cpu_seconds, now
        return round(min(1.0, used / max(elapsed, 1e-3) / (os.cpu_count() or 1)), 3)
