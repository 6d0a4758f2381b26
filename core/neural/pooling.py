"""The poolings of a network, forward and backward through the ReLU before them."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from core.neural.convolution import mask_where_zero

Pooling = Literal["max", "average", "l2"]

# Factors that give the responses after another pooling the size with which the deeper layers were
# trained. Measured with the paper's VGG-19 on photos and paintings; torchvision's VGG-16 would need
# more (docs/benchmarks/style.md).
POOLING_SCALES: dict[Pooling, float] = {"max": 1.0, "average": 1.4, "l2": 1.3}

# The window of l2 pooling along an axis: binomial, over the two positions of a cell and one more on
# each side.
_WINDOW = (1 / 8, 3 / 8, 3 / 8, 1 / 8)
# In float16, responses are divided by this before they are squared, so that they stay below 65,504.
_SQUARE_UNIT = 16.0
# Divides where all responses of a window are 0, or so small that their squares are. The quotient
# stays finite, and is multiplied by such a response.
_LEAST_POOLED = 1e-15


def pool(x: Tensor, pooling: Pooling) -> Tensor:
    """The pooled responses, (B, C, h, w) -> (B, C, h/2, w/2), rounded down."""
    if pooling == "max":
        return functional.max_pool2d(x, 2)
    if pooling == "average":
        return functional.avg_pool2d(x, 2).mul_(POOLING_SCALES[pooling])
    return _l2_pool(x)


def unpool(g: Tensor, x: Tensor, pooled: Tensor, pooling: Pooling) -> Tensor:
    """dL/dx from dL/dpooled, 0 where x is 0: already through the ReLU that made x.

    Overwrites g and `pooled`. Finds the positions of the maxima again: storing them costs more.
    """
    if pooling == "max":
        mask_where_zero(g, pooled)  # a quarter of the positions of x
        positions = torch.ops.aten.max_pool2d_with_indices(x, [2, 2])[1]
        return torch.ops.aten.max_pool2d_with_indices_backward(  # type: ignore[no-any-return]
            g, x, [2, 2], [2, 2], [0, 0], [1, 1], False, positions
        )
    if pooling == "average":
        g = g.mul_(POOLING_SCALES[pooling])
        spread = torch.ops.aten.avg_pool2d_backward(g, x, [2, 2], [2, 2], [0, 0], False, True, None)
        return mask_where_zero(spread, x)
    return _l2_unpool(g, x, pooled)


def _l2_pool(x: Tensor) -> Tensor:
    """The root of the weighted mean of the squares in a window, (B, C, h, w) -> (B, C, h/2, w/2).

    The windows overlap, so that a pattern is seen in the same way wherever it lies. The cells of
    max and average pooling do not: the optimization then finds dots and grids that they do not see.
    Source: Henaff and Simoncelli 2016, "Geodesics of Learned Representations", section 2.3.

    Beyond the edge the outermost responses repeat.
    """
    unit = _SQUARE_UNIT if x.dtype == torch.float16 else 1.0
    squares = _even_part(x).div(unit).square_() if unit != 1 else _even_part(x).square()
    # An outermost response and its repetition are in one window, with 3/8 and 1/8. Only that window
    # reads it, so a factor of 4/3 and zeros beyond the edge do the same without a larger copy.
    for dim, size in ((2, squares.shape[2]), (3, squares.shape[3])):
        for outermost in (0, size - 1):
            squares.select(dim, outermost).mul_(4 / 3)
    window = torch.tensor(_WINDOW, dtype=x.dtype, device=x.device)
    windows = torch.outer(window, window).expand(x.shape[1], 1, 4, 4)
    mean = functional.conv2d(squares, windows, stride=2, padding=1, groups=x.shape[1])
    return mean.sqrt_().mul_(unit * POOLING_SCALES["l2"])


def _l2_unpool(g: Tensor, x: Tensor, pooled: Tensor) -> Tensor:
    """dL/dx from dL/dl2_pool(x): x B^T(scale^2 g / l2_pool(x)), with the windowed mean B.

    B^T is a quarter of bilinear interpolation, whose weights of 3/4 and 1/4 are twice the window's.
    """
    if x.dtype == torch.float16:
        # g / l2_pool(x) can exceed float16, although the product with x does not, and small squares
        # are 0. A part of the channels at a time, because float32 takes twice the memory.
        size = max(1, x.shape[1] // 4)
        gradient = torch.empty_like(x)
        for begin in range(0, x.shape[1], size):
            channels = slice(begin, begin + size)
            part = x[:, channels].float()
            gradient[:, channels] = _l2_unpool(g[:, channels].float(), part, _l2_pool(part))
        return gradient
    ratio = g.div_(pooled.clamp_min_(_LEAST_POOLED)).mul_(POOLING_SCALES["l2"] ** 2 / 4)
    spread = functional.interpolate(ratio, scale_factor=2, mode="bilinear")
    rest = (0, x.shape[3] - spread.shape[3], 0, x.shape[2] - spread.shape[2])
    return (functional.pad(spread, rest) if any(rest) else spread).mul_(x)


def _even_part(x: Tensor) -> Tensor:
    """The responses without the last row and column of an odd side, which no pooling reads."""
    return x[..., : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2]
