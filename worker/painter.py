"""What stays in a pool's child between jobs: connections, the network on its device, and a sign of life.

Knows no Celery and no single job: attempt.py paints.
"""

import logging
import os
import secrets
import threading
from functools import lru_cache

from core import errors
from core.blobs import Blobs
from core.checkpoints import Checkpoints
from core.jobs import Job
from core.neural.planner import Planner, pace_of
from core.neural.vgg import Network
from core.neural.weights import WeightsCache
from core.settings import Settings
from core.spec import ModelName
from core.store import JobStore
from worker.attempt import RETRY_SECONDS, Attempt, shutting_down
from worker.names import name_of
from worker.settings import WorkerSettings

LIFE_SECONDS = 1.0

log = logging.getLogger(__name__)


class Painter:
    """Claims jobs and paints them, one at a time."""

    def __init__(self, settings: Settings, worker: WorkerSettings) -> None:
        self._worker = worker
        self._store = JobStore(settings.redis_url)
        self._blobs = Blobs(settings.blobs_dir)
        self._checkpoints = Checkpoints(settings.checkpoints_dir)
        self._weights = WeightsCache(settings.weights_dir)
        self._name = name_of(os.getpid())
        self._load = lru_cache(maxsize=2)(self._loaded)

    def network(self, model: ModelName) -> tuple[Network, Planner]:
        """The resident network, loaded at its first use, and who plans its runs."""
        entry = self._weights.entry(self._weights.resolve(model))
        return self._load(entry.name, entry.sha256)  # a network that was replaced under its name is another

    def _loaded(self, name: str, _: str) -> tuple[Network, Planner]:
        network = self._weights.load(name, self._worker.device, self._worker.precision)
        pace = pace_of(network, self._weights.folder / "pace.json")
        free_bytes = int(self._worker.memory_gb * 1e9) or None
        return network, Planner(network, pace, free_bytes)

    def run_next(self) -> str | None:
        """Claim the next job and bring it to an end, or hand it back; its id, or None if there was none."""
        token = secrets.token_hex(16)
        job = self._claimed(token)
        if job is None:
            return None
        attempt = Attempt(
            job, token, self._store, blobs=self._blobs, checkpoints=self._checkpoints, settings=self._worker
        )
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
            self._store.paints_with(model, network.sha256)
        except errors.Unavailable as error:
            log.warning("%s", error.message)

    def warm_up(self) -> None:
        """Load the usual network, tell which it is, and say once a second, from now on, that this process lives."""
        self._network_for("auto")
        threading.Thread(target=self._beat, name="life", daemon=True).start()

    def _beat(self) -> None:
        away = threading.Event()
        while True:
            try:
                self._store.beat(self._name)
            except errors.Unavailable:  # the next beat says it
                pass
            except Exception:
                log.exception("beat failed")
            away.wait(LIFE_SECONDS)
