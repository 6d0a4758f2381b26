"""The optimizers on functions with a known minimum."""

from collections.abc import Iterator
from itertools import islice, pairwise

import pytest
import torch
from torch import Tensor

from core.neural.transfer import optimize
from core.neural.transfer.objective import Losses
from core.neural.transfer.optimize import LBFGS, MAX_DIVERGING_STEPS, Adam, Evaluate, _Pairs


def _quadratic(target: Tensor, stretch: Tensor) -> Evaluate:
    """sum stretch (x - target)^2; its minimum inside the box is the clamped target."""

    def evaluate(image: Tensor) -> tuple[Losses, Tensor]:
        away = image.detach() - target
        zero = torch.zeros(())
        total = (stretch * away.square()).sum()
        return Losses(zero, zero, zero, total), 2 * stretch * away

    return evaluate


def _last(iterates: Iterator[tuple[Tensor, Losses]], count: int) -> Tensor:
    return list(islice(iterates, count))[-1][0]


@pytest.fixture
def target() -> Tensor:
    """Values inside and outside the box."""
    return torch.rand(1, 3, 6, 5, generator=torch.Generator().manual_seed(0)) * 2 - 0.5


@pytest.mark.parametrize("make", [LBFGS, Adam])
def test_a_loss_that_is_only_rounding_does_not_diverge(
    target: Tensor, make: type[LBFGS] | type[Adam]
) -> None:
    """It begins at 0, and every step raises it."""
    exact = _quadratic(target.clamp(0, 1), torch.ones_like(target))
    rounding = torch.randn(target.shape, generator=torch.Generator().manual_seed(1))

    def evaluate(image: Tensor) -> tuple[Losses, Tensor]:
        losses, gradient = exact(image)
        return losses, gradient + 1e-6 * rounding

    optimizer = make(evaluate, target.clamp(0, 1), negligible=1e-4)
    worst = max(int(optimizer.diverging_steps) for _ in islice(optimizer, 40))

    assert optimizer.losses.by_name()["total"] == 0
    assert worst < MAX_DIVERGING_STEPS


def test_lbfgs_finds_the_minimum_inside_the_box(target: Tensor) -> None:
    """The function is badly scaled (1:100).

    Bounds are active where the free minimum lies outside.
    """
    stretch = torch.logspace(0, 2, target.numel()).view_as(target)
    actual = _last(LBFGS(_quadratic(target, stretch), torch.full_like(target, 0.5)), 120)

    assert torch.allclose(actual, target.clamp(0, 1), atol=1e-3)


def test_lbfgs_finds_the_minimum_of_a_function_with_dependent_pixels(target: Tensor) -> None:
    """The minimum in the box then differs from the clamped free one.

    Pixels at an active bound must not change direction and pairs.
    """
    count = target.numel()
    mixing = torch.randn(count, count, generator=torch.Generator().manual_seed(1))
    hessian = mixing @ mixing.T / count + 0.05 * torch.eye(count)
    goal = target.flatten() * 2 - 0.5

    def evaluate(image: Tensor) -> tuple[Losses, Tensor]:
        slope = hessian @ (image.detach().flatten() - goal)
        zero = torch.zeros(())
        return Losses(
            zero, zero, zero, slope @ (image.detach().flatten() - goal)
        ), 2 * slope.view_as(image)

    best = torch.full((count,), 0.5)
    for _ in range(20_000):  # projected gradient descent with small steps, as the reference
        best = (best - 0.05 * hessian @ (best - goal)).clamp(0, 1)
    actual = _last(LBFGS(evaluate, torch.full_like(target, 0.5)), 150)

    assert 10 < int(((best == 0) | (best == 1)).sum()) < count
    assert torch.allclose(actual.flatten(), best, atol=1e-3)


def test_adam_finds_the_minimum_inside_the_box(target: Tensor) -> None:
    actual = _last(
        Adam(_quadratic(target, torch.ones_like(target)), torch.full_like(target, 0.5)), 400
    )

    assert torch.allclose(actual, target.clamp(0, 1), atol=2e-2)


@pytest.mark.parametrize("optimizer", [LBFGS, Adam])
def test_every_iterate_stays_inside_the_box(optimizer: type, target: Tensor) -> None:
    """The loss of an iterate is that of the delivered picture: nothing is clamped at the end."""
    iterates = optimizer(_quadratic(target, torch.ones_like(target)), torch.full_like(target, 0.5))

    assert all(
        float(image.min()) >= 0 and float(image.max()) <= 1 for image, _ in islice(iterates, 30)
    )


def test_the_initial_image_is_not_changed(target: Tensor) -> None:
    for optimizer in (LBFGS, Adam):
        start = torch.full_like(target, 0.5)
        _last(optimizer(_quadratic(target, torch.ones_like(target)), start), 5)
        assert torch.equal(start, torch.full_like(target, 0.5))


def test_with_more_pairs_the_loss_falls_further() -> None:
    """Pairs must not overwrite each other."""

    def final_loss(seed: int, pairs: int) -> float:
        generator = torch.Generator().manual_seed(seed)
        turn, _ = torch.linalg.qr(torch.randn(90, 90, generator=generator))
        hessian = turn @ torch.logspace(0, 3, 90).diag() @ turn.T
        goal = torch.rand(90, generator=generator) * 0.4 + 0.3

        def evaluate(image: Tensor) -> tuple[Losses, Tensor]:
            away, zero = image.flatten() - goal, torch.zeros(())
            total = away @ hessian @ away
            return Losses(zero, zero, zero, total), (2 * hessian @ away).view_as(image)

        iterates = LBFGS(evaluate, torch.full((1, 3, 6, 5), 0.5), pairs)
        return float(list(islice(iterates, 60))[-1][1].total)

    # Several functions, because the path of a single one depends on the last bit of a sum.
    one, few, many = (sum(final_loss(seed, pairs) for seed in range(1, 5)) for pairs in (1, 3, 30))
    assert many < few < one
    assert many < 0.25 * one


def test_a_preconditioner_that_knows_the_curvature_saves_iterations(target: Tensor) -> None:
    stretch = torch.logspace(0, 4, target.numel()).view_as(target)
    goal, start = target.clamp(0.1, 0.9), torch.full_like(target, 0.5)
    plain, preconditioned = (
        float(list(islice(iterates, 25))[-1][1].total)
        for iterates in (
            LBFGS(_quadratic(goal, stretch), start),
            LBFGS(_quadratic(goal, stretch), start, precondition=lambda g: g / stretch),
        )
    )
    assert preconditioned < 0.01 * plain


def test_the_size_of_the_loss_does_not_matter(target: Tensor) -> None:
    """Weights may be as small as 1e-9; products of gradients must not underflow in float32."""
    stretch = torch.logspace(0, 2, target.numel()).view_as(target)
    start = torch.full_like(target, 0.5)
    for optimizer in (LBFGS, Adam):
        default, tiny = (
            _last(optimizer(_quadratic(target, factor * stretch), start), 60)
            for factor in (1, 1e-20)
        )
        assert torch.allclose(default, tiny, atol=1e-3)


@pytest.mark.parametrize("optimizer", [LBFGS, Adam])
def test_the_first_gradient_is_scaled_to_a_mean_magnitude_of_1(
    optimizer: type, target: Tensor
) -> None:
    start = torch.full_like(target, 0.5)
    scale = (
        optimizer(_quadratic(target, torch.full_like(target, 7.0)), start).state().tensors["scale"]
    )

    assert float(scale * (2 * 7.0 * (start - target)).abs().mean()) == pytest.approx(1)


def test_the_first_step_is_shorter_where_the_loss_would_reach_0_sooner() -> None:
    """With the slope of the loss, 0 is half of the distance away."""
    near = torch.full((1, 3, 4, 4), 0.5)
    evaluate = _quadratic(near - 0.001, torch.full_like(near, 7.0))
    image, _ = next(LBFGS(evaluate, near))

    assert float((near - image).mean()) == pytest.approx(0.0005, rel=1e-3)


def test_products_of_pairs_are_summed_in_float64(target: Tensor) -> None:
    """In float32 the small matrices lose the curvature of badly scaled functions."""
    assert _Pairs(target, 4, torch.device("cpu")).buffers()["products"].dtype == torch.float64


def _wall(place: Tensor, *, fails: bool) -> Evaluate:
    """A slope down to a wall at `place`, so that a step is too long without warning.

    The wall is steep, or the loss is not finite a little behind it.
    """

    def evaluate(image: Tensor) -> tuple[Losses, Tensor]:
        before, behind = (place - image).clamp_min(0), (image - place).clamp_min(0)
        zero, total = torch.zeros(()), (before + 1e4 * behind.square()).mean()
        if fails and float(behind.max()) > 0.004:
            total = total * torch.nan
        return Losses(zero, zero, zero, total), (2e4 * behind - (behind == 0).float()) / 90

    return evaluate


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("optimizer", [LBFGS, Adam])
def test_the_loss_never_rises_and_steps_that_go_wrong_are_rejected(
    optimizer: type, target: Tensor, fails: bool
) -> None:
    function, evaluated = _wall(target.clamp(0.3, 0.7), fails=fails), list[float]()

    def evaluate(image: Tensor) -> tuple[Losses, Tensor]:
        losses, gradient = function(image)
        evaluated.append(float(losses.total))
        return losses, gradient

    iterates = optimizer(evaluate, torch.full_like(target, 0.28))
    yielded = [(image, float(losses.total)) for image, losses in islice(iterates, 90)]

    totals = [total for _, total in yielded]
    assert totals == sorted(totals, reverse=True)
    assert totals[-1] < 0.8 * evaluated[0]
    assert any(not new <= old for old, new in pairwise(evaluated)), "a step goes wrong"
    assert all(float(function(image)[0].total) == total for image, total in yielded)


@pytest.mark.parametrize("optimizer", [LBFGS, Adam])
def test_diverging_steps_are_counted_until_one_is_not(optimizer: type, target: Tensor) -> None:
    broken = False

    def evaluate(image: Tensor) -> tuple[Losses, Tensor]:
        losses, gradient = _quadratic(target, torch.ones_like(target))(image)
        return (Losses.of(losses.stack() * torch.nan), gradient) if broken else (losses, gradient)

    iterates = optimizer(evaluate, torch.full_like(target, 0.5))
    before, _ = next(iterates)
    broken = True
    for number in range(1, 5):
        image, _ = next(iterates)
        assert int(iterates.diverging_steps) == number
        assert torch.equal(image, before)
    broken = False
    next(iterates)
    assert int(iterates.diverging_steps) == 0


def test_the_next_step_does_not_change_an_earlier_iterate(target: Tensor) -> None:
    for optimizer in (LBFGS, Adam):
        iterates = optimizer(
            _quadratic(target, torch.ones_like(target)), torch.full_like(target, 0.5)
        )
        kept, _ = next(iterates)
        before = kept.clone()
        next(iterates)
        assert torch.equal(kept, before)


def test_lbfgs_stays_at_the_minimum(target: Tensor) -> None:
    """A gradient of zero causes no division by zero."""
    inside = target.clamp(0, 1)

    assert torch.equal(_last(LBFGS(_quadratic(inside, torch.ones_like(inside)), inside), 3), inside)


@pytest.mark.parametrize("optimizer", [LBFGS, Adam])
def test_after_a_reset_an_optimizer_depends_only_on_the_image(
    optimizer: type, target: Tensor
) -> None:
    """It continues to the same bits as a new optimizer: no pair, moment or gradient is left."""
    functions = [
        _quadratic(target, torch.logspace(0, 2, 90).view_as(target)),
        _quadratic(1 - target, 0 * target + 3),
    ]
    start = torch.full_like(target, 0.5)
    iterates = optimizer(lambda image: functions[0](image), start)  # noqa: PLW0108
    image = _last(iterates, 15)
    functions.pop(0)
    iterates.reset()
    fresh = optimizer(functions[0], image.clone())

    for _ in range(15):
        assert torch.equal(next(iterates)[0], next(fresh)[0])


@pytest.mark.parametrize("count", [2, 4, 7, 9])
def test_the_product_with_the_inverse_hessian_is_that_of_the_two_loop_recursion(
    target: Tensor, count: int
) -> None:
    """Nocedal and Wright, algorithm 7.4, with the newest four pairs, the oldest of them first."""
    generator = torch.Generator().manual_seed(3)
    pairs, newest = _Pairs(target, 4, target.device), []
    p = torch.rand(target.shape, generator=generator) + 0.5  # the diagonal of P
    for _ in range(count):
        step = torch.rand(target.shape, generator=generator) - 0.5
        change = step * (1 + torch.rand(target.shape, generator=generator)) + 0.1 * step.roll(1, 3)
        pairs.append(step, change, p * change)
        newest = [*newest, (step.double().flatten(), change.double().flatten())][-4:]
    q, alphas = target.double().flatten(), []
    for s, y in reversed(newest):
        alphas.append((s @ q) / (s @ y))
        q = q - alphas[-1] * y
    s, y = newest[-1]
    r = p.flatten() * q * (s @ y) / (y @ (p.flatten() * y))
    for (s, y), alpha in zip(newest, reversed(alphas), strict=True):
        r = r + s * (alpha - (y @ r) / (s @ y))

    product = pairs.inverse_hessian_times(target, p * target)
    assert torch.allclose(product.flatten(), r.float(), rtol=1e-4, atol=1e-6)


def test_half_precision_pairs_take_half_the_memory_and_give_nearly_the_same_direction(
    target: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the rows are widened in several parts, the last of which is shorter."""
    monkeypatch.setattr(optimize, "_CHUNK", 7)
    p, products, sizes = torch.linspace(0.5, 1.5, target.numel()).view_as(target), [], []
    for half_pairs in (False, True):
        generator = torch.Generator().manual_seed(3)
        pairs = _Pairs(target, 4, target.device, half_pairs=half_pairs)
        for _ in range(6):
            step = torch.rand(target.shape, generator=generator) - 0.5
            change = step * (1 + torch.rand(target.shape, generator=generator))
            assert pairs.append(step, change, p * change)
        products.append(pairs.inverse_hessian_times(target, p * target))
        sizes.append(pairs.buffers()["rows"].nbytes)
    exact, rounded = products

    assert sizes[1] == sizes[0] / 2
    assert 0 < float((rounded - exact).norm() / exact.norm()) < 0.02


def test_with_half_precision_pairs_an_optimizer_finds_the_minimum(target: Tensor) -> None:
    stretch = torch.logspace(0, 2, target.numel()).view_as(target)
    start = torch.full_like(target, 0.5)
    totals = [
        float(list(islice(iterates, 40))[-1][1].total)
        for iterates in (
            LBFGS(_quadratic(target, stretch), start, half_pairs=half_pairs)
            for half_pairs in (False, True)
        )
    ]
    assert totals[1] <= 1.1 * totals[0] + 1e-6


def test_a_pair_without_curvature_has_no_effect_also_on_products_with_later_pairs(
    target: Tensor,
) -> None:
    def pairs(*, bad: bool) -> _Pairs:
        generator = torch.Generator().manual_seed(2)
        result = _Pairs(target, 4, target.device)
        for number in range(3):
            step = torch.rand(target.shape, generator=generator)
            if number == 1 and bad:
                result.append(torch.ones_like(target), -torch.ones_like(target), -target)
            if number != 1:
                change = step * torch.rand(target.shape, generator=generator)
                result.append(step, change, change)
        return result

    products = [pairs(bad=bad).inverse_hessian_times(target, target) for bad in (False, True)]
    assert torch.allclose(*products, rtol=1e-5)


@pytest.mark.parametrize("optimizer", [LBFGS, Adam])
def test_a_first_gradient_that_is_not_finite_has_no_loss_and_leaves_no_trace(
    optimizer: type, target: Tensor
) -> None:
    broken = True

    def evaluate(image: Tensor) -> tuple[Losses, Tensor]:
        losses, gradient = _quadratic(target.clamp(0, 1), torch.ones_like(target))(image)
        return losses, gradient * torch.nan if broken else gradient

    iterates = optimizer(evaluate, torch.full_like(target, 0.5))
    assert not iterates.losses.total.isfinite()
    next(iterates)
    broken = False
    iterates.start_from(torch.full_like(target, 0.5))
    totals = [float(losses.total) for _, losses in islice(iterates, 20)]
    assert totals[-1] < 0.2 * totals[0]


def test_adam_has_not_converged_while_its_newest_image_is_not_its_best(target: Tensor) -> None:
    """Its first steps are too long near an optimum; the best image stays the same meanwhile."""
    near = target.clamp(0.1, 0.9) + 0.002
    iterates = Adam(_quadratic(target.clamp(0.1, 0.9), torch.ones_like(target)), near)
    next(iterates)
    assert not iterates.may_have_converged
    assert any(bool(iterates.may_have_converged) for _ in islice(iterates, 200))


def test_a_snapshot_that_a_card_has_copied_needs_no_wait_and_stays_valid(
    target: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`to("cpu")` copies from a card; here it copies on the CPU."""
    iterates = LBFGS(_quadratic(target, torch.ones_like(target)), torch.full_like(target, 0.5))
    next(iterates)
    usual = Tensor.to
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "to", lambda self, *args: usual(self, *args).clone())
        snapshot = iterates.state()
    before = {name: tensor.clone() for name, tensor in snapshot.tensors.items()}
    monkeypatch.setattr(snapshot, "_released", None)  # a wait would fail
    next(iterates)

    assert not snapshot.is_overwritten
    assert all(torch.equal(snapshot.tensors[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("name", ["gamma", "count", "image", "gradient", "losses"])
def test_the_next_iteration_leaves_all_but_the_pairs_of_a_snapshot_as_they_are(
    target: Tensor, name: str
) -> None:
    """So only the pairs decide whether an optimizer waits for the reader."""
    iterates = LBFGS(_quadratic(target, torch.ones_like(target)), torch.full_like(target, 0.5))
    next(iterates)
    snapshot = iterates.state()
    before = snapshot.tensors[name].clone()
    snapshot.release()
    iterates.reset()
    next(iterates)

    assert torch.equal(snapshot.tensors[name], before)
