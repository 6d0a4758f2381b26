"""The optimisers: images that get better, one after the other, inside the box [0, 1].

They know no network and no loss by name.
Each is a generator of (image, losses) after every iteration, without end; the caller takes as many as it wants.
One iteration is one evaluation of loss and gradient; one more comes first. The losses are those of the very image.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from core.neural.objective import Losses

Evaluate = Callable[[Tensor], tuple[Losses, Tensor]]

FIRST_STEP = 0.01
HISTORY = 10  # pairs; more gain little and cost memory of twice the image each


def lbfgs(
    evaluate: Evaluate, image: Tensor, history: int = HISTORY, history_device: torch.device | None = None
) -> Iterator[tuple[Tensor, Losses]]:
    """Limited-memory BFGS (Liu and Nocedal 1989) with step 1 and no line search, projected on [0, 1].

    The bounds are inside: a pixel at a bound that the gradient pushes outwards is left out of the direction, and the
    curvature pairs come from the step that was really taken (Bertsekas 1982). Clamping an unbounded result at the end,
    as is usual, undoes much of the work: docs/log.md has the figures. Nothing here waits for the device, unless the
    pairs are elsewhere. image: (1, 3, H, W). history_device: where the pairs are kept, if not beside the image.
    """
    pairs = _Pairs(image, history, history_device or image.device)
    first, gradient = evaluate(image)
    unit = _unit(gradient)
    gradient = gradient * unit
    while True:
        held = ((image <= 0) & (gradient > 0)) | ((image >= 1) & (gradient < 0))
        free = gradient.masked_fill(held, 0)
        if pairs.are_there:
            direction = pairs.inverse_hessian_times(free).masked_fill_(held, 0)
        else:
            direction = free * _first_step(first, unit, free)
        moved = direction.neg_().add_(image).clamp_(0, 1)
        losses, new_gradient = evaluate(moved)
        new_gradient = new_gradient * unit
        pairs.append(moved - image, new_gradient - gradient)
        image, gradient = moved, new_gradient
        yield image, losses


def _unit(gradient: Tensor) -> Tensor:
    """What brings a gradient to a mean of 1: weights of any size then leave float32 the room that it needs."""
    return 1 / gradient.abs().mean().clamp_min(1e-30)


def _first_step(first: Losses, unit: Tensor, gradient: Tensor) -> Tensor:
    """Nothing is known of the curvature yet: a hundredth of the box on average, less if the loss would reach 0 sooner.

    gradient: times `unit`.
    """
    to_zero = first.total * unit / gradient.square().sum().clamp_min(1e-30)
    return torch.minimum(FIRST_STEP / gradient.abs().mean().clamp_min(1e-30), to_zero)


class _Pairs:
    """The newest steps s and changes of the gradient y, and the inverse Hessian that they amount to.

    In the compact form of Byrd, Nocedal and Schnabel 1994, eq. 3.1: all work on image-sized vectors is three products
    with the rows; the rest is matrices of `history` x `history`. The rows are allocated once, so memory does not run
    out late. A pair of no or negative curvature would turn the direction uphill: it keeps its row, and counts nothing.
    """

    def __init__(self, image: Tensor, history: int, device: torch.device) -> None:
        self._history, self._taken = history, 0
        # s, then y. Written, not only promised: an operating system finds memory for zeros when they are first used.
        self._rows = torch.empty(2 * history, image.numel(), dtype=image.dtype, device=device).zero_()
        exact = torch.float32 if device.type == "mps" else torch.float64
        self._products = torch.zeros(2 * history, 2 * history, dtype=exact, device=device)
        self._gamma = torch.ones((), dtype=exact, device=device)

    @property
    def are_there(self) -> bool:
        """Whether one has been taken in."""
        return self._taken > 0

    def append(self, step: Tensor, change: Tensor) -> None:
        """Take a pair in, in place of the oldest."""
        row = self._taken % self._history
        self._taken += 1
        new = torch.stack([step.flatten(), change.flatten()]).to(self._rows.device)  # (2, n)
        self._rows[row :: self._history].copy_(new)
        products = (self._rows @ new.T).to(self._products.dtype)  # (2h, 2)
        ss, sy, yy = products[row, 0], products[row, 1], products[row + self._history, 1]
        bends = sy > 1e-10 * (ss * yy).sqrt()
        products = torch.where(bends, products, 0)
        self._products[:, row :: self._history] = products
        self._products[row :: self._history] = products.T
        self._gamma = torch.where(bends, sy / yy, self._gamma)

    def inverse_hessian_times(self, gradient: Tensor) -> Tensor:
        """H g, for a gradient (1, 3, H, W)."""
        h, oldest, gamma = self._history, self._taken % self._history, self._gamma
        vector = gradient.flatten().to(self._rows.device)
        seen = (self._rows @ vector).to(self._products.dtype).view(2, h).roll(-oldest, 1)  # S^T g, Y^T g: oldest first
        blocks = self._products.view(2, h, 2, h).roll((-oldest, -oldest), (1, 3))
        sy, yy = blocks[0, :, 1], blocks[1, :, 1]  # (h, h)
        counts = sy.diagonal() > 0
        seen = torch.where(counts, seen, 0)
        r = sy.triu() + (~counts).to(sy.dtype).diag()
        u = torch.linalg.solve_triangular(r, seen[0, :, None], upper=True)  # R^-1 S^T g, (h, 1)
        right = sy.diagonal()[:, None] * u + gamma * (yy @ u - seen[1, :, None])
        by_s = torch.linalg.solve_triangular(r.T, right, upper=False)
        weights = torch.stack([by_s[:, 0], -gamma * u[:, 0]]).roll(oldest, 1).flatten()  # (2h,), in the rows' order
        product = self._rows.T @ weights.to(self._rows.dtype)
        return product.add_(vector * gamma.to(vector.dtype)).to(gradient.device).view_as(gradient)


def adam(evaluate: Evaluate, image: Tensor) -> Iterator[tuple[Tensor, Losses]]:
    """Adam (Kingma and Ba 2015) with learning rate 0.02, the image brought back into [0, 1] after each step."""
    leaf = image.clone().requires_grad_()
    optimizer = torch.optim.Adam([leaf], lr=0.02, betas=(0.9, 0.99))
    _, gradient = evaluate(leaf.detach())
    unit = _unit(gradient)
    while True:
        leaf.grad = gradient * unit
        optimizer.step()
        with torch.no_grad():
            leaf.clamp_(0, 1)
        iterate = leaf.detach().clone()  # the next step changes the leaf itself
        losses, gradient = evaluate(iterate)
        yield iterate, losses
