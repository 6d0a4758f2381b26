"""The run: targets, first image, one scale, all scales. Progress goes to a callback, which may stop the run.

Knows no storage, no jobs and no printing.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from PIL import Image
from torch import Tensor

from core import errors
from core.neural import pixels
from core.neural.losses import Losses, Objective, mixed_gram
from core.neural.optimize import OPTIMIZERS
from core.neural.schedule import Scale, schedule
from core.neural.vgg import Network
from core.spec import MIN_RESULT_SIDE_PX, StyleSpec

MAX_PAINTING_PX = 2048

# What an iteration costs beside its pixels, in pixels.
_FIXED_COST_PX = 8_000


@dataclass(frozen=True)
class Progress:
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

    @property
    def value(self) -> float:
        """The share of the time that is over, 0 to 1."""
        return self.seconds / (self.seconds + self.seconds_left)


# Called after every iteration with the progress and a function that renders the picture so far. True stops the run,
# which then returns what it has; an Interrupt raised here ends it with nothing.
OnProgress = Callable[[Progress, Callable[[], Image.Image]], bool | None]


@dataclass(frozen=True)
class Painting:
    """The finished picture and what its making took."""

    picture: Image.Image
    losses: dict[str, float]
    iterations: int
    seconds: float
    stopped: bool


def stylize(
    content: Image.Image,
    styles: Sequence[Image.Image],
    spec: StyleSpec,
    network: Network,
    on_progress: OnProgress | None = None,
) -> Painting:
    """The photo `content` in the style of the paintings `styles` (Gatys, Ecker and Bethge 2015), coarse to fine.

    Same pictures, spec, network and machine: same picture. Raises BadSpec, Diverged, and what `on_progress` raises.
    """
    spec = spec.for_styles(len(styles))
    scales = schedule(spec, *content.size)
    clock, render = _Clock(scales), _renderer(content, spec)
    image, losses, stopped = torch.empty(0), {}, False
    for number, scale in enumerate(scales, start=1):
        photo, objective = targets(content, styles, spec, network, scale)
        image = _first_image(photo, styles, spec) if number == 1 else pixels.enlarge(image, scale.size)
        iterates = OPTIMIZERS[spec.optimizer](objective.with_gradient, image)
        for iterate, terms in islice(iterates, scale.iterations):
            image, losses = iterate, _finite(terms)
            progress = clock.tick(number, losses)
            if on_progress is not None and on_progress(progress, partial(render, image)):
                stopped = True
                break
        if stopped:  # whatever the scale, the picture has the size that was asked for
            image = pixels.enlarge(image, scales[-1].size)
            break
    return Painting(render(image), losses, clock.iteration, clock.seconds, stopped)


def targets(
    content: Image.Image, styles: Sequence[Image.Image], spec: StyleSpec, network: Network, scale: Scale
) -> tuple[Tensor, Objective]:
    """The photo at this scale as an image tensor, and the objective that judges images of its size."""
    photo = pixels.to_image(content, scale.size).to(network.device)
    paintings = [_painting(style, spec, scale).to(network.device) for style in styles]
    if spec.preserve_color == "luminance":
        photo = pixels.luminance(photo)
        paintings = [pixels.match_luminance(pixels.luminance(painting), photo) for painting in paintings]
    with torch.no_grad():
        grams = mixed_gram(network, paintings, spec) if spec.style_weight else {}
    return photo, Objective(network, spec, photo, grams)


def _painting(style: Image.Image, spec: StyleSpec, scale: Scale) -> Tensor:
    """The painting with its long side at the scale's times `style_scale`: that sets the size of the strokes.

    Never enlarged beyond its own size, where there are no strokes to find, nor beyond what fits into the memory of a
    card, but never too narrow for the network.
    """
    wanted = min(scale.long_side * spec.style_scale, MAX_PAINTING_PX) / max(style.size)
    factor = max(min(wanted, 1.0), MIN_RESULT_SIDE_PX / min(style.size))
    return pixels.to_image(style, (round(style.width * factor), round(style.height * factor)))


def _first_image(photo: Tensor, styles: Sequence[Image.Image], spec: StyleSpec) -> Tensor:
    """(1, 3, H, W) in [0, 1]: the photo, white noise, or the first painting."""
    if spec.init == "content":
        return photo.clone()
    if spec.init == "noise":
        generator = torch.Generator().manual_seed(spec.seed)
        return torch.rand(photo.shape, generator=generator).to(photo.device)
    painting = pixels.to_image(styles[0], (photo.shape[3], photo.shape[2])).to(photo.device)
    return pixels.luminance(painting) if spec.preserve_color == "luminance" else painting


def _renderer(content: Image.Image, spec: StyleSpec) -> Callable[[Tensor], Image.Image]:
    def render(image: Tensor) -> Image.Image:
        if spec.preserve_color == "luminance":
            photo = pixels.to_image(content, (image.shape[3], image.shape[2])).to(image.device)
            image = pixels.with_color_of(image, photo)
        return pixels.to_picture(image)

    return render


def _finite(terms: Losses) -> dict[str, float]:
    losses = terms.by_name()
    if not abs(losses["total"]) < float("inf"):
        raise errors.Diverged()
    return losses


class _Clock:
    """Counts iterations and foretells the end from the pixels that are left."""

    def __init__(self, scales: Sequence[Scale]) -> None:
        self.iteration = 0
        self._scales = scales
        self._iterations = sum(scale.iterations for scale in scales)
        self._work = sum(_cost(scale) * scale.iterations for scale in scales)
        self._done = 0.0
        self._begin = self._last_tick = time.monotonic()
        self._scale, self._scale_began, self._before = 0, self._begin, 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._begin

    def tick(self, number: int, losses: dict[str, float]) -> Progress:
        """One more iteration, at scale `number`, counted from 1."""
        if number != self._scale:
            self._scale, self._scale_began, self._before = number, self._last_tick, self.iteration
        scale = self._scales[number - 1]
        self.iteration += 1
        self._done += _cost(scale)
        self._last_tick = time.monotonic()
        seconds = self._last_tick - self._begin
        return Progress(
            scale=number,
            scales=len(self._scales),
            width=scale.width,
            height=scale.height,
            iteration=self.iteration,
            iterations=self._iterations,
            losses=losses,
            seconds=seconds,
            iterations_per_second=(self.iteration - self._before) / (self._last_tick - self._scale_began),
            seconds_left=seconds * (self._work - self._done) / self._done,
        )


def _cost(scale: Scale) -> float:
    return scale.width * scale.height + _FIXED_COST_PX
