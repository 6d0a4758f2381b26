"""One worker process per device, each bound to its device: the program of IMPASTO_WORKER_DEVICES.

A worker that ends is started again, later and later if it keeps ending. A device that is gone or
broken is taken out of service, in the store, while the others go on; the operator can resume it.
Never loads torch.
"""

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from celery.platforms import set_pdeathsig  # type: ignore[attr-defined]

from core import errors
from core.jobs.store import JobStore
from worker import process
from worker.settings import WorkerSettings

POLL_SECONDS = 0.2
STORE_SECONDS = 2.0  # between two looks whether the operator has resumed a device
MIN_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 1.0, 60.0
STABLE_SECONDS = 120.0  # a worker that has lived so long starts again at once
STOP_SECONDS = 25.0  # less than `impasto up` waits for the supervisor
SMI_TIMEOUT_SECONDS = 20.0  # nvidia-smi hangs if the driver does

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Device:
    """A device of this machine: `cpu`, or a card. uuid: "" if nvidia-smi does not tell it."""

    number: str
    uuid: str = ""
    name: str = ""

    @property
    def label(self) -> str:
        """As in the id of its worker."""
        return self.number if self.number == "cpu" else f"cuda:{self.number}"


def list_cards() -> list[Device] | None:
    """The cards that nvidia-smi lists and CUDA_VISIBLE_DEVICES allows. None if it fails."""
    command = ["nvidia-smi", "--query-gpu=index,uuid,name", "--format=csv,noheader"]
    try:
        ran = subprocess.run(
            command, capture_output=True, text=True, timeout=SMI_TIMEOUT_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    rows = [line.split(", ", 2) for line in ran.stdout.splitlines()]
    cards = [Device(*row) for row in rows if len(row) == 3]
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is None:
        return cards
    named = [name for name in allowed.split(",") if name]
    return [card for card in cards if any(_is_named(card, name) for name in named)]


def _is_named(card: Device, name: str) -> bool:
    return name == card.number or (name.startswith("GPU-") and card.uuid.startswith(name))


def list_devices(wanted: str) -> list[Device]:
    """The devices of a setting: `all`, or numbers and `cpu`.

    Without nvidia-smi, a number is taken as it is. Raises BadSettings for an absent card.
    """
    if not wanted:
        return []
    cards = list_cards()
    if wanted == "all":
        if not cards:
            raise errors.BadSettings(
                "IMPASTO_WORKER_DEVICES: nvidia-smi finds no card; use cpu, or numbers of cards."
            )
        return cards
    known = {card.number: card for card in cards or ()}
    names = list(dict.fromkeys(wanted.split(",")))
    absent = [name for name in names if cards is not None and name not in known and name != "cpu"]
    if absent:
        raise errors.BadSettings(
            f"IMPASTO_WORKER_DEVICES: there is no card {', '.join(absent)}; `nvidia-smi -L` lists "
            "those there are."
        )
    return [known.get(name, Device(name)) for name in names]


class DeviceWorker:
    """The worker of one device: its process, and when it may start again."""

    def __init__(
        self, device: Device, worker_id: str, command: Sequence[str], environment: dict[str, str]
    ) -> None:
        self.device, self.worker_id = device, worker_id
        self._command, self._environment = command, environment
        self._process: subprocess.Popen[bytes] | None = None
        self._started_at = self._start_at = 0.0
        self._backoff_seconds = MIN_BACKOFF_SECONDS
        self.is_out = False  # out of service, drained or refused: it does not start by itself

    @property
    def is_running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None

    @property
    def is_due(self) -> bool:
        """Whether it must start now."""
        return not self.is_out and self._process is None and time.monotonic() >= self._start_at

    def start(self) -> None:
        """Start the process in a session of its own, so that Ctrl-C reaches this process only."""
        self._started_at = time.monotonic()
        self._process = subprocess.Popen(
            self._command,
            env=os.environ | self._environment,
            start_new_session=True,
            preexec_fn=_die_with_parent,  # noqa: PLW1509 - no threads here that could hold a lock
        )

    def take_exit_code(self) -> int | None:
        """Return the exit code once after the end of the process, and schedule the next start."""
        if self._process is None or (code := self._process.poll()) is None:
            return None
        self._process = None
        if time.monotonic() - self._started_at >= STABLE_SECONDS:
            self._backoff_seconds = MIN_BACKOFF_SECONDS
        self._start_at = time.monotonic() + self._backoff_seconds
        self._backoff_seconds = min(MAX_BACKOFF_SECONDS, 2 * self._backoff_seconds)
        return code

    def resume(self) -> None:
        """Let it start again at once."""
        self.is_out, self._start_at, self._backoff_seconds = False, 0.0, MIN_BACKOFF_SECONDS

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process if it lives."""
        if self._process is not None and self.is_running:
            self._process.send_signal(number)


def _die_with_parent() -> None:
    set_pdeathsig("SIGKILL")


class DeviceSupervisor:
    """Starts, watches and stops the workers of several devices."""

    def __init__(
        self,
        devices: Sequence[Device],
        store: JobStore,
        settings: WorkerSettings,
        command: Sequence[str] = (sys.executable, "-m", "worker"),
        find_cards: Callable[[], Sequence[Device] | None] = list_cards,
    ) -> None:
        """command: of one worker. find_cards: the cards that are there now; None: not known."""
        self._store, self._find_cards = store, find_cards
        threads = settings.threads or max(1, (os.cpu_count() or 1) // len(devices))
        self._workers = [
            DeviceWorker(
                device,
                settings.id_of(device.label),
                command,
                _environment_of(device, settings.id_of(device.label), threads),
            )
            for device in devices
        ]
        self._next_look = 0.0
        self._last_code = 0  # of the supervisor, if the worker that ended last was the last one
        self._stopping = threading.Event()

    def run(self) -> int:
        """Supervise until SIGTERM or SIGINT, or until no worker is left. Returns the exit code."""
        process.on_signals(self._stopping.set, signal.SIGTERM, signal.SIGINT)
        for worker in self._workers:  # what an earlier supervisor found may be repaired
            self._clear_out_of_service(worker)
        while not self._stopping.wait(POLL_SECONDS):
            exit_code = self.poll()
            if exit_code is not None:
                return exit_code
        self.stop()
        return 0

    def poll(self) -> int | None:
        """One round. Returns the exit code if no worker is left that could run a job."""
        for worker in self._workers:
            code = worker.take_exit_code()
            if code is not None:
                self._handle_exit(worker, code)
            if worker.is_due:
                self._start(worker)
        self._resume_where_wanted()
        if all(worker.is_out for worker in self._workers):
            log.critical("no device is in service; the supervisor ends")
            return self._last_code
        return None

    def stop(self) -> None:
        """Stop all workers: SIGTERM, and SIGKILL after STOP_SECONDS."""
        deadline = time.monotonic() + STOP_SECONDS
        for worker in self._workers:
            worker.send(signal.SIGTERM)
        while any(worker.is_running for worker in self._workers) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS / 4)
        for worker in self._workers:
            worker.send(signal.SIGKILL)

    def _handle_exit(self, worker: DeviceWorker, code: int) -> None:
        if code == process.DEVICE_BROKEN:
            self._take_out(worker, "its device fails", code=1)
        elif code == process.WRONG_USAGE:
            self._take_out(
                worker, "it refuses its device or a setting; its log says why", code=code
            )
        elif code == process.DRAINED:
            log.info("%s is drained", worker.worker_id)
            worker.is_out, self._last_code = True, 0
        else:
            log.warning("%s ended with %d; it starts again", worker.worker_id, code)

    def _start(self, worker: DeviceWorker) -> None:
        cards = self._find_cards() if worker.device.uuid else None
        if cards is not None and worker.device.uuid not in {card.uuid for card in cards}:
            self._take_out(worker, "its device is missing", code=1)
            return
        log.info("%s starts", worker.worker_id)
        worker.start()

    def _take_out(self, worker: DeviceWorker, reason: str, code: int) -> None:
        worker.is_out, self._last_code = True, code
        log.error("%s is out of service: %s", worker.worker_id, reason)
        details = {"reason": reason, "device": worker.device.name or worker.device.label}
        try:
            self._store.suspensions.suspend(worker.worker_id, "out_of_service", **details)
        except errors.Unavailable as error:
            log.warning("%s", error.message)

    def _clear_out_of_service(self, worker: DeviceWorker) -> None:
        try:
            suspension = self._store.suspensions.get(worker.worker_id)
            if suspension is not None and suspension.kind == "out_of_service":
                self._store.suspensions.resume(worker.worker_id)
            self._store.suspensions.forget_faults(worker.worker_id)
        except errors.Unavailable as error:
            log.warning("%s", error.message)

    def _resume_where_wanted(self) -> None:
        """Start the workers again that are not suspended any more."""
        if time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + STORE_SECONDS
        out = [worker for worker in self._workers if worker.is_out]
        try:
            suspended = self._store.suspensions.list() if out else {}
        except errors.Unavailable:
            return
        for worker in out:
            if worker.worker_id not in suspended:
                self._store.suspensions.forget_faults(worker.worker_id)
                worker.resume()


def _environment_of(device: Device, worker_id: str, threads: int) -> dict[str, str]:
    """What binds a worker to its device, before it loads torch."""
    is_cpu = device.number == "cpu"
    return {
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # the numbers of nvidia-smi
        "CUDA_VISIBLE_DEVICES": "" if is_cpu else device.uuid or device.number,
        "IMPASTO_WORKER_DEVICE": "cpu" if is_cpu else "cuda",
        "IMPASTO_WORKER_DEVICES": "",
        "IMPASTO_WORKER_NAME": worker_id,
        "IMPASTO_WORKER_THREADS": str(threads),
    }
