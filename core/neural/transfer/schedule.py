"""Coarse to fine: the sizes that a run goes through, and the iterations of each. Knows no tensors.

Large strokes form only where the network's receptive field (132 px for VGG-16) spans much of the
picture. Fine strokes then need few more iterations (Gatys et al. 2017, "Controlling Perceptual
Factors", section 6).
"""

import math
from dataclasses import dataclass

from core.style.spec import MIN_RESULT_SIDE_PX, StyleSpec, result_size

# Iterations at full size by `quality`.
ITERATIONS = {"draft": 25, "standard": 70, "fine": 210}

NOISE_FACTOR = 4  # times as many iterations at the coarsest scale when a run starts from noise

COARSEST_PX = 128  # below it a photo's content is lost, and the finer scales do not recover it
FINE_PX = (
    1024  # above it half the iterations are enough: the receptive field spans little of the picture
)
STEP = math.sqrt(2)  # ratio of two neighboring scales


@dataclass(frozen=True)
class Scale:
    """One size of a run, in px, and its iterations."""

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


def schedule(spec: StyleSpec, width: int, height: int, init_px: int | None = None) -> list[Scale]:
    """The scales for a photo of `width` x `height` px, coarsest first; the last one has the size of
    the result.

    init_px: the long side of the initial picture, for init=picture.
    Raises BadSpec if `size` is too small for the photo's shape.
    """
    result_size(width, height, spec.size)
    sides = [spec.size]
    while _has_coarser(spec, sides, width, height, init_px):
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


def _has_coarser(
    spec: StyleSpec, sides: list[int], width: int, height: int, init_px: int | None
) -> bool:
    """Whether there is a scale below the coarsest of `sides`."""
    coarser = round(spec.size / STEP ** len(sides))
    is_too_narrow = coarser * min(width, height) < MIN_RESULT_SIDE_PX * max(width, height)
    if is_too_narrow or len(sides) == spec.scales:
        return False
    if spec.scales:
        return True
    # An initial picture has its detail already; a scale no finer than its own would lose it.
    is_finer = spec.init != "picture" or (init_px is not None and coarser > init_px)
    return coarser >= COARSEST_PX and is_finer
