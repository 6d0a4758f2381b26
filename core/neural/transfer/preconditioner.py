"""The initial inverse Hessian of L-BFGS: which changes of an image meet little curvature.

L-BFGS usually begins with a multiple of the identity. Under the losses of a VGG network, though,
the brightness of large areas has about a twentieth of the curvature of strokes a few pixels wide,
and color has a third of that of brightness. With steps that are longer by as much, L-BFGS needs
about two thirds of the evaluations: docs/benchmarks/recipes.md. The form, a sum over a pyramid, is
that of Bramble, Pasciak and Xu 1990, "Parallel Multilevel Preconditioners".
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

# How much further than brightness a color, a difference of channels, goes.
_COLOR = 3.0
# Weights of the pyramid's levels for brightness, each of half the size of the one before.
_LEVELS = (1.0, 0.0, 3.0, 12.0, 10.0)
_BLUR = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16


def precondition(gradient: Tensor) -> Tensor:
    """P g for a gradient g (1, 3, H, W), with P symmetric and positive definite."""
    gray = gradient.mean(1, keepdim=True)  # (1, 1, H, W)
    kernel = (_BLUR[:, None] * _BLUR)[None, None].to(gray)
    return (gradient - gray).mul_(_COLOR).add_(_pyramid(gray, kernel, _LEVELS))


def _pyramid(gray: Tensor, kernel: Tensor, weights: Sequence[float]) -> Tensor:
    """sum_l w_l (4 D^T)^l D^l g, where D blurs and halves; 4 keeps a constant as it is."""
    weight, *coarser = weights
    if not coarser:
        return weight * gray
    half = functional.conv2d(gray, kernel, stride=2, padding=2)
    rest = functional.conv_transpose2d(
        _pyramid(half, kernel, coarser),
        4 * kernel,
        stride=2,
        padding=2,
        output_padding=(1 - gray.shape[2] % 2, 1 - gray.shape[3] % 2),
    )
    return weight * gray + rest
