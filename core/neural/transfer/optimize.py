"""The optimisers: images that get better, one after the other, inside the box [0, 1].

They know no network and no loss by name.
Each is an iterator of (image, losses) after every iteration, without end; the caller takes as many as it wants.
One iteration is one evaluation of loss and gradient; one more comes first. The losses are those of the very image.
Between two iterations `state` tells all that the next ones depend on: an optimiser made with it goes on to the same
bits.
"""

import threading
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from core.neural.transfer.objective import Losses

Evaluate = Callable[[Tensor], tuple[Losses, Tensor]]

FIRST_STEP = 0.01
HISTORY = 10  # pairs; more gain little and cost memory of twice the image each

# How long the next iteration waits for a reader of the state before it goes on and spoils what is being read.
_PATIENCE_SECONDS = 0.1


class SharedSnapshot:
    """Tensors on the host, lent to a reader on another thread while the next gradient is taken. Nothing is copied.

    The reader gives them back, and only then asks whether they were spoiled: it took too long, and they have changed.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = {name: tensor.to("cpu") for name, tensor in tensors.items()}
        self.spoiled = False
        self._back = threading.Event()

    def give_back(self) -> None:
        """The reader needs them no more."""
        self._back.set()

    def recall(self) -> None:
        """They are about to change."""
        self.spoiled = not self._back.wait(_PATIENCE_SECONDS)


class LBFGS(Iterator[tuple[Tensor, Losses]]):
    """Limited-memory BFGS (Liu and Nocedal 1989) with step 1 and no line search, projected on [0, 1].

    The bounds are inside: a pixel at a bound that the gradient pushes outwards is left out of the direction, and the
    curvature pairs come from the step that was really taken (Bertsekas 1982). Clamping an unbounded result at the end,
    as is usual, undoes much of the work: docs/log.md has the figures. Nothing here waits for the device, unless the
    pairs are elsewhere. image: (1, 3, H, W). history_device: where the pairs are kept, if not beside the image.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        image: Tensor,
        history: int = HISTORY,
        history_device: torch.device | None = None,
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._evaluate, self._image = evaluate, image
        self._pairs = _Pairs(image, history, history_device or image.device)
        self._loan: SharedSnapshot | None = None
        self.is_resumed = state is not None
        if state is None:
            self.begin()
        else:
            self._unit, self._gradient = (
                state[name].to(image.device) for name in ("unit", "gradient")
            )
            self._pairs.restore(state)

    def begin(self) -> None:
        """From this image on, as if there had been no other: the function may be another, and its curvature with it."""
        self._first, gradient = self._evaluate(self._image)
        self._unit = _unit(gradient)
        self._gradient = gradient * self._unit
        self._recall()
        self._pairs.forget()

    def __next__(self) -> tuple[Tensor, Losses]:
        image, gradient = self._image, self._gradient
        held = ((image <= 0) & (gradient > 0)) | ((image >= 1) & (gradient < 0))
        free = gradient.masked_fill(held, 0)
        if self._pairs.are_there:
            direction = self._pairs.inverse_hessian_times(free).masked_fill_(held, 0)
        else:
            direction = free * _first_step(self._first, self._unit, free)
        moved = direction.neg_().add_(image).clamp_(0, 1)
        losses, new_gradient = self._evaluate(moved)
        new_gradient = new_gradient * self._unit
        self._recall()
        self._pairs.append(moved - image, new_gradient - gradient)
        self._image, self._gradient = moved, new_gradient
        return moved, losses

    def state(self) -> SharedSnapshot:
        """Image, gradient and pairs, after an iteration."""
        self._loan = SharedSnapshot(
            {
                "image": self._image,
                "gradient": self._gradient,
                "unit": self._unit,
                **self._pairs.state(),
            }
        )
        return self._loan

    def _recall(self) -> None:
        if self._loan is not None:
            self._loan.recall()
            self._loan = None


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
        self._rows = torch.empty(
            2 * history, image.numel(), dtype=image.dtype, device=device
        ).zero_()
        exact = torch.float32 if device.type == "mps" else torch.float64
        self._products = torch.zeros(2 * history, 2 * history, dtype=exact, device=device)
        self._gamma = torch.ones((), dtype=exact, device=device)

    @property
    def are_there(self) -> bool:
        """Whether one has been taken in."""
        return self._taken > 0

    def state(self) -> dict[str, Tensor]:
        """All that they are."""
        taken = torch.tensor(self._taken)
        return {
            "rows": self._rows,
            "products": self._products,
            "gamma": self._gamma,
            "taken": taken,
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Become what others were when their state was taken, of as many rows."""
        self._taken = int(state["taken"])
        self._rows.copy_(state["rows"])
        self._products.copy_(state["products"])
        self._gamma.copy_(state["gamma"])

    def forget(self) -> None:
        """Become what they were at first. The rows stay as they are: what has no products counts nothing."""
        self._taken = 0
        self._products.zero_()
        self._gamma.fill_(1)

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
        seen = (
            (self._rows @ vector).to(self._products.dtype).view(2, h).roll(-oldest, 1)
        )  # S^T g, Y^T g: oldest first
        blocks = self._products.view(2, h, 2, h).roll((-oldest, -oldest), (1, 3))
        sy, yy = blocks[0, :, 1], blocks[1, :, 1]  # (h, h)
        counts = sy.diagonal() > 0
        both = counts[:, None] & counts
        sy, yy = torch.where(both, sy, 0), torch.where(both, yy, 0)
        seen = torch.where(counts, seen, 0)
        r = sy.triu() + (~counts).to(sy.dtype).diag()
        u = torch.linalg.solve_triangular(r, seen[0, :, None], upper=True)  # R^-1 S^T g, (h, 1)
        right = sy.diagonal()[:, None] * u + gamma * (yy @ u - seen[1, :, None])
        by_s = torch.linalg.solve_triangular(r.T, right, upper=False)
        weights = (
            torch.stack([by_s[:, 0], -gamma * u[:, 0]]).roll(oldest, 1).flatten()
        )  # (2h,), in the rows' order
        product = self._rows.T @ weights.to(self._rows.dtype)
        return product.add_(vector * gamma.to(vector.dtype)).to(gradient.device).view_as(gradient)


class Adam(Iterator[tuple[Tensor, Losses]]):
    """Adam (Kingma and Ba 2015) with learning rate 0.02, the image brought back into [0, 1] after each step."""

    def __init__(
        self, evaluate: Evaluate, image: Tensor, state: Mapping[str, Tensor] | None = None
    ) -> None:
        self._evaluate = evaluate
        self._leaf = image.clone().requires_grad_()
        self.is_resumed = state is not None
        if state is None:
            self.begin()
        else:
            self._optimizer = self._fresh()
            self._unit, self._gradient = (
                state[name].to(image.device) for name in ("unit", "gradient")
            )
            self._optimizer.state[self._leaf] = {
                name: state[name].to("cpu" if name == "step" else image.device) for name in _MOMENTS
            }

    def begin(self) -> None:
        """From this image on, as if there had been no other: the function may be another, and its slopes with it."""
        self._optimizer = self._fresh()
        _, self._gradient = self._evaluate(self._leaf.detach())
        self._unit = _unit(self._gradient)

    def _fresh(self) -> torch.optim.Adam:
        return torch.optim.Adam([self._leaf], lr=0.02, betas=(0.9, 0.99))

    def __next__(self) -> tuple[Tensor, Losses]:
        self._leaf.grad = self._gradient * self._unit
        self._optimizer.step()
        with torch.no_grad():
            self._leaf.clamp_(0, 1)
        iterate = self._leaf.detach().clone()  # the next step changes the leaf itself
        losses, self._gradient = self._evaluate(iterate)
        return iterate, losses

    def state(self) -> SharedSnapshot:
        """Image, gradient and moments, after an iteration. Copies: the next step changes them at once."""
        moments = {
            name: tensor.clone() for name, tensor in self._optimizer.state[self._leaf].items()
        }
        image = self._leaf.detach().clone()
        return SharedSnapshot(
            {"image": image, "gradient": self._gradient, "unit": self._unit, **moments}
        )


_MOMENTS = ("step", "exp_avg", "exp_avg_sq")
