"""Coarse to fine: which sizes a run goes through, and how many iterations each takes. Knows no tensors.

Large strokes can only be made where the network's field of view (132 px for VGG-16) spans much of the picture; fine
ones need few iterations on top (Gatys et al. 2017, "Controlling Perceptual Factors", section 6).
"""

import math
from dataclasses import dataclass

from core.style.spec import MIN_RESULT_SIDE_PX, StyleSpec, result_size

# Iterations at full size by `quality`.
ITERATIONS = {"draft": 25, "standard": 70, "fine": 210}

NOISE_FACTOR = 4

COARSEST_PX = 128  # below it a photo's content is lost, and is not found again at the finer scales
FINE_PX = 1024
STEP = math.sqrt(2)


@dataclass(frozen=True)
class Scale:
    """One size of the ladder."""

    width: int
    height: int
    iterations: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in px."""
        return self.width, self.height

    @property
    def long_side(self) -> int:
        """In px."""
        return max(self.width, self.height)


def schedule(spec: StyleSpec, width: int, height: int, begun_px: int | None = None) -> list[Scale]:
    """The scales for a photo of `width` x `height` px, coarsest first; the last is the result's size.

    begun_px: the long side of the picture to begin with, if that is what `init` says.
    Raises BadSpec where `size` is too small for the photo's shape.
    """
    result_size(width, height, spec.size)
    sides = [spec.size]
    while _goes_on(spec, sides, width, height, begun_px):
        sides.append(round(spec.size / STEP ** len(sides)))
    *coarser, last = [
        result_size(width, height, side, seamless=spec.seamless) for side in reversed(sides)
    ]
    most = spec.iterations or ITERATIONS[spec.quality]
    half = max(1, most // 2)
    # Half as many are enough on the way, and above what the network's view still makes sense of.
    at_last = half if coarser and max(last) > FINE_PX and not spec.iterations else most
    is_begun = (
        spec.init == "picture" and not spec.iterations
    )  # the coarsest scale, too, is on the way only
    on_the_way = [half if is_begun else most] + [half] * len(coarser)
    if (
        spec.init == "noise" and not spec.iterations
    ):  # nothing is there yet; where it is cheap, take the time
        on_the_way[0], at_last = NOISE_FACTOR * most, at_last if coarser else NOISE_FACTOR * most
    return [
        *(Scale(*size, count) for size, count in zip(coarser, on_the_way, strict=False)),
        Scale(*last, at_last),
    ]


def _goes_on(
    spec: StyleSpec, sides: list[int], width: int, height: int, begun_px: int | None
) -> bool:
    coarser = round(spec.size / STEP ** len(sides))
    narrow = coarser * min(width, height) < MIN_RESULT_SIDE_PX * max(width, height)
    if narrow or len(sides) == spec.scales:
        return False
    # A picture to begin with has its detail already; at a scale no finer than its own it would lose it.
    is_finer = spec.init != "picture" or (begun_px is not None and coarser > begun_px)
    return bool(spec.scales) or (coarser >= COARSEST_PX and is_finer)
