"""The losses against the paper's closed forms and against autograd, and facts that any Gram matrix must have."""

import pytest
import torch
from torch import Tensor

from core.neural.transfer import losses
from core.neural.transfer.losses import PaperStyle, RelativeStyle, Statistics, sums, tv_loss


def _rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _means(features: Tensor) -> Statistics:
    return sums(features) * (1 / (features.shape[2] * features.shape[3]))


def gram(features: Tensor) -> Tensor:
    return _means(features).gram


# ---------------------------------------------------------------------- Gram facts


def test_the_gram_matrix_of_ones_is_ones() -> None:
    assert torch.equal(torch.ones(5, 5), gram(torch.ones(1, 5, 3, 4)))


def test_the_gram_matrix_is_symmetric_with_no_negative_eigenvalue() -> None:
    matrix = gram(_rand(1, 6, 4, 5) - 0.5)

    assert torch.allclose(matrix, matrix.T)
    assert float(torch.linalg.eigvalsh(matrix).min()) > -1e-12


def test_the_gram_matrix_does_not_know_where_things_are() -> None:
    features = _rand(1, 6, 4, 5)
    shuffled = features.flatten(2)[
        :, :, torch.randperm(20, generator=torch.Generator().manual_seed(0))
    ]

    assert torch.allclose(gram(features), gram(shuffled.reshape(1, 6, 4, 5)))


def test_the_gram_matrix_grows_with_the_square_of_the_features() -> None:
    assert torch.allclose(9 * gram(_rand(1, 6, 4, 5)), gram(3 * _rand(1, 6, 4, 5)))


def test_the_gram_matrix_of_a_tiled_picture_is_the_same() -> None:
    """Divided by the positions, it does not depend on the size."""
    assert torch.allclose(gram(_rand(1, 6, 4, 5)), gram(_rand(1, 6, 4, 5).repeat(1, 1, 2, 3)))


def test_the_gram_matrix_of_bfloat16_features_is_summed_in_float32() -> None:
    """4,096 ones and more cannot be counted in bfloat16, which stops at 256."""
    assert gram(torch.ones(1, 2, 64, 65, dtype=torch.bfloat16)).dtype == torch.float32
    assert torch.equal(torch.ones(2, 2), gram(torch.ones(1, 2, 64, 65, dtype=torch.bfloat16)))


def test_sums_over_two_halves_add_up_to_the_sums_over_the_whole() -> None:
    features = _rand(1, 6, 8, 5)
    halves, whole = sums(features[:, :, :3]) + sums(features[:, :, 3:]), sums(features)

    assert torch.allclose(whole.gram, halves.gram)
    assert torch.allclose(whole.mean, halves.mean)


def test_more_positions_than_fit_into_one_chunk_are_all_counted() -> None:
    features = _rand(1, 3, 90, 91)

    assert torch.allclose(
        torch.einsum("nij,mij->nm", features[0], features[0]), sums(features).gram
    )
    assert torch.allclose(features.sum((0, 2, 3)), sums(features).mean)


def test_a_guide_counts_a_response_as_often_as_its_square_says() -> None:
    """T = 0 leaves a position out; T^2 = 1/4 counts it a quarter (Gatys et al. 2017, eq. 8)."""
    features, guide = _rand(1, 6, 2, 2), torch.tensor([[1.0, 0.0], [0.5, 0.0]], dtype=torch.float64)
    first, second = features[0, :, 0, 0], features[0, :, 1, 0]
    guided = sums(features, guide)

    assert torch.allclose(torch.outer(first, first) + torch.outer(second, second) / 4, guided.gram)
    assert torch.allclose(first + second / 4, guided.mean)


def test_the_deviation_is_that_of_each_filter_over_the_positions() -> None:
    features = _rand(1, 6, 7, 9)

    means = sums(features) * (1 / 63)
    assert torch.allclose(features[0].flatten(1).std(1, correction=0), means.deviation, rtol=1e-3)


# ---------------------------------------------------------------------- total variation


def test_tv_of_a_constant_is_zero_and_of_a_checkerboard_two() -> None:
    checkers = (
        (torch.arange(8).view(-1, 1) + torch.arange(8)).remainder(2).float().expand(1, 3, 8, 8)
    )

    assert float(tv_loss(torch.full((1, 3, 8, 8), 0.3))) == 0
    assert float(tv_loss(checkers)) == 2


def test_the_tv_gradient_is_autograds() -> None:
    image = _rand(1, 3, 9, 7).requires_grad_()
    tv_loss(image).backward()

    assert image.grad is not None
    assert torch.allclose(image.grad, losses.tv_gradient(image.detach()), rtol=1e-12)


# ---------------------------------------------------------------------- the paper's closed forms


def test_the_style_loss_is_the_papers_number() -> None:
    """E = 1 / (4 N^2 M^2) sum (G - A)^2, by hand for N = 1, M = 2: F = (1, 2), A = 1: (5 - 1)^2 / 16 = 1."""
    features = torch.tensor([1.0, 2.0]).view(1, 1, 1, 2)
    term = PaperStyle(Statistics(torch.tensor([[1 / 2]]), torch.zeros(1)), 1.0)

    assert float(term.loss(_means(features))) == 1


def test_the_style_gradient_is_the_papers_closed_form() -> None:
    """dE/dF = 1 / (N^2 M^2) ((F)^T (G - A))^T: Gatys et al. 2015, eq. 6."""
    features, other = _rand(1, 6, 5, 4, seed=1), _rand(1, 6, 5, 4, seed=2)
    term = PaperStyle(_means(other), 1.0)
    gradient = losses.style_gradient(features, term.slope(_means(features)) * (1 / 20))

    flat, raw_a = features[0].flatten(1), other[0].flatten(1) @ other[0].flatten(1).T
    closed = (flat.T @ (flat @ flat.T - raw_a)).T / (6**2 * 20**2)
    assert torch.allclose(closed, gradient[0].flatten(1), rtol=1e-12)


def test_the_content_gradient_is_the_papers_closed_form() -> None:
    """L = 1/2 sum (F - P)^2 and dL/dF = F - P: Gatys et al. 2015, eq. 1 and 2."""
    features, target = (
        torch.tensor([1.0, 5.0]).view(1, 2, 1, 1),
        torch.tensor([4.0, 1.0]).view(1, 2, 1, 1),
    )

    assert float(losses.content_loss(features, target)) == 12.5
    assert losses.content_gradient(features, target).flatten().tolist() == [-3, 4]


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("kind", [PaperStyle, RelativeStyle])
def test_every_style_gradient_is_autograds(kind: type, guided: bool) -> None:
    features, other, start = (_rand(1, 6, 5, 4, seed=seed) for seed in (1, 2, 3))
    term = (
        PaperStyle(_means(other), 2.0)
        if kind is PaperStyle
        else RelativeStyle(_means(other), _means(start), 2.0)
    )
    guide = _rand(5, 4, seed=4) if guided else None
    mass = float(guide.square().sum()) if guide is not None else 20.0

    leaf = features.clone().requires_grad_()
    term.loss(sums(leaf, guide) * (1 / mass)).backward()
    found = losses.style_gradient(
        features, term.slope(sums(features, guide) * (1 / mass)) * (1 / mass), guide
    )

    assert leaf.grad is not None
    assert torch.allclose(leaf.grad, found, rtol=1e-9, atol=1e-15)


def test_the_relative_style_loss_is_zero_at_the_painting_and_one_at_the_photo() -> None:
    """Whatever they are: that makes a weight mean the same for all of them."""
    for size in (1.0, 1e3):
        painting, photo = (
            _means(size * _rand(1, 6, 5, 4, seed=1)),
            _means(3 * size * _rand(1, 6, 5, 4, seed=2) ** 2),
        )
        term = RelativeStyle(painting, photo, 1.0)

        assert float(term.loss(painting)) == 0
        assert float(term.loss(photo)) == pytest.approx(1, rel=0.1)


def test_the_relative_style_loss_of_a_photo_in_its_own_style_is_finite() -> None:
    """Nothing to go: no division by zero."""
    same, other = _means(_rand(1, 6, 5, 4)), _means(_rand(1, 6, 5, 4, seed=1))
    term = RelativeStyle(same, same, 1.0)

    assert float(term.loss(same)) == 0
    assert torch.isfinite(term.slope(other).gram).all()


def test_where_photo_and_painting_have_no_response_at_all_there_is_no_slope() -> None:
    nothing = _means(torch.zeros(1, 4, 3, 3))
    slope = RelativeStyle(nothing, nothing, 1.0).slope(nothing)

    assert 0 == float(slope.gram.abs().max()) == float(slope.mean.abs().max())


def test_responses_without_any_spread_give_finite_slopes() -> None:
    """One-color pictures: a variance of 0, and a Gram matrix of 0."""
    for flat in (torch.zeros(1, 4, 3, 3), torch.full((1, 4, 3, 3), 2.0)):
        term = RelativeStyle(_means(flat), _means(_rand(1, 4, 3, 3).float()), 1.0)
        slope = term.slope(_means(flat * 0))
        assert torch.isfinite(slope.gram).all()
        assert torch.isfinite(slope.mean).all()
