"""The optimisers: images that get better, one after the other, inside the box [0, 1].

They know no network and no loss by name.
Each is a generator of (image, losses) after every iteration, without end; the caller takes as many as it wants.
One iteration is one evaluation of loss and gradient; one more comes first. The losses are those of the very image.
"""

from collections import deque
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from core.neural.losses import Losses

Evaluate = Callable[[Tensor], tuple[Losses, Tensor]]

HISTORY = 10  # pairs; more gain little and cost memory of twice the image each


def lbfgs(evaluate: Evaluate, image: Tensor) -> Iterator[tuple[Tensor, Losses]]:
    """Limited-memory BFGS (Liu and Nocedal 1989) with step 1 and no line search, projected on [0, 1].

    The bounds are inside: a pixel at a bound that the gradient pushes outwards is left out of the direction, and the
    curvature pairs come from the step that was really taken (Bertsekas 1982). Clamping an unbounded result at the end,
    as is usual, undoes much of the work: docs/log.md has the figures. image: (1, 3, H, W).
    """
    pairs: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=HISTORY)  # s, y, 1 / (s . y)
    _, gradient = evaluate(image)
    while True:
        held = ((image <= 0) & (gradient > 0)) | ((image >= 1) & (gradient < 0))
        free = gradient.masked_fill(held, 0)
        direction = -_inverse_hessian_times(free, pairs).masked_fill(held, 0)
        moved = (image + direction).clamp(0, 1)
        losses, new_gradient = evaluate(moved)
        step, change = moved - image, new_gradient - gradient
        curvature = (step * change).sum()
        # A pair of no or negative curvature would turn the direction uphill.
        if curvature > 1e-10 * step.norm() * change.norm():
            pairs.append((step, change, 1 / curvature))
        image, gradient = moved, new_gradient
        yield image, losses


def _inverse_hessian_times(gradient: Tensor, pairs: deque[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The two-loop recursion (Nocedal and Wright, algorithm 7.4)."""
    if not pairs:
        # Nothing is known of the curvature yet: a step that changes the image by 1 in all, as torch's L-BFGS does.
        return gradient * torch.clamp(1 / gradient.abs().sum().clamp_min(1e-30), max=1.0)
    q = gradient.clone()
    alphas = []
    for s, y, rho in reversed(pairs):
        alpha = rho * (s * q).sum()
        q -= alpha * y
        alphas.append(alpha)
    s, y, rho = pairs[-1]
    q *= 1 / (rho * y.square().sum())
    for (s, y, rho), alpha in zip(pairs, reversed(alphas), strict=True):
        q += (alpha - rho * (y * q).sum()) * s
    return q


def adam(evaluate: Evaluate, image: Tensor) -> Iterator[tuple[Tensor, Losses]]:
    """Adam (Kingma and Ba 2015) with learning rate 0.02, the image brought back into [0, 1] after each step."""
    leaf = image.clone().requires_grad_()
    optimizer = torch.optim.Adam([leaf], lr=0.02, betas=(0.9, 0.99))
    _, leaf.grad = evaluate(leaf)
    while True:
        optimizer.step()
        with torch.no_grad():
            leaf.clamp_(0, 1)
        losses, leaf.grad = evaluate(leaf)
        yield leaf.detach(), losses


OPTIMIZERS = {"lbfgs": lbfgs, "adam": adam}
