"""The losses against the paper's closed forms, and facts that any Gram matrix must have."""

from typing import Any

import pytest
import torch
from torch import Tensor

from core.neural import losses
from core.neural.losses import Objective, gram, mixed_gram, tv_loss
from core.neural.vgg import Network
from core.neural.weights import random_parameters
from core.spec import StyleSpec, parse_spec

STYLE_LAYERS = ["relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu5_1"]


def _rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---------------------------------------------------------------------- Gram facts


def test_the_gram_matrix_of_ones_is_ones() -> None:
    assert torch.equal(torch.ones(5, 5), gram(torch.ones(1, 5, 3, 4)))


def test_the_gram_matrix_is_symmetric_with_no_negative_eigenvalue() -> None:
    matrix = gram(_rand(1, 6, 4, 5) - 0.5)

    assert torch.allclose(matrix, matrix.T)
    assert float(torch.linalg.eigvalsh(matrix).min()) > -1e-12


def test_the_gram_matrix_does_not_know_where_things_are() -> None:
    features = _rand(1, 6, 4, 5)
    shuffled = features.flatten(2)[:, :, torch.randperm(20, generator=torch.Generator().manual_seed(0))]

    assert torch.allclose(gram(features), gram(shuffled.reshape(1, 6, 4, 5)))


def test_the_gram_matrix_grows_with_the_square_of_the_features() -> None:
    assert torch.allclose(9 * gram(_rand(1, 6, 4, 5)), gram(3 * _rand(1, 6, 4, 5)))


def test_the_gram_matrix_of_a_tiled_picture_is_the_same() -> None:
    """Divided by the positions, it does not depend on the size."""
    assert torch.allclose(gram(_rand(1, 6, 4, 5)), gram(_rand(1, 6, 4, 5).repeat(1, 1, 2, 3)))


def test_the_gram_matrix_of_bfloat16_features_is_summed_in_float32() -> None:
    """4,096 ones and more cannot be counted in bfloat16, which stops at 256."""
    assert torch.float32 == gram(torch.ones(1, 2, 64, 65, dtype=torch.bfloat16)).dtype
    assert torch.equal(torch.ones(2, 2), gram(torch.ones(1, 2, 64, 65, dtype=torch.bfloat16)))


# ---------------------------------------------------------------------- total variation


def test_tv_of_a_constant_is_zero_and_of_a_checkerboard_two() -> None:
    checkers = (torch.arange(8).view(-1, 1) + torch.arange(8)).remainder(2).float().expand(1, 3, 8, 8)

    assert 0 == float(tv_loss(torch.full((1, 3, 8, 8), 0.3)))
    assert 2 == float(tv_loss(checkers))


# ---------------------------------------------------------------------- the paper's closed forms


@pytest.fixture(scope="module")
def double() -> Network:
    """A VGG-19 in float64, so that agreement means agreement."""
    parameters = [(w.double(), b.double()) for w, b in random_parameters("vgg19")]
    network = Network("vgg19", parameters, name="vgg19", sha256="", dtype=torch.float64)
    network._mean, network._std = network._mean.double(), network._std.double()
    return network


def _features(network: Network, layer: str, seed: int) -> Tensor:
    return network.features(_rand(1, 3, 64, 48, seed=seed), [layer])[layer]


@pytest.mark.parametrize("layer", STYLE_LAYERS)
def test_the_style_gradient_is_the_papers_closed_form(double: Network, layer: str) -> None:
    """dE/dF = 1 / (N^2 M^2) ((F)^T (G - A))^T where F > 0, else 0: Gatys et al. 2015, eq. 6."""
    before_relu = (_features(double, layer, 1) - 0.1).detach().requires_grad_()
    responses = before_relu.relu()
    filters, positions = responses.shape[1], responses.shape[2] * responses.shape[3]
    target = gram(_features(double, layer, 2))
    losses.style_loss(responses, target).backward()

    flat = responses.detach()[0].flatten(1)  # F, (N, M)
    raw_g, raw_a = flat @ flat.T, target * positions
    closed = (flat.T @ (raw_g - raw_a)).T / (filters**2 * positions**2) * (flat > 0)

    assert before_relu.grad is not None
    assert torch.allclose(closed, before_relu.grad[0].flatten(1), rtol=1e-10, atol=1e-18)


@pytest.mark.parametrize("layer", [*STYLE_LAYERS, "relu4_2"])
def test_the_content_gradient_is_the_papers_closed_form(double: Network, layer: str) -> None:
    """dL/dF = F - P where F > 0, else 0: Gatys et al. 2015, eq. 2."""
    before_relu = (_features(double, layer, 1) - 0.1).detach().requires_grad_()
    target = _features(double, layer, 2)
    responses = before_relu.relu()
    losses.content_loss(responses, target).backward()

    assert before_relu.grad is not None
    assert torch.allclose((responses - target) * (responses > 0), before_relu.grad, rtol=1e-12, atol=1e-15)


def test_the_style_loss_is_the_papers_number() -> None:
    """E = 1 / (4 N^2 M^2) sum (G - A)^2, by hand for N = 1, M = 2: F = (1, 2), A = 1: (5 - 1)^2 / 16 = 1."""
    features = torch.tensor([1.0, 2.0]).view(1, 1, 1, 2)

    assert 1 == float(losses.style_loss(features, torch.tensor([[1 / 2]])))


def test_the_relative_losses_are_zero_at_the_target_and_one_at_nothing() -> None:
    features = _rand(1, 4, 3, 3)
    for loss, target in (
        (losses.relative_content_loss, features),
        (losses.relative_style_loss, gram(features)),
    ):
        assert 0 == float(loss(features, target))
        assert torch.allclose(torch.ones((), dtype=torch.float64), loss(features * 0, target))


# ---------------------------------------------------------------------- the weighted sum


def _objective(network: Network, **knobs: Any) -> tuple[Objective, Tensor]:
    spec = parse_spec(knobs).for_styles(1)
    photo = _rand(1, 3, 64, 48, seed=1).to(network.dtype)
    grams = mixed_gram(network, [_rand(1, 3, 48, 64, seed=2).to(network.dtype)], spec)
    return Objective(network, spec, photo, grams), photo


@pytest.mark.parametrize("objective", ["gatys", "relative"])
def test_the_total_is_the_sum_of_the_weighted_parts_by_name(double: Network, objective: str) -> None:
    image = _rand(1, 3, 64, 48, seed=3)
    one = _objective(double, objective=objective, style_weight=1, content_weight=1, tv_weight=1)[0](image).by_name()
    many = _objective(double, objective=objective, style_weight=3, content_weight=2, tv_weight=5)[0](image).by_name()

    assert {"total", "content", "style", "tv"} == set(one)
    assert all(value > 0 for value in one.values())
    for name, factor in (("style", 3), ("content", 2), ("tv", 5)):
        assert factor * one[name] == pytest.approx(many[name])
    assert many["total"] == pytest.approx(many["content"] + many["style"] + many["tv"])


def test_the_content_loss_is_zero_at_the_photo_alone(double: Network) -> None:
    objective, photo = _objective(double)

    assert 0 == float(objective(photo).content)
    assert 0 < float(objective(photo * 0.9).content)


def test_the_gradient_is_the_slope(double: Network) -> None:
    """Finite differences along a random direction, through the whole network, in float64."""
    objective, _ = _objective(double, tv_weight=1)
    image, direction = _rand(1, 3, 64, 48, seed=3), _rand(1, 3, 64, 48, seed=4) - 0.5
    _, gradient = objective.with_gradient(image)
    step = 1e-6
    with torch.no_grad():
        slope = (objective(image + step * direction).total - objective(image - step * direction).total) / (2 * step)

    assert float(slope) == pytest.approx(float((gradient * direction).sum()), rel=1e-5)


def test_mixing_gram_matrices_pulls_as_mixing_losses_does(double: Network) -> None:
    """sum_k s_k |G - A_k|^2 and |G - sum_k s_k A_k|^2 have the same gradient."""
    spec: StyleSpec = parse_spec({"objective": "gatys", "style_weights": [3, 1], "content_weight": 0}).for_styles(2)
    paintings = [_rand(1, 3, 64, 64, seed=seed) for seed in (5, 6)]
    image = _rand(1, 3, 64, 48, seed=3)
    _, mixed = Objective(double, spec, image, mixed_gram(double, paintings, spec)).with_gradient(image)

    summed = torch.zeros_like(image)
    alone = spec.model_copy(update={"style_weights": [1.0]})
    for painting, share in zip(paintings, spec.style_weights, strict=True):
        _, gradient = Objective(double, alone, image, mixed_gram(double, [painting], alone)).with_gradient(image)
        summed += share * gradient

    assert torch.allclose(summed, mixed, rtol=1e-8, atol=1e-14 * float(mixed.abs().max()) + 1e-18)


def test_a_weight_of_zero_leaves_its_term_out(double: Network) -> None:
    texture, photo = _objective(double, content_weight=0)
    content, _ = _objective(double, style_weight=0)

    assert 0 == float(texture(photo * 0.5).content)
    assert 0 == float(content(photo * 0.5).style)
