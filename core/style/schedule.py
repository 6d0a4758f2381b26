"""Coarse to fine: the sizes that a run goes through, and what each of them takes.

Large strokes form only where the network's receptive field (186 px for VGG-19) spans much of the
picture. Fine strokes then need few more iterations (Gatys et al. 2017, "Controlling Perceptual
Factors", section 6). Knows no tensors.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from core.style.spec import MIN_RESULT_SIDE_PX, Layer, StyleSpec, result_size

# Iterations at the coarsest scale by `quality`, for the default start and method.
ITERATIONS = {"draft": 20, "standard": 32, "fine": 96}
OTHER_FACTOR = 1.4  # times as many in other runs, whose first image is further from their end

NOISE_FACTOR = 4  # times as many iterations at the coarsest scale when a run starts from noise

COARSEST_PX = 128  # below it a photo's content is lost, and the finer scales do not recover it

# In a run that adds the photo's detail, the finer scales leave these layers to the coarsest one,
# and compare the content in a shallower one instead. The coarser scales have placed the strokes;
# what is left are their edges. A pass to relu3_1 takes 31 % of the multiplications to relu5_1.
_COARSEST_BLOCKS = ("relu4_", "relu5_")
_FINER_CONTENT: Layer = "relu3_1"
# That content holds the photo more strictly, so the style weighs this much more beside it.
_FINER_STYLE = 2.5
_FINER_COST = 0.37  # measured: the first layers take more time than their multiplications

# The same for the other runs.
STEP = math.sqrt(2)  # ratio of two neighboring scales
FINE_PX = 1024  # above it half the iterations do: the receptive field spans little of the picture

# What an evaluation of the network takes beside its pixels, as a number of pixels; and the
# evaluations of a scale beside its iterations: the first one, and the measurement of the pictures.
_OVERHEAD_PX = 8000
_OVERHEAD_EVALUATIONS = 2


@dataclass(frozen=True)
class _Start:
    """What a kind of start changes.

    Factors of the iterations, and whether coarser scales are skipped.
    """

    coarsest: float = 1  # at the coarsest of several scales
    only: int = 1  # at the only scale
    has_detail: bool = False  # scales up to the size of the initial picture would lose its detail


_STARTS = {
    "content": _Start(),
    "style": _Start(),
    # The image holds nothing yet. Iterations are cheap at the coarsest scale, so it takes more.
    "noise": _Start(coarsest=NOISE_FACTOR, only=NOISE_FACTOR),
    # A picture, or the result of an earlier run that is continued: at the coarsest scale too the
    # run is on its way only.
    "picture": _Start(coarsest=0.5, has_detail=True),
}


@dataclass(frozen=True)
class Scale:
    """One size of a run, in px, and its iterations.

    is_finer: whether a coarser one has dealt with the deep layers.
    """

    width: int
    height: int
    iterations: int
    is_finer: bool = False

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in px."""
        return self.width, self.height

    @property
    def long_side(self) -> int:
        """The longer side in px."""
        return max(self.width, self.height)

    def adapt(self, spec: StyleSpec) -> StyleSpec:
        """The spec for this scale.

        A finer one leaves the style's deep layers out, unless there are no others. It compares the
        content in relu3_1 instead of deeper layers, and weighs the style more.
        """
        style = {
            layer: weight for layer, weight in spec.style_layers.items() if not _is_deep(layer)
        }
        if not self.is_finer or not any(style.values()):
            return spec
        content: dict[Layer, float] = {}
        for layer, weight in spec.content_layers.items():
            shallow = _FINER_CONTENT if _is_deep(layer) else layer
            content[shallow] = content.get(shallow, 0) + weight
        return spec.model_copy(
            update={
                "style_layers": style,
                "content_layers": content,
                "style_weight": _FINER_STYLE * spec.style_weight,
            }
        )


def _is_deep(layer: str) -> bool:
    return layer.startswith(_COARSEST_BLOCKS)


def adds_detail(spec: StyleSpec) -> bool:
    """Whether the run begins near its end: measured for the default method, from the photo.

    Its first image has the paintings' colors, and each finer scale gets the detail that the photo
    has at its size.
    """
    is_default = spec.objective == "relative" and spec.optimizer == "lbfgs"
    return is_default and spec.init == "content" and spec.content_weight > 0


def schedule(spec: StyleSpec, width: int, height: int, init_px: int | None = None) -> list[Scale]:
    """The scales for a photo of `width` x `height` px, coarsest first.

    The last one has the size of the result. init_px: the long side of the initial picture, for
    init=picture. Raises BadSpec if `size` is too small for the photo's shape.
    """
    result_size(width, height, spec.size)
    if adds_detail(spec) and not spec.scales:
        sides = _doubling_sides(spec.size, width, height)
    else:
        sides = [spec.size]
        while _has_coarser(spec, sides, width, height, init_px):
            sides.append(round(spec.size / STEP ** len(sides)))
        sides.reverse()
    sizes = [result_size(width, height, side, seamless=spec.seamless) for side in sides]
    counts = _iterations(spec, len(sizes), long_side=max(sizes[-1]))
    return [
        Scale(*size, count, is_finer=adds_detail(spec) and index > 0)
        for index, (size, count) in enumerate(zip(sizes, counts, strict=True))
    ]


def _doubling_sides(last: int, width: int, height: int) -> list[int]:
    """The long sides of the scales, each about twice the one before, from 128 px or a little more.

    The short side of a narrow photo needs more.
    """
    least = -(-MIN_RESULT_SIDE_PX * max(width, height) // min(width, height))
    first = max(COARSEST_PX, least)
    doublings = max(0, round(math.log2(last / first)))
    return [round(first * (last / first) ** (one / doublings)) for one in range(doublings)] + [last]


def count_work(scales: Iterable[Scale]) -> int:
    """The work of a run, in pixel evaluations. Its time grows with it on every device."""
    return round(
        sum(
            (scale.iterations + _OVERHEAD_EVALUATIONS)
            * (scale.width * scale.height + _OVERHEAD_PX)
            * (_FINER_COST if scale.is_finer else 1)
            for scale in scales
        )
    )


def _iterations(spec: StyleSpec, scales: int, long_side: int) -> list[int]:
    """The iterations of each scale, coarsest first. long_side: of the last scale, in px."""
    full = spec.iterations or ITERATIONS[spec.quality]
    if not adds_detail(spec) and not spec.iterations:
        full = round(OTHER_FACTOR * full)
    half = max(1, full // 2)
    if adds_detail(spec) and not spec.iterations:
        return [full, *[half] * (scales - 1)]
    # A given number is kept as it is, for every kind of start.
    start = _Start() if spec.iterations else _STARTS[spec.init]
    if scales == 1:
        return [start.only * full]
    coarsest = int(start.coarsest * full)
    is_fine = long_side > FINE_PX and not spec.iterations
    last = half if is_fine else full
    return [coarsest, *[half] * (scales - 2), last]


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
    if _STARTS[spec.init].has_detail and (init_px is None or coarser <= init_px):
        return False
    return coarser >= COARSEST_PX
