"""A run: the scales one after the other, coarse to fine. Reports each step to a callback.

The callback can stop the run or change its weights. This module knows no storage, no jobs and no
output.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from math import isfinite
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor

from core import errors
from core.images.frame import Box
from core.neural import device
from core.neural.transfer import pixels
from core.neural.transfer.checkpoint import Checkpoint, CheckpointHeader
from core.neural.transfer.inputs import ScaleTarget, StyleInputs
from core.neural.transfer.margin import Margin
from core.neural.transfer.objective import Losses
from core.neural.transfer.optimize import LBFGS, MAX_DIVERGING_STEPS, Adam
from core.neural.transfer.planner import Plan, PlannedScale, Planner
from core.neural.transfer.preconditioner import precondition
from core.neural.vgg import Network
from core.style.schedule import Scale, adds_detail
from core.style.spec import SpecUpdate, StyleSpec

# A scale ends early when a window of ten iterations lowers the loss by less than this share.
_MIN_GAIN = 1e-3
_WINDOW = 10

# Losses of a checkpoint and of this machine that differ by less than this share differ by rounding.
_SAME_LOSS = 0.01

# What is shown of a run has at least this size, in px, if the result has. A smaller image gets the
# detail of the photo for it: the coarsest scale is then presentable after a few iterations.
_SHOWN_PX = 512

# Seconds between two reports on an asynchronous device: reading the losses waits for it.
_REPORT_SECONDS = 0.05


@dataclass(frozen=True)
class RunProgress:
    """The progress of a run.

    Iterations count over all scales, from 1; losses are weighted and by name. style_crops: as in
    `StyleInputs`.
    """

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
    spec_updates: tuple[SpecUpdate, ...] = ()
    style_crops: tuple[Box | None, ...] = ()
    evaluations: int = 0  # forward and backward passes of this process for the run
    evaluated_pixels: int = 0  # the sum of the image's pixels over these

    @property
    def value(self) -> float:
        """The elapsed share of the time, 0 to 1, rounded so that it never falls."""
        return round(self.seconds / (self.seconds + self.seconds_left), 9)


@dataclass(frozen=True)
class StepEvent:
    """One step of a run: its progress and spec, the current picture, and a checkpoint.

    `picture` may be called at any time, on any thread; `checkpoint` only until the callback
    returns.
    """

    progress: RunProgress
    spec: StyleSpec
    picture: Callable[[], Image.Image]
    checkpoint: Callable[[], Checkpoint]


@dataclass(frozen=True)
class Control:
    """The callback's answer to a step: continue, stop, or continue with the weights of a spec.

    A stopped run returns the current picture. `stop` takes precedence over `spec`.
    """

    stop: bool = False
    spec: StyleSpec | None = None

    CONTINUE: ClassVar["Control"]
    STOP: ClassVar["Control"]


Control.CONTINUE = Control()
Control.STOP = Control(stop=True)

# Called after every iteration on a CPU, and many times a second on other devices. A run that
# continues from an optimizer's state calls it once before its first iteration. An exception that it
# raises ends the run.
OnProgress = Callable[[StepEvent], Control]

# Called once with the initial image, before its loss is known; not if a run resumes.
OnStart = Callable[[Image.Image], None]


@dataclass(frozen=True)
class StyleResult:
    """The finished picture and the facts of its run."""

    picture: Image.Image
    losses: dict[str, float]
    iterations: int
    seconds: float
    stopped: bool
    plan: Plan
    spec: StyleSpec  # at the end of the run
    spec_updates: tuple[SpecUpdate, ...]
    style_crops: tuple[Box | None, ...]  # as in `StyleInputs`


def stylize(
    inputs: StyleInputs,
    spec: StyleSpec,
    network: Network,
    on_progress: OnProgress | None = None,
    planner: Planner | None = None,
    *,
    resume: Checkpoint | None = None,
    on_start: OnStart | None = None,
) -> StyleResult:
    """Render the photo in the style of the paintings, coarse to fine.

    Source: Gatys, Ecker and Bethge 2015. The same pictures, spec, network, machine, number of
    threads and plan give the same picture to the bit. This also holds for a run that continues from
    a checkpoint. A checkpoint of another network is ignored. A checkpoint made with other weights
    counts as a spec update at its iteration.

    No scale ends above the loss at which it began, and the run does not end above that of its first
    image at the same size (after a spec update: of the updated image). Raises Diverged, with the
    best picture, if no step lowers the loss any more because every loss is far too high or not
    finite.

    Raises BadSpec, BadImage, OutOfMemory, Diverged, DeviceLost, and what `on_progress` raises.
    """
    with device.translate_device_errors():
        run = _Run(inputs, spec, network, on_progress, planner or Planner(network), resume=resume)
        return run.execute(on_start)


class _Run:
    """One run: the image and its position in the plan."""

    def __init__(
        self,
        inputs: StyleInputs,
        spec: StyleSpec,
        network: Network,
        on_progress: OnProgress | None,
        planner: Planner,
        *,
        resume: Checkpoint | None,
    ) -> None:
        inputs = inputs.without_frames(spec)
        self._spec, self._network = inputs.fit_spec(spec), network
        self._on_progress, self._planner = on_progress, planner
        self._style_sizes = [style.size for style in inputs.styles]
        self._network_id = f"{network.sha256} {network.dtype}"
        if resume is not None and resume.header.network != self._network_id:
            resume = None
        self._plan = planner.plan(
            inputs.content.size,
            self._style_sizes,
            self._spec,
            len(inputs.masks),
            resume.header.routes if resume else (),
            init=inputs.init.size if inputs.init else None,
        )
        self._inputs = inputs.with_regions(self._spec, network)
        self._tracker = ProgressTracker(self._plan.scales)
        # The newest image, with its margin, and its size without it.
        self._image: Tensor | None = None
        self._size = self._plan.scales[resume.header.scale - 1 if resume else 0].scale.size
        self._losses: dict[str, float] = {}
        self._done = 0  # iterations of the current scale that `_image` has behind it
        self._window_loss = float("inf")  # the loss at the end of the last window
        self._start_loss = float("inf")  # of the initial image, or of the updated one
        self._spec_updates: tuple[SpecUpdate, ...] = ()
        self._resume = resume
        if resume is not None:
            self._image = resume.tensors["image"].to(network.device)
            self._losses = resume.header.losses
            self._start_loss = resume.header.start_loss
            self._tracker.restore(resume.header)
            self._spec_updates = tuple(resume.header.spec_updates)

    def execute(self, on_start: OnStart | None) -> StyleResult:
        # A large first scale needs its memory for itself.
        if on_start is not None and self._resume is None and max(self._size) <= _SHOWN_PX:
            on_start(self._start_picture())
        first = self._resume.header.scale if self._resume else 1
        stopped = False
        for number in range(first, len(self._plan.scales) + 1):
            stopped = self._run_scale(number)
            if stopped:
                break
        assert self._image is not None, "a plan has scales"
        return StyleResult(
            picture=self._result_picture(self._image),
            losses=self._losses,
            iterations=self._tracker.iteration,
            seconds=self._tracker.seconds,
            stopped=stopped,
            plan=self._plan,
            spec=self._spec,
            spec_updates=self._spec_updates,
            style_crops=tuple(self._inputs.style_crops),
        )

    def _run_scale(self, number: int) -> bool:
        """Run scale `number`, from 1; True if the callback stops the run.

        If memory runs out, continue by a smaller route. Raises OutOfMemory if that fails too.
        """
        self._done = 0
        for planned in self._routes(self._plan.scales[number - 1]):
            self._tracker.start_scale(number, planned)
            try:
                return self._optimize(planned)
            except (RuntimeError, MemoryError, errors.OutOfMemory) as error:
                if not device.is_out_of_memory(error):
                    raise
            # Outside of the except clause: the traceback refers to the tensors that fill the
            # memory.
            device.release_memory(self._network.device)
        raise errors.OutOfMemory()

    def _routes(self, planned: PlannedScale) -> Iterator[PlannedScale]:
        """The scale by its planned route, then by a smaller one if there is one."""
        yield planned
        smaller = self._planner.shrink(
            planned, self._style_sizes, self._spec, len(self._inputs.masks)
        )
        if smaller is not None:
            yield smaller

    def _optimize(self, planned: PlannedScale) -> bool:
        """Iterate at one scale by one route; True if the callback stops the run."""
        self._window_loss = float("inf")
        target, optimizer = self._prepare(planned)
        if self._done and optimizer.is_resumed and self._image is not None:
            if self._report(target, optimizer, self._image, self._done):
                return True
            self._check_resumed(optimizer, target, self._image)
        count = self._done
        while count < self._tracker.scale_iterations:  # which may change meanwhile
            image, terms = next(optimizer)
            count += 1
            self._tracker.count()
            window_ends = count % _WINDOW == 0
            is_last = count == self._tracker.scale_iterations
            if not (window_ends or is_last or self._tracker.is_due(self._network.device)):
                continue
            self._losses, self._image, self._done = terms.by_name(), image, count
            self._size = planned.scale.size
            if int(optimizer.diverging_steps) >= MAX_DIVERGING_STEPS:
                raise errors.Diverged(picture=self._result_picture(image))
            # A fixed number is never cut.
            if window_ends and not self._spec.iterations and bool(optimizer.may_have_converged):
                self._end_window(count)
            if self._report(target, optimizer, image, count):
                return True
        return False

    def _end_window(self, count: int) -> None:
        """Skip the rest of this scale if the last window has gained next to nothing."""
        before, self._window_loss = self._window_loss, self._losses["total"]
        if 0 <= before - self._window_loss <= _MIN_GAIN * self._window_loss:
            self._tracker.skip(self._tracker.scale_iterations - count)

    def _prepare(self, planned: PlannedScale) -> tuple[ScaleTarget, LBFGS | Adam]:
        """The target and the optimizer of a scale.

        The optimizer starts from the first image of the scale, or from the image of a checkpoint or
        of another route.
        """
        target = self._inputs.target_at(
            planned.scale, self._spec_at(planned), self._network, planned.route.tile_px
        )
        image, state = self._image, None
        if self._resume is not None:
            state = self._restore(self._resume.header, self._resume.tensors, planned)
            self._resume = None
        else:
            self._tracker.add_done(self._done)
            if image is None:
                image = self._inputs.initial_image(target.photo, self._spec)
            elif not self._done:
                enlarged = self._enlarge(self._without_margin(image), target.photo)
                enlarged = self._inputs.add_grain(enlarged, target.textures, self._spec)
                image = target.objective.margin.mirror(enlarged)
        assert image is not None, "a checkpoint has an image"
        evaluate = partial(self._evaluate, target, planned.scale)
        negligible = target.objective.negligible_loss
        optimizer: LBFGS | Adam
        if self._spec.optimizer == "adam":
            optimizer = Adam(evaluate, image, state, negligible=negligible)
        else:
            history_device = torch.device("cpu") if planned.route.history_on_host else None
            optimizer = LBFGS(
                evaluate,
                image,
                planned.route.history,
                history_device,
                state,
                half_pairs=planned.route.half_pairs,
                precondition=precondition,
                negligible=negligible,
            )
        self._check_start(optimizer, target)
        return target, optimizer

    def _enlarge(self, image: Tensor, photo: Tensor) -> Tensor:
        """The image in the size of the photo: the first one of a finer scale.

        With the photo's own detail, where the run begins with the photo: a smaller image has none,
        and to paint it anew takes many iterations.
        """
        height, width = photo.shape[2:]
        enlarged = pixels.enlarge(image, (width, height), seamless=self._spec.seamless)
        if not adds_detail(self._spec):
            return enlarged
        return pixels.add_detail(enlarged, photo, image.shape[2:])

    def _evaluate(self, target: ScaleTarget, scale: Scale, image: Tensor) -> tuple[Losses, Tensor]:
        self._tracker.count_evaluation(scale.width * scale.height)
        return target.value_and_gradient(image)

    def _check_start(self, optimizer: LBFGS | Adam, target: ScaleTarget) -> None:
        """Raise Diverged if the first loss of a scale is not finite.

        If it is above the loss at the start of the run, start the scale from the initial image
        instead, provided that is better. So no run ends worse than it began.
        """
        loss = self._finite_loss(optimizer)
        if isfinite(self._start_loss) and loss > self._start_loss and not self._done:
            initial = self._inputs.initial_image(target.photo, self._spec)
            if target.objective(initial).by_name()["total"] < loss:
                optimizer.start_from(initial)
        if not isfinite(self._start_loss):
            self._start_loss = loss

    def _check_resumed(self, optimizer: LBFGS | Adam, target: ScaleTarget, image: Tensor) -> None:
        """Use the loss of this machine: another one may have rounded differently.

        With a loss that it cannot reach, the optimizer would reject every step. If the difference
        is not small, start again from the image.
        """
        losses = target.value_and_gradient(image)[0]
        before, after = (one.by_name()["total"] for one in (optimizer.losses, losses))
        if before == after:
            return
        if abs(after - before) <= _SAME_LOSS * abs(before):
            optimizer.losses = losses
        else:
            optimizer.reset()

    def _finite_loss(self, optimizer: LBFGS | Adam) -> float:
        """The optimizer's loss. Raises Diverged if it is not finite."""
        loss = optimizer.losses.by_name()["total"]
        if not isfinite(loss):
            picture = None if self._image is None else self._result_picture(self._image)
            raise errors.Diverged(picture=picture)
        return loss

    def _restore(
        self, header: CheckpointHeader, state: Mapping[str, Tensor], planned: PlannedScale
    ) -> Mapping[str, Tensor] | None:
        """Restore the position from a checkpoint; return the optimizer's state if reusable."""
        self._done = header.iteration
        self._tracker.add_done(header.iteration)
        if header.weights != self._spec.weights:
            self._start_loss = float("inf")
            self._record_update(header.weights, header.iteration)
            return None
        self._window_loss = header.window_loss
        # On another machine, or with less memory, the route may differ: then only the image is
        # reusable.
        is_same_route = planned.route == header.routes[self._tracker.scale - 1]
        return state if is_same_route else None

    def _report(
        self, target: ScaleTarget, optimizer: LBFGS | Adam, image: Tensor | None, count: int
    ) -> bool:
        """Call the callback and apply its answer; True if it stops the run."""
        if self._on_progress is None or image is None:
            return False
        make_checkpoint = _Releasable(partial(self._checkpoint, optimizer, count))
        event = StepEvent(
            progress=replace(
                self._tracker.progress(self._losses),
                spec_updates=self._spec_updates,
                style_crops=tuple(self._inputs.style_crops),
            ),
            spec=self._spec,
            picture=partial(self._show, self._without_margin(image), self._spec),
            checkpoint=make_checkpoint,
        )
        try:
            control = self._on_progress(event)
        finally:
            make_checkpoint.release()
        if control.spec is not None and not control.stop:
            self._apply_update(self._inputs.fit_spec(control.spec), target, optimizer, count)
        return control.stop

    def _apply_update(
        self, spec: StyleSpec, target: ScaleTarget, optimizer: LBFGS | Adam, count: int
    ) -> None:
        """Continue with other weights.

        That is another function, so the optimizer drops its history.
        """
        before, self._spec = self._spec.weights, spec
        if spec.weights != before:
            target.set_weights(self._spec_at(self._tracker.planned[self._tracker.scale - 1]))
            optimizer.reset()
            self._start_loss = self._finite_loss(optimizer)
            self._record_update(before, count)

    def _record_update(self, before: Mapping[str, Any], count: int) -> None:
        """Record an update for the result's provenance.

        Extends the last scale so that the update has an effect.
        """
        after = self._spec.weights
        changed = [name for name in after if after[name] != before[name]]
        update = SpecUpdate(
            iteration=self._tracker.iteration,
            before={name: before[name] for name in changed},
            after={name: after[name] for name in changed},
        )
        self._spec_updates = (*self._spec_updates, update)
        self._window_loss = float("inf")  # losses of two functions cannot be compared
        self._tracker.extend(count)

    def _checkpoint(self, optimizer: LBFGS | Adam, count: int) -> Checkpoint:
        header = CheckpointHeader(
            scale=self._tracker.scale,
            iteration=count,
            iterations=list(self._tracker.iterations),
            window_loss=self._window_loss,
            start_loss=self._start_loss,
            losses=self._losses,
            seconds=self._tracker.seconds,
            routes=[planned.route for planned in self._tracker.planned],
            network=self._network_id,
            weights=self._spec.weights,
            spec_updates=list(self._spec_updates),
        )
        return Checkpoint(header, optimizer.state())

    def _spec_at(self, planned: PlannedScale) -> StyleSpec:
        """The spec for one scale: its layers. With the paper's objective, alpha grows when coarser.

        The paper's content loss is a sum over positions, its style loss is not. At a coarser scale
        alpha makes up for the missing positions, so that beta means the same at every scale.
        """
        if self._spec.objective != "gatys":
            return planned.scale.adapt(self._spec)
        last = self._plan.scales[-1].scale
        factor = last.width * last.height / (planned.scale.width * planned.scale.height)
        return self._spec.model_copy(update={"content_weight": self._spec.content_weight * factor})

    @device.translate_device_errors()  # a callback may call it outside of `stylize`
    def _show(self, image: Tensor, spec: StyleSpec) -> Image.Image:
        """The picture of an image without its margin; of a small one, in the size to be shown."""
        if max(image.shape[2:]) < max(self._shown_size):
            image = self._enlarge(image, self._shown_photo.to(image.device))
        return self._inputs.render(image, spec)

    @cached_property
    def _shown_size(self) -> tuple[int, int]:
        sizes = [planned.scale.size for planned in self._plan.scales]
        return next((size for size in sizes if max(size) >= _SHOWN_PX), sizes[-1])

    @cached_property
    def _shown_photo(self) -> Tensor:
        return self._inputs.photo_at(self._shown_size, self._spec)

    def _start_picture(self) -> Image.Image:
        """The initial image, of the coarsest scale."""
        photo = self._inputs.photo_at(self._size, self._spec)
        image = self._inputs.initial_image(photo.to(self._network.device), self._spec)
        return self._show(self._without_margin(image), self._spec)

    def _result_picture(self, image: Tensor) -> Image.Image:
        """The picture in the requested size, whatever the scale of the image."""
        image, size = self._without_margin(image), self._plan.scales[-1].scale.size
        if self._size != size:
            image = self._enlarge(image, self._inputs.photo_at(size, self._spec).to(image.device))
        return self._inputs.render(image, self._spec)

    def _without_margin(self, image: Tensor) -> Tensor:
        width, height = self._size
        return Margin.of_image(height, width, self._spec).cut(image)


class _Releasable:
    """The function of an event that makes a checkpoint, until the callback returns.

    The callback may keep the event. The optimizer, whose pairs take up to 3 GB at 4096 px, must not
    stay with it into the next scale.
    """

    def __init__(self, make: Callable[[], Checkpoint]) -> None:
        self._make: Callable[[], Checkpoint] | None = make

    def __call__(self) -> Checkpoint:
        if self._make is None:
            raise RuntimeError("an event's checkpoint is available until its callback returns")
        return self._make()

    def release(self) -> None:
        self._make = None


class ProgressTracker:
    """Counts iterations and estimates the time left.

    The estimate comes from the planned seconds of the remaining scales.
    """

    def __init__(self, planned: Sequence[PlannedScale]) -> None:
        self.iteration = 0  # over all scales
        self.scale = 0  # number of the current scale, from 1
        self.planned = list(planned)
        self.iterations = [one.scale.iterations for one in planned]  # of each scale
        self._begin = self._reported = time.monotonic()
        self._scale_began, self._scale_done = self._begin, 0
        self._share = 0.0  # the elapsed share of the time in the last report
        self._evaluations = self._evaluated_pixels = 0

    def restore(self, header: CheckpointHeader) -> None:
        """Take over the counts of an earlier run."""
        self.iterations = list(header.iterations)
        self._begin -= header.seconds

    @property
    def seconds(self) -> float:
        """The seconds since the run began, earlier attempts included."""
        return time.monotonic() - self._begin

    def is_due(self, device: torch.device) -> bool:
        """Whether to read the losses from the device; reading waits until the device is done."""
        return device.type == "cpu" or time.monotonic() - self._reported >= _REPORT_SECONDS

    def start_scale(self, number: int, planned: PlannedScale) -> None:
        """Scale `number`, from 1, starts, or starts again by another route."""
        self.scale, self.planned[number - 1] = number, planned
        self.iteration = sum(self.iterations[: number - 1])
        self._scale_began, self._scale_done = time.monotonic(), 0

    def add_done(self, iterations: int) -> None:
        """Count iterations of this scale that an earlier run, or another route, has done."""
        self.iteration += iterations
        self._scale_done = iterations

    def count_evaluation(self, pixels: int) -> None:
        """Count a forward and backward pass of an image of so many pixels."""
        self._evaluations += 1
        self._evaluated_pixels += pixels

    def count(self) -> None:
        """Count one more iteration."""
        self.iteration += 1

    @property
    def scale_iterations(self) -> int:
        """Planned iterations of the current scale."""
        return self.iterations[self.scale - 1]

    def extend(self, count: int) -> None:
        """Extend the last scale, after `count` of its iterations, by half of its planned ones.

        It takes at most twice its planned iterations, but always one more. Other scales are not
        extended.
        """
        if self.scale == len(self.planned):
            planned = self.planned[-1].scale.iterations
            extended = min(count + planned // 2, 2 * planned)
            self.iterations[-1] = max(self.iterations[-1], count + 1, extended)
            self._share = 0.0  # more is left than the last report says

    def skip(self, iterations: int) -> None:
        """Drop iterations of this scale that will not run."""
        self.iterations[self.scale - 1] -= iterations

    def progress(self, losses: dict[str, float]) -> RunProgress:
        """The current progress.

        The elapsed share of the time never falls, except after an extension.
        """
        index, now = self.scale - 1, time.monotonic()
        before = sum(self.iterations[:index])
        work = [  # seconds of each scale
            planned.iteration_seconds * count
            for planned, count in zip(self.planned, self.iterations, strict=True)
        ]
        here = self.planned[index].iteration_seconds
        done = sum(work[:index]) + here * (self.iteration - before)
        left = here * (before + self.iterations[index] - self.iteration) + sum(work[index + 1 :])
        # A slower route leaves more to do than the last report says; the share then stays.
        self._share = max(self._share, done / (done + left))
        self._reported = now
        return RunProgress(
            scale=self.scale,
            scales=len(self.planned),
            width=self.planned[index].scale.width,
            height=self.planned[index].scale.height,
            iteration=self.iteration,
            iterations=sum(self.iterations),
            losses=losses,
            seconds=now - self._begin,
            iterations_per_second=(self.iteration - before - self._scale_done)
            / (now - self._scale_began),
            seconds_left=(now - self._begin) * (1 - self._share) / self._share,
            evaluations=self._evaluations,
            evaluated_pixels=self._evaluated_pixels,
        )
