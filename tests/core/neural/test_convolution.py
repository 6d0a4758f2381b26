"""The fused kernels of a CPU, compared with plain operations in higher precision."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from core.neural import torch_versions
from core.neural.convolution import (
    FrozenConvolution,
    add_product,
    can_fuse,
    mask_where_zero,
)

pytestmark = pytest.mark.skipif(
    not torch_versions.has_bfloat16_kernels(), reason="oneDNN has no bfloat16 on this CPU"
)


def _rand(*shape: int, seed: int = 0) -> Tensor:
    """Numbers around 0 in bfloat16, channels last."""
    generator = torch.Generator().manual_seed(seed)
    tensor = torch.randn(*shape, generator=generator).to(torch.bfloat16)
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


@pytest.mark.parametrize("inputs", [3, 32])
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 24, 33), (2, 5, 1)])
def test_a_fused_convolution_equals_a_plain_one_with_its_relu(
    inputs: int, batch: int, height: int, width: int
) -> None:
    weight, bias, x = _rand(64, inputs, 3, 3), _rand(64), _rand(batch, inputs, height, width)
    kernel = FrozenConvolution(weight, bias, torch.channels_last)
    actual = kernel.respond(x)
    expected = functional.conv2d(x.double(), weight.double(), bias.double(), padding=1).relu()

    assert kernel._is_fused
    assert actual.is_contiguous(memory_format=torch.channels_last)
    assert float(actual.min()) == 0
    assert _relative_error(actual, expected) < 2**-8
    assert torch.equal(kernel.weight, weight)


@pytest.mark.parametrize("inputs", [3, 32])
def test_the_gradient_of_a_fused_convolution_equals_autograds(inputs: int) -> None:
    weight, g = _rand(64, inputs, 3, 3), _rand(1, 64, 24, 33, seed=1)
    leaf = _rand(1, inputs, 24, 33).double().requires_grad_()
    functional.conv2d(leaf, weight.double(), padding=1).backward(g.double())
    actual = FrozenConvolution(weight, _rand(64), torch.channels_last).gradient(g)

    assert leaf.grad is not None
    assert _relative_error(actual, leaf.grad) < 2**-8


@pytest.mark.parametrize("columns", [slice(0, 33), slice(8, 25), slice(0, 20)])
def test_a_product_is_added_in_its_columns_only(columns: slice) -> None:
    before, x = _rand(1, 64, 24, 33), _rand(1, 64, 24, 33, seed=1)
    matrix, vector = _rand(64, 64, seed=2), _rand(64, seed=3)
    total = before.clone()
    add_product(total, x, matrix, vector, columns)
    product = torch.einsum("nm,bmhw->bnhw", matrix.double(), x.double())
    product += vector.double().view(1, -1, 1, 1)
    expected = before.double()
    expected[..., columns] += product[..., columns]
    is_other = torch.ones(33, dtype=torch.bool)
    is_other[columns] = False

    assert torch.equal(total[..., is_other], before[..., is_other])
    assert _relative_error(total, expected) < 2**-8


def test_the_mask_is_applied_in_place() -> None:
    g, responses = _rand(1, 8, 4, 4), _rand(1, 8, 4, 4, seed=1).relu()
    expected = torch.where(responses > 0, g, 0)

    assert mask_where_zero(g, responses) is g
    assert torch.equal(g, expected)


@pytest.mark.parametrize(
    "tensor",
    [
        _rand(1, 64, 8, 8).float(),
        _rand(1, 64, 8, 8).half(),
        _rand(1, 64, 8, 8).contiguous(),
        _rand(1, 64, 8, 8).to("meta"),
    ],
    ids=["float32", "float16", "channels first", "another device"],
)
def test_other_numbers_layouts_and_devices_are_not_fused(tensor: Tensor) -> None:
    assert can_fuse(_rand(1, 64, 8, 8))
    assert not can_fuse(tensor)


def test_a_cpu_without_bfloat16_takes_plain_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, bias, x = _rand(64, 32, 3, 3), _rand(64), _rand(1, 32, 24, 33)
    fused = FrozenConvolution(weight, bias, torch.channels_last)
    monkeypatch.setattr(torch_versions, "has_bfloat16_kernels", lambda: False)
    plain = FrozenConvolution(weight, bias, torch.channels_last)

    assert not plain._is_fused
    assert _relative_error(fused.respond(x).float(), plain.respond(x).float()) < 2**-8
