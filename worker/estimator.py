"""Answers estimate requests in a thread beside the run: what a job would take on this worker.

The plan is the one that a run would have here; its seconds are corrected by those of recent runs.
While a job runs, its memory counts as free: the next job starts when it has ended. Knows no HTTP,
loads no network, claims no job.
"""

import logging
import threading
from typing import Protocol

from core import errors
from core.jobs.models import EstimateRequest, EstimateResponse, JobError, ScaleEstimate
from core.jobs.store import JobStore
from core.neural import device
from core.neural.transfer.planner import Plan, Planner, device_name
from core.neural.vgg import Network
from core.style.spec import ModelName, parse_spec
from worker import process

RETRY_SECONDS = 1.0

log = logging.getLogger(__name__)


class NetworkHolder(Protocol):
    """The runner, as far as estimates need to know it."""

    @property
    def is_running(self) -> bool:
        """Whether a job runs now."""

    @property
    def pace(self) -> float:
        """How many times the planned seconds a run takes here."""

    def get_loaded_network(self, model: ModelName) -> tuple[Network, Planner]:
        """A network that is loaded already, preferably this one, and the planner of its runs."""


class EstimateService:
    """A thread that answers estimate requests."""

    def __init__(self, store: JobStore, runner: NetworkHolder) -> None:
        self._store, self._runner = store, runner
        self._free_bytes: dict[str, int] = {}  # by network, measured when no job ran
        self._logged_message = ""  # the last warning, so that it is logged only once

    def start(self) -> None:
        """Answer requests from now on, as long as the process lives."""
        threading.Thread(target=self._run, name="estimates", daemon=True).start()

    def _run(self) -> None:
        pause = threading.Event()
        while True:
            if not self.try_answer():
                pause.wait(RETRY_SECONDS)

    def try_answer(self) -> bool:
        """One round.

        Returns False if no request can be answered now; logs a lasting cause only once.
        """
        try:
            with device.translate_device_errors():
                self.answer_next()
        except errors.Unavailable:  # retries in the next round
            return False
        except errors.ImpastoError as error:
            if error.message != self._logged_message:
                log.warning("estimates are unavailable: %s", error.message)
            self._logged_message = error.message
            return False
        except errors.DeviceLost:  # a lost device would end the next job, too
            process.exit_now("the device is lost; this process ends", trace=True)
        except Exception:
            log.exception("an estimate failed")
            return False
        self._logged_message = ""
        return True

    def answer_next(self) -> None:
        """Wait at most half a second for a request, and answer it. Raises StoreUnavailable."""
        if named_request := self._store.estimates.next_request():
            name, request = named_request
            self._store.estimates.reply(name, self.estimate(request))
        elif not self._runner.is_running:
            self._measure_free_bytes("auto")

    def estimate(self, request: EstimateRequest) -> EstimateResponse:
        """Return the plan, or the reason why there is none."""
        spec = parse_spec(request.spec)
        network, _ = self._runner.get_loaded_network("auto")
        plan, refused = Plan(()), None
        try:
            network, planner = self._runner.get_loaded_network(spec.model)
            free_bytes = self._measure_free_bytes(spec.model)
            plan = planner.plan(
                request.content,
                request.styles,
                spec,
                request.masks,
                init=request.init,
                free_bytes=free_bytes,
            )
        except errors.ImpastoError as error:
            refused = JobError.of(error)
        scales = [
            ScaleEstimate(
                width=planned.scale.width,
                height=planned.scale.height,
                iterations=planned.scale.iterations,
                seconds=round(planned.seconds * self._runner.pace, 3),
                memory_bytes=planned.memory_bytes,
                tile_px=planned.route.tile_px,
            )
            for planned in plan.scales
        ]
        return EstimateResponse(
            device=device_name(network.device), network=network.name, scales=scales, refused=refused
        )

    def _measure_free_bytes(self, model: ModelName) -> int:
        """Bytes that a run of this model may take while no other job runs."""
        network, planner = self._runner.get_loaded_network(model)
        if not self._runner.is_running or network.name not in self._free_bytes:
            self._free_bytes[network.name] = planner.free_bytes()
        return self._free_bytes[network.name]
