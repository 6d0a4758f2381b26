"""What stays in a pool's child between jobs: connections, the network on its device, and a sign of life.

Knows no Celery and no single job: attempt.py paints.
"""

import logging
import os
import secrets
import threading

from core import errors
from core.config import Settings
from core.jobs.models import Job, WorkerInfo
from core.jobs.store import JobStore
from core.neural import device
from core.neural.transfer.planner import Planner, device_name, load_throughput
from core.neural.vgg import Network
from core.neural.weights.cache import WeightsCache
from core.storage.blobs import Blobs
from core.storage.checkpoints import Checkpoints
from core.style.spec import ModelName
from worker.attempt import RETRY_SECONDS, Attempt, shutting_down
from worker.estimator import EstimateService
from worker.process import process_name
from worker.settings import WorkerSettings

HEARTBEAT_SECONDS = 1.0
MAX_NETWORKS = 2  # that are resident

log = logging.getLogger(__name__)


class JobRunner:
    """Claims jobs and paints them, one at a time."""

    def __init__(self, settings: Settings, worker: WorkerSettings) -> None:
        self._worker = worker
        self._store = JobStore(settings.redis_url)
        self._blobs = Blobs(settings.blobs_dir)
        self._checkpoints = Checkpoints(settings.checkpoints_dir)
        self._weights = WeightsCache(settings.weights_dir)
        self._name = process_name(os.getpid())
        # By name, the one that was used last at the end. Never changed, only replaced: others look at it meanwhile.
        self._networks: dict[str, tuple[Network, Planner]] = {}
        self._paints = threading.Lock()

    def network(self, model: ModelName) -> tuple[Network, Planner]:
        """The resident network, loaded at its first use, and who plans its runs."""
        entry = self._weights.entry(self._weights.resolve(model))
        others, found = dict(self._networks), self._networks.get(entry.name)
        others.pop(entry.name, None)
        if (
            found is None or found[0].sha256 != entry.sha256
        ):  # one that was replaced under its name is another
            self._networks = others = dict([*others.items()][1 - MAX_NETWORKS :])  # first make room
            found = self._loaded(entry.name)
        self._networks = {**others, entry.name: found}
        return found

    def resident(self, model: ModelName) -> tuple[Network, Planner]:
        """The same, but one that is loaded already: to load another, and to measure it, would disturb a run.

        Raises WeightsUnavailable.
        """
        name, networks = self._weights.resolve(model), self._networks
        if not self._weights.has(name) or not networks:
            raise errors.WeightsUnavailable(f"The workers do not have the weights of {name}.")
        usual = networks.get(self._weights.resolve("auto"), [*networks.values()][-1])
        return networks.get(name, usual)

    @property
    def paints(self) -> bool:
        """Whether it runs a job at this moment."""
        return self._paints.locked()

    @device.translate_device_errors()
    def _loaded(self, name: str) -> tuple[Network, Planner]:
        network = self._weights.load(name, self._worker.device, self._worker.precision)
        pace = load_throughput(network, self._weights.folder / "pace.json")
        free_bytes = int(self._worker.memory_gb * 1e9) or None
        return network, Planner(network, pace, free_bytes)

    def run_next(self) -> str | None:
        """Claim the next job and bring it to an end, or hand it back; its id, or None if there was none."""
        token = secrets.token_hex(16)
        job = self._claimed(token)
        if job is None:
            return None
        attempt = Attempt(
            job,
            token,
            self._store,
            blobs=self._blobs,
            checkpoints=self._checkpoints,
            settings=self._worker,
        )
        with self._paints:
            attempt.run(self._network_for)
        return job.id

    def _claimed(self, token: str) -> Job | None:
        """The next job. Asks until it is answered: when the answer is lost, the job is ours all the same."""
        while True:
            try:
                return self._store.claim(token, self._name)
            except errors.JobNotFound:  # deleted at this very moment
                return None
            except errors.Unavailable as error:
                log.warning("%s", error.message)
                if shutting_down.wait(RETRY_SECONDS):
                    raise

    def _network_for(self, model: ModelName) -> tuple[Network, Planner]:
        network, planner = self.network(model)
        self._tell_weights(model, network)
        return network, planner

    def _tell_weights(self, model: ModelName, network: Network) -> None:
        try:
            self._store.record_model_weights(model, network.sha256)
        except errors.Unavailable as error:
            log.warning("%s", error.message)

    @device.translate_device_errors()
    def warm_up(self) -> None:
        """Load the usual network, tell which it is, and say once a second, from now on, that this process lives.

        Raises what loading raises, also DeviceLost: then this process is to claim nothing.
        """
        _, planner = self._network_for("auto")
        planner.free_bytes()  # the first thing that a run asks the device
        threading.Thread(target=self._beat, args=(self._told(),), name="life", daemon=True).start()
        EstimateService(self._store, self).start()

    def _told(self) -> WorkerInfo:
        network, _ = self.network("auto")
        return WorkerInfo(
            device=device_name(network.device),
            precision=str(network.dtype).removeprefix("torch."),
            network=network.name,
            networks=[entry.name for entry in self._weights.entries()],
        )

    def _beat(self, told: WorkerInfo) -> None:
        away = threading.Event()
        while True:
            try:
                self._store.heartbeat(self._name, told)
            except errors.Unavailable:  # the next beat says it
                pass
            except Exception:
                log.exception("beat failed")
            away.wait(HEARTBEAT_SECONDS)
