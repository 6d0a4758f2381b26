"""The initial inverse Hessian of L-BFGS."""

import pytest
import torch
from torch import Tensor

from core.neural.transfer.preconditioner import precondition


@pytest.fixture(scope="module")
def matrix() -> Tensor:
    """P as a matrix, for images of 9 x 14 px."""
    basis = torch.eye(3 * 9 * 14).view(-1, 3, 9, 14)
    return torch.cat([precondition(image[None]).flatten()[None] for image in basis]).double()


def test_it_is_symmetric(matrix: Tensor) -> None:
    assert torch.allclose(matrix, matrix.T, atol=1e-5)


def test_it_is_positive_definite(matrix: Tensor) -> None:
    """Else a direction could lead uphill. Nothing gets less than detail does."""
    assert float(torch.linalg.eigvalsh(matrix).min()) == pytest.approx(1, abs=0.02)


def test_it_favors_large_areas_then_color_over_detail() -> None:
    def gain(image: Tensor) -> float:
        image = image.expand(1, 3, 256, 256)
        return float((image * precondition(image)).sum() / image.square().sum())

    rows = torch.arange(256)[:, None] * torch.ones(1, 256)

    def waves(period: int) -> Tensor:
        return torch.sin(2 * torch.pi * rows / period)[None, None]

    red = torch.tensor([2.0, -1.0, -1.0])[None, :, None, None]
    assert gain(waves(4)) == pytest.approx(1, abs=0.05)
    assert gain(waves(12)) == pytest.approx(1.4, abs=0.4)
    assert gain(waves(40)) == pytest.approx(13, abs=4)
    assert gain(waves(200)) == pytest.approx(24, abs=4)
    assert gain(red * waves(4)) == pytest.approx(3)
    assert gain(red * waves(200)) == pytest.approx(3)
