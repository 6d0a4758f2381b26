"""The run: one scale after the other, coarse to fine. Progress goes to a callback, which may stop or steer the run.

Knows no storage, no jobs and no printing.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from core import errors
from core.neural import device
from core.neural.transfer import pixels
from core.neural.transfer.checkpoint import AppliedUpdate, Checkpoint, CheckpointHeader
from core.neural.transfer.inputs import ScaleTarget, StyleInputs
from core.neural.transfer.objective import Losses
from core.neural.transfer.optimize import LBFGS, Adam
from core.neural.transfer.planner import Plan, PlannedScale, Planner
from core.neural.vgg import Network
from core.style.spec import StyleSpec

# A scale has nothing left to gain where ten iterations lower the loss by less than this share.
_LEAST_GAIN = 1e-3
_GAIN_WINDOW = 10

# A device that works on its own is asked for its losses this often, and not after every iteration.
_REPORT_SECONDS = 0.05


@dataclass(frozen=True)
class RunProgress:
    """How far the run is. Iterations count over all scales, from 1; losses are weighted and by name."""

    scale: int
    scales: int
    width: int
    height: int
    iteration: int
    iterations: int
    losses: dict[str, float]
    seconds: float
    iterations_per_second: float
    seconds_left: float
    spec_updates: tuple[AppliedUpdate, ...] = ()

    @property
    def value(self) -> float:
        """The share of the time that is over, 0 to 1."""
        return round(
            self.seconds / (self.seconds + self.seconds_left), 9
        )  # so that no rounding makes it go back


@dataclass(frozen=True)
class StepEvent:
    """A moment of a run: how far it is and by which spec, the picture so far, and what it takes to go on from here.

    The picture may be asked for at any time; the checkpoint only before the call that brought the moment returns.
    """

    progress: RunProgress
    spec: StyleSpec
    picture: Callable[[], Image.Image]
    checkpoint: Callable[[], Checkpoint]


# Called after every iteration on a CPU, many times a second elsewhere; and first of all where a run is resumed. True
# stops the run, which then returns what it has; a spec with other weights steers it; an Interrupt raised here ends it.
OnProgress = Callable[[StepEvent], bool | StyleSpec | None]


@dataclass(frozen=True)
class StyleResult:
    """The finished picture and what its making took."""

    picture: Image.Image
    losses: dict[str, float]
    iterations: int
    seconds: float
    stopped: bool
    plan: Plan
    spec: StyleSpec  # as it was at the end
    spec_updates: tuple[AppliedUpdate, ...]


def stylize(
    subject: StyleInputs,
    spec: StyleSpec,
    network: Network,
    on_progress: OnProgress | None = None,
    planner: Planner | None = None,
    *,
    resume: Checkpoint | None = None,
) -> StyleResult:
    """The subject's photo in the style of its paintings (Gatys, Ecker and Bethge 2015), coarse to fine.

    Same pictures, spec, network, machine and plan: same picture, also if the run is resumed from a checkpoint of an
    earlier one; a checkpoint of another network is left aside, one made by other weights is spec_updates.
    Raises BadSpec, BadImage, OutOfMemory, Diverged (it carries the last good picture), DeviceLost, and what
    `on_progress` raises.
    """
    with device.translate_device_errors():
        return _Run(
            subject, spec, network, on_progress, planner or Planner(network), resume=resume
        ).painting()


class _Run:
    """One run: the image, and where it stands."""

    def __init__(
        self,
        subject: StyleInputs,
        spec: StyleSpec,
        network: Network,
        on_progress: OnProgress | None,
        planner: Planner,
        *,
        resume: Checkpoint | None,
    ) -> None:
        self._subject, self._spec, self._network = subject, subject.fitted(spec), network
        self._on_progress, self._planner = on_progress, planner
        self._style_sizes = [style.size for style in subject.styles]
        self._network_id = f"{network.sha256} {network.dtype}"
        if resume is not None and resume.mark.network != self._network_id:
            resume = None
        routes = resume.mark.routes if resume else ()
        begun = subject.init.size if subject.init else None
        self._plan = planner.plan(
            subject.content.size,
            self._style_sizes,
            self._spec,
            len(subject.masks),
            routes,
            init=begun,
        )
        self._clock = ProgressTracker(self._plan.legs)
        self._image: Tensor | None = None  # the newest whose losses are known to be finite
        self._losses: dict[str, float] = {}
        self._done = 0  # iterations of this leg that the image has behind it
        self._before = float("inf")  # the loss where the last window ended
        self._spec_updates: tuple[AppliedUpdate, ...] = ()
        self._resume = resume
        if resume is not None:
            self._image, self._losses = (
                resume.tensors["image"].to(network.device),
                resume.mark.losses,
            )
            self._clock.resume(resume.mark)
            self._spec_updates = tuple(resume.mark.spec_updates)

    def painting(self) -> StyleResult:
        behind = self._resume.mark.leg - 1 if self._resume else 0
        stopped = any(
            self._leg(number, leg)
            for number, leg in [*enumerate(self._plan.legs, start=1)][behind:]
        )
        assert self._image is not None, "a plan has legs"
        image = self._image
        if stopped:  # whatever the scale, the picture has the size that was asked for
            image = self._enlarged(image, self._plan.legs[-1])
        picture = self._rendered(image, self._spec)
        clock = self._clock
        return StyleResult(
            picture,
            self._losses,
            clock.iteration,
            clock.seconds,
            stopped,
            self._plan,
            self._spec,
            self._spec_updates,
        )

    def _leg(self, number: int, leg: PlannedScale) -> bool:
        """Go through one scale; True if the callback stops the run. Out of memory, go on by a smaller route."""
        self._done = 0
        for attempt in self._ways(leg):
            self._clock.begin(number, attempt)
            try:
                return self._go(attempt)
            except (RuntimeError, MemoryError, errors.OutOfMemory) as error:
                if not device.is_out_of_memory(error):
                    raise
            # Outside of the except clause: the traceback holds on to all that filled the memory.
            device.release_memory(self._network.device)
        raise errors.OutOfMemory()

    def _ways(self, leg: PlannedScale) -> Iterator[PlannedScale]:
        yield leg
        smaller = self._planner.smaller(
            leg, self._style_sizes, self._spec, len(self._subject.masks)
        )
        if smaller is not None:
            yield smaller

    def _go(self, leg: PlannedScale) -> bool:
        self._before = float("inf")
        scene, iterates = self._optimizer(leg)
        if (
            self._done
            and iterates.is_resumed
            and self._is_stopped(scene, iterates, self._image, self._done)
        ):
            return True
        count = self._done
        while count < self._clock.most:  # which may change on the way
            (iterate, terms), count = next(iterates), count + 1
            self._clock.count()
            window_ends = count % _GAIN_WINDOW == 0
            if not (
                window_ends or count == self._clock.most or self._clock.is_due(self._network.device)
            ):
                continue
            self._losses, self._image, self._done = self._finite(terms), iterate, count
            if (
                window_ends and not self._spec.iterations
            ):  # an outright number of iterations is taken as it is
                self._end_window(count)
            if self._is_stopped(scene, iterates, iterate, count):
                return True
        return False

    def _end_window(self, count: int) -> None:
        """Leave out the rest of this scale where the last iterations have gained next to nothing."""
        before, self._before = self._before, self._losses["total"]
        if 0 <= before - self._before <= _LEAST_GAIN * self._before:
            self._clock.skip(self._clock.most - count)

    def _optimizer(self, leg: PlannedScale) -> tuple[ScaleTarget, LBFGS | Adam]:
        """For this scale: from its beginning, or from where an earlier run, or another route, has got to."""
        scene = self._subject.at(leg.scale, self._balanced(leg), self._network, leg.route.tile_px)
        image, state = self._image, None
        if self._resume is not None:
            state = self._taken_up(self._resume.mark, self._resume.tensors, leg)
            self._resume = None
        else:
            self._clock.go_on(self._done)
            if image is None:
                image = self._subject.first_image(scene.photo, self._spec)
            elif not self._done:
                image = self._enlarged(image, leg)
        assert image is not None, "a checkpoint has an image"
        evaluate = scene.objective.with_gradient
        if self._spec.optimizer == "adam":
            return scene, Adam(evaluate, image, state)
        host = torch.device("cpu") if leg.route.history_on_host else None
        return scene, LBFGS(evaluate, image, leg.route.history, host, state)

    def _taken_up(
        self, mark: CheckpointHeader, state: Mapping[str, Tensor], leg: PlannedScale
    ) -> Mapping[str, Tensor] | None:
        """Stand where an earlier run stood; the optimizer's state, if it is of any use here."""
        self._done = mark.count
        self._clock.go_on(mark.count)
        if mark.weights != self._spec.weights:
            self._record_update(mark.weights, mark.count)
            return None
        self._before = mark.before
        # Another machine, or less memory: the image is worth keeping all the same.
        return state if leg.route == mark.routes[self._clock.leg - 1] else None

    def _is_stopped(
        self, scene: ScaleTarget, optimizer: LBFGS | Adam, iterate: Tensor | None, count: int
    ) -> bool:
        if self._on_progress is None or iterate is None:
            return False
        picture = partial(self._rendered, iterate, self._spec)
        checkpoint = partial(self._checkpoint, optimizer, count)
        progress = replace(self._clock.progress(self._losses), spec_updates=self._spec_updates)
        answer = self._on_progress(StepEvent(progress, self._spec, picture, checkpoint))
        if isinstance(answer, StyleSpec):
            self._apply_update(self._subject.fitted(answer), scene, optimizer, count)
            return False
        return bool(answer)

    def _apply_update(
        self, spec: StyleSpec, scene: ScaleTarget, optimizer: LBFGS | Adam, count: int
    ) -> None:
        """Go on by other weights: another function, of which the optimizer knows nothing yet."""
        before, self._spec = self._spec.weights, spec
        if spec.weights != before:
            scene.weigh(self._balanced(self._clock.legs[self._clock.leg - 1]))
            optimizer.begin()
            self._record_update(before, count)

    def _record_update(self, before: Mapping[str, Any], count: int) -> None:
        """For those who ask how the picture was made. And a scale that was about to end takes the time to follow."""
        after = self._spec.weights
        changed = [name for name in after if after[name] != before[name]]
        steering = AppliedUpdate(
            self._clock.iteration,
            {name: before[name] for name in changed},
            {name: after[name] for name in changed},
        )
        self._spec_updates = (*self._spec_updates, steering)
        self._before = float("inf")
        self._clock.lengthen(count)

    def _checkpoint(self, optimizer: LBFGS | Adam, count: int) -> Checkpoint:
        mark = CheckpointHeader(
            leg=self._clock.leg,
            count=count,
            counts=list(self._clock.counts),
            before=self._before,
            losses=self._losses,
            seconds=self._clock.seconds,
            routes=[leg.route for leg in self._clock.legs],
            network=self._network_id,
            weights=self._spec.weights,
            spec_updates=list(self._spec_updates),
        )
        return Checkpoint(mark, optimizer.state())

    def _balanced(self, leg: PlannedScale) -> StyleSpec:
        """The spec for one scale: the paper's content loss is a sum over positions, its style loss is not.

        Where the picture is coarser, alpha makes up for the positions that are missing: beta means the same everywhere.
        """
        if self._spec.objective != "gatys":
            return self._spec
        last = self._plan.legs[-1].scale
        share = last.width * last.height / (leg.scale.width * leg.scale.height)
        return self._spec.model_copy(update={"content_weight": self._spec.content_weight * share})

    @device.translate_device_errors()  # it may be called at any time
    def _rendered(self, image: Tensor, spec: StyleSpec) -> Image.Image:
        return self._subject.render(image, spec)

    def _enlarged(self, image: Tensor, leg: PlannedScale) -> Tensor:
        return pixels.enlarge(image, leg.scale.size, seamless=self._spec.seamless)

    def _finite(self, terms: Losses) -> dict[str, float]:
        losses = terms.by_name()
        if not abs(losses["total"]) < float("inf"):
            picture = None if self._image is None else self._rendered(self._image, self._spec)
            raise errors.Diverged(picture=picture)
        return losses


class ProgressTracker:
    """Counts iterations and foretells the end from what the plan says of the legs that are left."""

    def __init__(self, legs: Sequence[PlannedScale]) -> None:
        self.iteration = self.leg = 0
        self.legs = list(legs)
        self.counts = [leg.scale.iterations for leg in legs]  # of each leg
        self._begin = self._reported = time.monotonic()
        self._leg_began, self._leg_done = self._begin, 0
        self._share = 0.0  # of the time, that was told last

    def resume(self, mark: CheckpointHeader) -> None:
        """Take over what an earlier run has counted."""
        self.counts = list(mark.counts)
        self._begin -= mark.seconds

    @property
    def seconds(self) -> float:
        """Since the run began, earlier attempts included."""
        return time.monotonic() - self._begin

    def is_due(self, device: torch.device) -> bool:
        """Whether to ask the device for its losses; asking waits until it is there."""
        return device.type == "cpu" or time.monotonic() - self._reported >= _REPORT_SECONDS

    def begin(self, number: int, leg: PlannedScale) -> None:
        """Leg `number`, counted from 1, begins, or begins again by another route."""
        self.leg, self.legs[number - 1] = number, leg
        self.iteration = sum(self.counts[: number - 1])
        self._leg_began, self._leg_done = time.monotonic(), 0

    def go_on(self, done: int) -> None:
        """The leg has so many iterations behind it, from an earlier run or by another route."""
        self.iteration += done
        self._leg_done = done

    def count(self) -> None:
        """One more iteration."""
        self.iteration += 1

    @property
    def most(self) -> int:
        """Iterations of this leg."""
        return self.counts[self.leg - 1]

    def lengthen(self, count: int) -> None:
        """Let half of the last leg's iterations come from `count` on; it takes at most twice as many, then one more."""
        if self.leg == len(self.legs):
            planned = self.legs[-1].scale.iterations
            self.counts[-1] = max(
                self.counts[-1], count + 1, min(count + planned // 2, 2 * planned)
            )
            self._share = 0.0  # more is left than was told

    def skip(self, iterations: int) -> None:
        """Iterations of this leg that will not be taken."""
        self.counts[self.leg - 1] -= iterations

    def progress(self, losses: dict[str, float]) -> RunProgress:
        """Where the run stands now."""
        index, now = self.leg - 1, time.monotonic()
        before = sum(self.counts[:index])
        work = [
            leg.iteration_seconds * count for leg, count in zip(self.legs, self.counts, strict=True)
        ]
        here = self.legs[index].iteration_seconds
        done = sum(work[:index]) + here * (self.iteration - before)
        left = here * (before + self.counts[index] - self.iteration) + sum(work[index + 1 :])
        self._share = max(
            self._share, done / (done + left)
        )  # by a slower route more is left than was told before
        self._reported = now
        return RunProgress(
            scale=self.leg,
            scales=len(self.legs),
            width=self.legs[index].scale.width,
            height=self.legs[index].scale.height,
            iteration=self.iteration,
            iterations=sum(self.counts),
            losses=losses,
            seconds=now - self._begin,
            iterations_per_second=(self.iteration - before - self._leg_done)
            / (now - self._leg_began),
            seconds_left=(now - self._begin) * (1 - self._share) / self._share,
        )
