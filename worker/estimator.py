"""Answers what a job would take on this worker, beside the painting. Knows no HTTP, loads no network, claims nothing.

The plan is the one that a run would have here. While a job runs, the memory that it holds counts as free: the next one
begins when it is over.
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
    """What there is to ask."""

    @property
    def paints(self) -> bool:
        """Whether a job runs."""

    def resident(self, model: ModelName) -> tuple[Network, Planner]:
        """A network that is loaded, the one of this name if it is, and who plans its runs."""


class EstimateService:
    """A thread that listens for estimate_requests."""

    def __init__(self, store: JobStore, runner: NetworkHolder) -> None:
        self._store, self._runner = store, runner
        self._free_bytes: dict[str, int] = {}  # by network; when no job ran last
        self._trouble = ""  # that was told last

    def start(self) -> None:
        """From now on, as long as the process lives."""
        threading.Thread(target=self._listen, name="forecaster", daemon=True).start()

    def _listen(self) -> None:
        away = threading.Event()
        while True:
            if not self.listened():
                away.wait(RETRY_SECONDS)

    def listened(self) -> bool:
        """One round; False if nothing can be answered now. What is wrong for a while is said once."""
        try:
            with device.translate_device_errors():
                self.answer_next()
        except errors.Unavailable:  # the next round
            return False
        except errors.ImpastoError as error:
            if error.message != self._trouble:
                log.warning("no question can be answered: %s", error.message)
            self._trouble = error.message
            return False
        except errors.DeviceLost:  # also when no job runs: it would end the next one
            process.exit_now("the device is lost; this process ends", trace=True)
        except Exception:
            log.exception("a question was not answered")
            return False
        self._trouble = ""
        return True

    def answer_next(self) -> None:
        """Wait for a question, half a second at most, and answer it. Raises StoreUnavailable."""
        if asked := self._store.next_estimate_request():
            self._store.reply_to_estimate(asked[0], self.forecast(asked[1]))
        elif not self._runner.paints:
            self._look_at_memory("auto")

    def forecast(self, question: EstimateRequest) -> EstimateResponse:
        """The plan, or why there is none."""
        spec = parse_spec(question.spec)
        network, _ = self._runner.resident("auto")
        plan, refused = Plan(()), None
        try:
            network, planner = self._runner.resident(spec.model)
            free_bytes = self._look_at_memory(spec.model)
            plan = planner.plan(
                question.content, question.styles, spec, question.masks, free_bytes=free_bytes
            )
        except errors.ImpastoError as error:
            refused = JobError(code=error.code, message=error.message)
        scales = [
            ScaleEstimate(
                width=planned.scale.width,
                height=planned.scale.height,
                iterations=planned.scale.iterations,
                seconds=round(planned.seconds, 3),
                memory_bytes=planned.memory_bytes,
                tile_px=planned.route.tile_px,
            )
            for planned in plan.scales
        ]
        return EstimateResponse(
            device=device_name(network.device), network=network.name, scales=scales, refused=refused
        )

    def _look_at_memory(self, model: ModelName) -> int:
        """Bytes that a run may take when no other does."""
        network, planner = self._runner.resident(model)
        if not self._runner.paints or network.name not in self._free_bytes:
            self._free_bytes[network.name] = planner.free_bytes()
        return self._free_bytes[network.name]
