"""The losses: the paper's closed forms, autograd, and properties of Gram matrices."""

import pytest
import torch
from torch import Tensor

from core.neural import torch_versions
from core.neural.transfer import losses
from core.neural.transfer.losses import (
    PaperStyle,
    RelativeStyle,
    Statistics,
    sum_statistics,
    tv_loss,
)


def _rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _means(features: Tensor) -> Statistics:
    return sum_statistics(features) * (1 / (features.shape[2] * features.shape[3]))


def gram(features: Tensor) -> Tensor:
    return _means(features).gram


# ---------------------------------------------------------------------- properties of Gram matrices


def test_the_gram_matrix_of_ones_is_ones() -> None:
    assert torch.equal(gram(torch.ones(1, 5, 3, 4)), torch.ones(5, 5))


def test_the_gram_matrix_is_symmetric_with_no_negative_eigenvalue() -> None:
    matrix = gram(_rand(1, 6, 4, 5) - 0.5)

    assert torch.allclose(matrix, matrix.T)
    assert float(torch.linalg.eigvalsh(matrix).min()) > -1e-12


def test_the_gram_matrix_does_not_depend_on_the_order_of_positions() -> None:
    features = _rand(1, 6, 4, 5)
    shuffled = features.flatten(2)[
        :, :, torch.randperm(20, generator=torch.Generator().manual_seed(0))
    ]

    assert torch.allclose(gram(shuffled.reshape(1, 6, 4, 5)), gram(features))


def test_the_gram_matrix_grows_with_the_square_of_the_features() -> None:
    assert torch.allclose(gram(3 * _rand(1, 6, 4, 5)), 9 * gram(_rand(1, 6, 4, 5)))


def test_the_gram_matrix_of_a_repeated_picture_is_the_same() -> None:
    """It is divided by the number of positions, so it does not depend on the size."""
    assert torch.allclose(gram(_rand(1, 6, 4, 5).repeat(1, 1, 2, 3)), gram(_rand(1, 6, 4, 5)))


def test_the_gram_matrix_of_bfloat16_features_is_summed_in_float32() -> None:
    """A sum of ones stops at 256 in bfloat16; here it is over 4,096."""
    assert gram(torch.ones(1, 2, 64, 65, dtype=torch.bfloat16)).dtype == torch.float32
    assert torch.equal(gram(torch.ones(1, 2, 64, 65, dtype=torch.bfloat16)), torch.ones(2, 2))


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_gram_matrix_is_as_exact_as_float32(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, guided: bool
) -> None:
    """Factors that bfloat16 would change are not rounded, on processors that round them (AMX)."""
    features = (_rand(1, 64, 100, 100) * 3).to(dtype)
    guide = _rand(100, 100, seed=1).float() if guided else None
    flat = features[0].flatten(1).double()
    if guide is not None:
        flat = flat * guide.flatten().double()
    expected = flat @ flat.T
    allowed, stock = list[None](), torch_versions.allow_bfloat16_products
    monkeypatch.setattr(
        torch_versions, "allow_bfloat16_products", lambda: allowed.append(None) or stock()
    )
    error = (sum_statistics(features, guide).gram - expected).norm() / expected.norm()

    assert float(error) < 1e-6
    assert bool(allowed) == (dtype == torch.bfloat16 and not guided)


def test_sums_over_two_halves_add_up_to_the_sums_over_the_whole() -> None:
    features = _rand(1, 6, 8, 5)
    halves, whole = (
        sum_statistics(features[:, :, :3]) + sum_statistics(features[:, :, 3:]),
        sum_statistics(features),
    )

    assert torch.allclose(halves.gram, whole.gram)
    assert torch.allclose(halves.mean, whole.mean)


def test_sums_over_several_chunks_count_every_position() -> None:
    features = _rand(1, 3, 90, 91)

    assert torch.allclose(
        sum_statistics(features).gram, torch.einsum("nij,mij->nm", features[0], features[0])
    )
    assert torch.allclose(sum_statistics(features).mean, features.sum((0, 2, 3)))


def test_a_guide_weights_a_response_by_its_square() -> None:
    """T = 0 excludes a position; T = 1/2 counts it a quarter (Gatys et al. 2017, eq. 8)."""
    features, guide = _rand(1, 6, 2, 2), torch.tensor([[1.0, 0.0], [0.5, 0.0]], dtype=torch.float64)
    first, second = features[0, :, 0, 0], features[0, :, 1, 0]
    guided = sum_statistics(features, guide)

    assert torch.allclose(guided.gram, torch.outer(first, first) + torch.outer(second, second) / 4)
    assert torch.allclose(guided.mean, first + second / 4)


def test_the_deviation_is_that_of_each_filter_over_the_positions() -> None:
    features = _rand(1, 6, 7, 9)

    means = sum_statistics(features) * (1 / 63)
    assert torch.allclose(means.deviation, features[0].flatten(1).std(1, correction=0), rtol=1e-3)


# ---------------------------------------------------------------------- total variation


def test_tv_of_a_constant_is_zero_and_of_a_checkerboard_two() -> None:
    checkers = (
        (torch.arange(8).view(-1, 1) + torch.arange(8)).remainder(2).float().expand(1, 3, 8, 8)
    )

    assert float(tv_loss(torch.full((1, 3, 8, 8), 0.3))) == 0
    assert float(tv_loss(checkers)) == 2


def test_the_tv_gradient_equals_autograds() -> None:
    image = _rand(1, 3, 9, 7).requires_grad_()
    tv_loss(image).backward()

    assert image.grad is not None
    assert torch.allclose(losses.tv_gradient(image.detach()), image.grad, rtol=1e-12)


# ---------------------------------------------------------------------- the paper's closed forms


def test_the_style_loss_equals_the_papers_formula() -> None:
    """E = 1 / (4 N^2 M^2) sum (G - A)^2; N = 1, M = 2, F = (1, 2), A = 1 give 16 / 16 = 1."""
    features = torch.tensor([1.0, 2.0]).view(1, 1, 1, 2)
    term = PaperStyle(Statistics(torch.tensor([[1 / 2]]), torch.zeros(1)), 1.0)

    assert float(term.evaluate(_means(features))[0]) == 1


def test_the_style_gradient_equals_the_papers_closed_form() -> None:
    """dE/dF = 1 / (N^2 M^2) ((F)^T (G - A))^T: Gatys et al. 2015, eq. 6."""
    features, other = _rand(1, 6, 5, 4, seed=1), _rand(1, 6, 5, 4, seed=2)
    term = PaperStyle(_means(other), 1.0)
    gradient = losses.style_gradient(features, term.evaluate(_means(features))[1] * (1 / 20))

    flat, raw_a = features[0].flatten(1), other[0].flatten(1) @ other[0].flatten(1).T
    closed = (flat.T @ (flat @ flat.T - raw_a)).T / (6**2 * 20**2)
    assert torch.allclose(gradient[0].flatten(1), closed, rtol=1e-12)


def test_the_content_gradient_equals_the_papers_closed_form() -> None:
    """L = 1/2 sum (F - P)^2 and dL/dF = F - P: Gatys et al. 2015, eq. 1 and 2."""
    features, target = (
        torch.tensor([1.0, 5.0]).view(1, 2, 1, 1),
        torch.tensor([4.0, 1.0]).view(1, 2, 1, 1),
    )

    assert float(losses.content_loss(features, target)) == 12.5
    assert losses.content_gradient(features, target).flatten().tolist() == [-3, 4]


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("kind", [PaperStyle, RelativeStyle])
def test_every_style_gradient_equals_autograds(kind: type, guided: bool) -> None:
    features, other, start = (_rand(1, 6, 5, 4, seed=seed) for seed in (1, 2, 3))
    term = (
        PaperStyle(_means(other), 2.0)
        if kind is PaperStyle
        else RelativeStyle(_means(other), _means(start), 2.0)
    )
    guide = _rand(5, 4, seed=4) if guided else None
    mass = float(guide.square().sum()) if guide is not None else 20.0

    leaf = features.clone().requires_grad_()
    loss, _ = term.evaluate(sum_statistics(leaf, guide) * (1 / mass))
    loss.backward()
    _, by_statistics = term.evaluate(sum_statistics(features, guide) * (1 / mass))
    actual = losses.style_gradient(features, by_statistics * (1 / mass), guide)

    assert leaf.grad is not None
    assert torch.allclose(actual, leaf.grad, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_style_gradient_is_added_in_its_part(dtype: torch.dtype, guided: bool) -> None:
    """bfloat16 takes the fused kernels where there are such; a guide does not."""
    features, before = (
        _rand(1, 32, 12, 16, seed=seed).to(dtype).contiguous(memory_format=torch.channels_last)
        for seed in (1, 2)
    )
    gram = _rand(32, 32, seed=3).float()
    by = Statistics(gram + gram.T, _rand(32, seed=4).float())
    guide = _rand(8, 9, seed=5).float() if guided else None
    part = (slice(2, 10), slice(4, 13))
    expected = before.double().clone()
    expected[:, :, 2:10, 4:13] += losses.style_gradient(
        features[:, :, 2:10, 4:13].double(), by, None if guide is None else guide.double()
    )
    total = before.clone()
    losses.add_style_gradient(total, features, part, by, guide)

    is_part = torch.zeros(12, 16, dtype=torch.bool)
    is_part[part] = True
    assert torch.equal(total[..., ~is_part], before[..., ~is_part])
    assert float((total - expected).norm() / expected.norm()) < (
        1e-2 if dtype == torch.bfloat16 else 1e-6
    )


def test_the_relative_style_loss_is_zero_at_the_painting_and_one_at_the_photo() -> None:
    """At every size, so that a weight means the same for all pictures."""
    for size in (1.0, 1e3):
        painting, photo = (
            _means(size * _rand(1, 6, 5, 4, seed=1)),
            _means(3 * size * _rand(1, 6, 5, 4, seed=2) ** 2),
        )
        term = RelativeStyle(painting, photo, 1.0)

        assert float(term.evaluate(painting)[0]) == 0
        assert float(term.evaluate(photo)[0]) == pytest.approx(1, rel=0.1)


def test_the_relative_style_loss_of_a_photo_in_its_own_style_is_finite() -> None:
    """The distance is 0, and causes no division by zero."""
    same, other = _means(_rand(1, 6, 5, 4)), _means(_rand(1, 6, 5, 4, seed=1))
    term = RelativeStyle(same, same, 1.0)

    assert float(term.evaluate(same)[0]) == 0
    assert torch.isfinite(term.evaluate(other)[1].gram).all()


def test_the_gradient_is_zero_if_photo_and_painting_have_no_responses() -> None:
    nothing = _means(torch.zeros(1, 4, 3, 3))
    gradient = RelativeStyle(nothing, nothing, 1.0).evaluate(nothing)[1]

    assert float(gradient.gram.abs().max()) == float(gradient.mean.abs().max()) == 0


def test_responses_without_variance_give_finite_gradients() -> None:
    """As of one-color pictures, also with a Gram matrix of 0."""
    for flat in (torch.zeros(1, 4, 3, 3), torch.full((1, 4, 3, 3), 2.0)):
        term = RelativeStyle(_means(flat), _means(_rand(1, 4, 3, 3).float()), 1.0)
        gradient = term.evaluate(_means(flat * 0))[1]
        assert torch.isfinite(gradient.gram).all()
        assert torch.isfinite(gradient.mean).all()
