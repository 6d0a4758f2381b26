"""The poolings: their values by definition, and their gradients through the ReLU, by autograd."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from core.neural.pooling import POOLING_SCALES, Pooling, pool, unpool


def _responses(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random responses after a ReLU, half of them 0, with a corner that is 0 altogether."""
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values[..., :4, :4] = -1
    return values.relu().to(dtype)


def _define(x: Tensor, pooling: Pooling) -> Tensor:
    """The pooled responses by the definition, position by position."""
    if pooling == "max":
        return functional.max_pool2d(x, 2)
    if pooling == "average":
        return functional.avg_pool2d(x, 2) * POOLING_SCALES[pooling]
    even = x[..., : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2]
    window = torch.tensor([1, 3, 3, 1], dtype=x.dtype) / 8
    patches = functional.pad(even, (1, 1, 1, 1), mode="replicate").unfold(2, 4, 2).unfold(3, 4, 2)
    squares = (patches.square() * torch.outer(window, window)).sum((4, 5))
    return squares.sqrt() * POOLING_SCALES[pooling]


@pytest.mark.parametrize("pooling", ["max", "average", "l2"])
@pytest.mark.parametrize("size", [(12, 16), (13, 17), (2, 3)], ids=str)
def test_pooling_and_its_gradient_equal_the_definition_and_autograd(
    pooling: Pooling, size: tuple[int, int]
) -> None:
    """At the edges and the corners too, and where a side is odd."""
    before = torch.randn(1, 4, *size, generator=torch.Generator().manual_seed(1)).double()
    leaf = before.requires_grad_()
    x = leaf.relu()
    expected = _define(x, pooling)
    g = torch.randn(expected.shape, generator=torch.Generator().manual_seed(2)).double()
    expected.backward(g)
    actual = pool(x.detach(), pooling)

    assert torch.allclose(actual, expected, rtol=1e-12)
    assert leaf.grad is not None
    assert torch.allclose(unpool(g.clone(), x.detach(), actual, pooling), leaf.grad, rtol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("pooling", ["max", "average", "l2"])
def test_the_gradient_is_finite_and_zero_where_the_response_is_zero(
    pooling: Pooling, dtype: torch.dtype
) -> None:
    """The next operation is a convolution: no other mask follows."""
    x = _responses(1, 4, 12, 16, dtype=dtype)
    g = torch.full((1, 4, 6, 8), 3.0, dtype=dtype)
    gradient = unpool(g, x, pool(x, pooling), pooling)

    assert bool(gradient.isfinite().all())
    assert float(gradient[x == 0].abs().max()) == 0
    assert float(gradient[x > 0].abs().max()) > 0


def test_a_pooled_one_color_picture_has_one_value() -> None:
    """The outermost responses are repeated beyond the edges."""
    pooled = pool(torch.full((1, 2, 8, 10), 3.0, dtype=torch.float64), "l2")

    assert torch.allclose(pooled, torch.full_like(pooled, 3 * POOLING_SCALES["l2"]), rtol=1e-12)
