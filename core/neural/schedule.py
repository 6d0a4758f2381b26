"""Coarse to fine: which sizes a run goes through, and how many iterations each takes. Knows no tensors.

Large strokes can only be made where the network's field of view (132 px for VGG-16) spans much of the picture; fine
ones need few iterations on top (Gatys et al. 2017, "Controlling Perceptual Factors", section 6).
"""

import math
from dataclasses import dataclass

from core.spec import MIN_RESULT_SIDE_PX, StyleSpec, result_size

COARSEST_PX = 128  # below it a photo's content is lost, and is not found again at the finer scales
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


def schedule(spec: StyleSpec, width: int, height: int) -> list[Scale]:
    """The scales for a photo of `width` x `height` px, coarsest first; the last is the result's size.

    Raises BadSpec where `size` is too small for the photo's shape.
    """
    result_size(width, height, spec.size)
    sides = [spec.size]
    while _goes_on(spec, sides, width, height):
        sides.append(round(spec.size / STEP ** len(sides)))
    first, *finer = [result_size(width, height, side) for side in reversed(sides)]
    half = max(1, spec.iterations // 2)
    return [Scale(*first, spec.iterations), *(Scale(*size, half) for size in finer)]


def _goes_on(spec: StyleSpec, sides: list[int], width: int, height: int) -> bool:
    coarser = round(spec.size / STEP ** len(sides))
    narrow = coarser * min(width, height) < MIN_RESULT_SIDE_PX * max(width, height)
    if narrow or len(sides) == spec.scales:
        return False
    return bool(spec.scales) or coarser >= COARSEST_PX
