"""The state of a pool child between jobs: connections, networks on the device, heartbeats.

Claims the jobs. Knows no Celery and no step of a run: attempt.py runs a job.
"""

import logging
import os
import secrets
import threading
import time
from typing import Literal

from core import errors
from core.config import Settings
from core.jobs.models import Job, WorkerInfo, WorkerReport
from core.jobs.store import JobStore
from core.neural import device
from core.neural.capacity import largest_size
from core.neural.transfer.planner import Planner, device_name, load_throughput
from core.neural.transfer.style_cache import StyleCache
from core.neural.vgg import Network
from core.neural.weights.cache import WeightsCache
from core.storage.location import open_storage
from core.style.spec import ModelName
from worker.attempt import Attempt
from worker.estimator import EstimateService
from worker.pictures import PictureDecoder
from worker.process import process_name, shutting_down
from worker.retry import RETRY_SECONDS
from worker.settings import WorkerSettings
from worker.statistics import RunStatistics

HEARTBEAT_SECONDS = 1.0
PASS_ON_SECONDS = 1.0
MAX_FAULTS = 2  # jobs with which a device fails, within core.jobs.suspensions.FAULT_SECONDS
MAX_NETWORKS = 2  # loaded at the same time

RunOutcome = Literal["done", "released", "deleted", "no_job"]

log = logging.getLogger(__name__)


class JobRunner:
    """Claims jobs and runs them, one at a time."""

    def __init__(self, settings: Settings, worker: WorkerSettings) -> None:
        self._worker, self._limits = worker, settings.job_limits
        self._store = JobStore(settings.redis_url)
        self._blobs, self._checkpoints, _ = open_storage(settings)
        self._weights = WeightsCache(settings.weights_dir, settings.throughput_file)
        self._name = process_name(os.getpid())
        self._report: WorkerReport | None = None  # from the warm-up on
        self._is_device_broken = False
        self._next_pass_on = 0.0
        # By name; the last one was used last. Replaced as a whole, never changed in place, because
        # the thread of the estimates reads it at the same time.
        self._networks: dict[str, tuple[Network, Planner]] = {}
        self._run_lock = threading.Lock()
        self._decoder, self._style_cache = PictureDecoder(), StyleCache()
        self._statistics = RunStatistics()

    def load_network(self, model: ModelName) -> tuple[Network, Planner]:
        """Return the network, which is loaded at its first use, and the planner of its runs."""
        entry = self._weights.entry(self._weights.resolve(model))
        others, found = dict(self._networks), self._networks.get(entry.name)
        others.pop(entry.name, None)
        # Other weights may have been imported under the same name.
        if found is None or found[0].sha256 != entry.sha256:
            # Release networks before the next one takes memory: this one, and the oldest.
            found = None
            self._networks = others = dict([*others.items()][1 - MAX_NETWORKS :])
            found = self._load(entry.name)
        self._networks = {**others, entry.name: found}
        return found

    def get_loaded_network(self, model: ModelName) -> tuple[Network, Planner]:
        """Return this network if it is loaded, else the usual one or the last used one.

        Loads none: loading and measuring another network would disturb a run.
        Raises WeightsUnavailable.
        """
        name, networks = self._weights.resolve(model), self._networks
        if not self._weights.has(name) or not networks:
            raise errors.WeightsUnavailable(f"The workers do not have the weights of {name}.")
        usual = networks.get(self._weights.resolve("auto"), [*networks.values()][-1])
        return networks.get(name, usual)

    @property
    def is_running(self) -> bool:
        """Whether a job runs now."""
        return self._run_lock.locked()

    @property
    def pace(self) -> float:
        """How many times the planned seconds a run takes here."""
        return self._statistics.pace

    @property
    def is_device_broken(self) -> bool:
        """Whether the device has failed with so many jobs that it must not run another one."""
        return self._is_device_broken

    @device.translate_device_errors()
    def _load(self, name: str) -> tuple[Network, Planner]:
        network = self._weights.load(name, self._worker.device, self._worker.precision)
        throughput = load_throughput(network, self._weights.throughput_file)
        free_bytes = int(self._worker.memory_gb * 1e9) or None
        device.limit_memory(network.device, free_bytes)
        return network, Planner(network, throughput, free_bytes)

    def run_queued(self, limit: int) -> bool:
        """Run jobs until none is queued, at most `limit`.

        Returns whether the caller must notify a worker, because jobs may be left. Ends at a
        shutdown, and after a job that was released because disk or store failed: another try
        at once would fail as well, and the reaper notifies the worker within seconds.
        Raises Unavailable, DeviceLost.
        """
        for _ in range(limit):
            if shutting_down.is_set():
                return True
            outcome = self.run_next()
            if outcome == "released":
                return shutting_down.is_set()
            if outcome == "no_job":
                return self._must_pass_on()
        return True

    def _must_pass_on(self) -> bool:
        """Whether jobs are queued that this worker may not take.

        Then its notification was meant for another one. It passes on one per second at most, so
        that idle workers do not send it around without end.
        """
        now = time.monotonic()
        if now < self._next_pass_on or not self._store.count_queued():
            return False
        self._next_pass_on = now + PASS_ON_SECONDS
        return True

    def run_next(self) -> RunOutcome:
        """Claim the next job and bring it to an end, or release it.

        Raises Unavailable, DeviceLost.
        """
        token = secrets.token_hex(16)
        try:
            job = self._claim(token)
        except errors.JobNotFound:  # deleted between the claim and the read; others may be queued
            return "deleted"
        if job is None:
            return "no_job"
        attempt = Attempt(
            job,
            token,
            self._store,
            blobs=self._blobs,
            checkpoints=self._checkpoints,
            settings=self._worker,
            limits=self._limits,
            decoder=self._decoder,
            style_cache=self._style_cache,
            statistics=self._statistics,
            report=self._report,
        )
        with self._run_lock:
            try:
                is_done = attempt.run(self._load_and_record)
            except errors.DeviceLost:
                self._record_fault(job.id)
                raise
            self._release_memory()
        return "done" if is_done else "released"

    def _record_fault(self, job_id: str) -> None:
        """A job may break any device, so a device is broken if it fails with several jobs."""
        try:
            faults = self._store.suspensions.record_fault(self._worker.worker_id, job_id)
        except errors.Unavailable as error:
            log.warning("%s", error.message)
        else:
            self._is_device_broken = faults >= MAX_FAULTS

    @device.translate_device_errors()
    def _release_memory(self) -> None:
        """Return what the last job leaves in torch's cache: another program may need it."""
        for network, _ in self._networks.values():
            device.release_memory(network.device)

    def _claim(self, token: str) -> Job | None:
        """Return the next job.

        Retries: if only the answer was lost, the job is ours all the same. Raises JobNotFound.
        """
        while True:
            try:
                return self._store.claim(token, self._name, self._report)
            except errors.Unavailable as error:
                log.warning("%s", error.message)
                if shutting_down.wait(RETRY_SECONDS):
                    raise

    def _load_and_record(self, model: ModelName) -> tuple[Network, Planner]:
        network, planner = self.load_network(model)
        self._record_weights(model, network)
        return network, planner

    def _record_weights(self, model: ModelName, network: Network) -> None:
        try:
            self._store.record_model_weights(model, network.sha256)
        except errors.Unavailable as error:
            log.warning("%s", error.message)

    @device.translate_device_errors()
    def warm_up(self) -> None:
        """Check the device, load the usual network, and send heartbeats from now on.

        Raises BadSettings for a card that this torch cannot use, and what loading raises, also
        DeviceLost: then this process must claim no job.
        """
        device.configure_allocator(device.best_device(self._worker.device))
        self._decoder.start_ahead()
        network, planner = self._load_and_record("auto")
        # A run's first call to the device; it fails here if the device is lost.
        planner.free_bytes()
        self._report = self._describe()
        try:
            self._store.announce(self._report)
        except errors.Unavailable as error:
            log.warning("%s", error.message)
        threading.Thread(
            target=self._send_heartbeats,
            args=(self._report, network),
            name="heartbeat",
            daemon=True,
        ).start()
        EstimateService(self._store, self).start()

    def _describe(self) -> WorkerReport:
        network, planner = self.load_network("auto")
        return WorkerReport(
            id=self._worker.worker_id,
            pools=self._worker.pools,
            max_size_px=largest_size(planner),
            device=device_name(network.device),
            precision=str(network.dtype).removeprefix("torch."),
            network=network.name,
            networks=self._weights.names(),
        )

    def _send_heartbeats(self, info: WorkerInfo, network: Network) -> None:
        pause = threading.Event()
        while True:
            done = self._statistics.take()
            try:
                # Networks may have been imported or removed meanwhile.
                current = info.model_copy(update={"networks": self._weights.names()})
                use = self._statistics.measure(network)
                self._store.heartbeat(self._name, current, use, done)
            except errors.Unavailable:  # the next heartbeat follows in a second
                self._statistics.give_back(done)
            except Exception:
                log.exception("a heartbeat failed")
            self._decoder.expire()
            pause.wait(HEARTBEAT_SECONDS)
