"""The optimizers: iterators of images that lower the loss inside the box [0, 1].

They know no network and no loss by name. Each yields (image, losses) after every iteration, without
end; the caller stops when it has enough. One iteration is one evaluation of loss and gradient, and
one more evaluation comes first. The losses are those of the yielded image, and they never rise:
L-BFGS rejects a step that raises the loss, and Adam yields its best image.

Between two iterations `state` returns everything on which the next ones depend. An optimizer that
is made with this state continues to the same bits.
"""

import threading
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from core.neural.transfer.objective import Losses

Evaluate = Callable[[Tensor], tuple[Losses, Tensor]]  # image -> losses, gradient
Precondition = Callable[[Tensor], Tensor]  # a gradient (1, 3, H, W) -> the same, preconditioned

# Mean change of a pixel by the first step of L-BFGS, which knows no curvature yet.
FIRST_STEP = 0.003
HISTORY = 10  # curvature pairs; more gain little, and each costs memory of twice the image

# Numbers of a half-precision pair that are widened at once: few enough to stay in a cache.
_CHUNK = 1 << 17

# After a rejected step, Adam's next one is shorter by this factor. L-BFGS relies on the new
# curvature pair alone after one rejected step, and shortens after each further one.
_SHORTEN = {"lbfgs": 0.25, "adam": 0.5}
# After so many rejected steps in a row L-BFGS drops its curvature pairs. A step that gives no pair
# counts twice.
_DROP_PAIRS_AFTER = 3
# A step diverges if the loss exceeds the best one by this factor, or is not finite. After so many
# diverging steps in a row, the last of which change no pixel visibly, the run cannot go on. A loss
# below a negligible one diverges in no case: at an optimum rounding alone may double it.
_DIVERGENCE_FACTOR = {"lbfgs": 1.05, "adam": 1.5}
MAX_DIVERGING_STEPS = 12

# Time for which the next iteration waits for a reader of the state before it overwrites what is
# being read.
_SNAPSHOT_TIMEOUT_SECONDS = 0.1


class SharedSnapshot:
    """Tensors on the host that a reader on another thread uses while the next gradient is computed.

    Tensors that lie on the host are not copied. The reader calls `release` and then checks
    `is_overwritten`: if it took too long, the tensors have changed.
    """

    def __init__(
        self, tensors: Mapping[str, Tensor], reused: Mapping[str, Tensor] | None = None
    ) -> None:
        """reused: more tensors, which the next iteration overwrites; `tensors` stay as they are."""
        reused = reused or {}
        self.tensors = {name: tensor.to("cpu") for name, tensor in {**tensors, **reused}.items()}
        # A copy from a card is the reader's own.
        self._is_shared = any(self.tensors[name] is tensor for name, tensor in reused.items())
        self.is_overwritten = False
        self._released = threading.Event()

    def release(self) -> None:
        """Called by the reader: it has read the tensors."""
        self._released.set()

    def reclaim(self) -> None:
        """Called by the optimizer: the tensors are about to change.

        Waits at most 0.1 s for the reader of tensors that are not copied.
        """
        if self._is_shared:
            self.is_overwritten = not self._released.wait(_SNAPSHOT_TIMEOUT_SECONDS)


class LBFGS(Iterator[tuple[Tensor, Losses]]):
    """Limited-memory BFGS with step 1, projected on [0, 1], that never raises the loss.

    Sources: Nocedal and Wright, "Numerical Optimization", section 7.2; Liu and Nocedal 1989. The
    projection follows Bertsekas 1982: a pixel at a bound that the gradient pushes outwards is left
    out of the direction, and the curvature pairs come from the projected step. Clamping an
    unbounded result at the end, as is usual, loses much of the work; docs/benchmarks/recipes.md
    has the figures.

    Instead of a line search, a step that raises the loss is rejected. Its curvature pair stays,
    because it tells why; if the next step is rejected too, the one after it is shorter.

    image: (1, 3, H, W). history_device: where the curvature pairs lie, if not beside the image. No
    operation waits for the device, unless the pairs lie elsewhere. half_pairs: keep them in
    bfloat16, in half the memory. precondition: the initial inverse Hessian up to a factor,
    symmetric and positive definite; the identity if omitted. negligible: a loss that cannot be
    told from 0.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        image: Tensor,
        history: int = HISTORY,
        history_device: torch.device | None = None,
        state: Mapping[str, Tensor] | None = None,
        *,
        half_pairs: bool = False,
        precondition: Precondition = lambda gradient: gradient,
        negligible: Tensor | float = 0.0,
    ) -> None:
        self._evaluate, self._image, self._precondition = evaluate, image, precondition
        self._negligible = negligible
        self._pairs = _Pairs(image, history, history_device or image.device, half_pairs=half_pairs)
        self._snapshot: SharedSnapshot | None = None
        self.is_resumed = state is not None
        if state is None:
            self.reset()
        else:
            self._scale = state["scale"].to(image.device)
            self._gradient = state["gradient"].to(image.device)
            self.losses = Losses.of(state["losses"].to(image.device))
            self._rejected = state["rejected"].to(image.device)
            self.diverging_steps = state["diverging"].to(image.device)
            self._pairs.restore(state)

    def start_from(self, image: Tensor) -> None:
        """Start again from another image."""
        self._image = image
        self.reset()

    def reset(self) -> None:
        """Start again from the current image, because the function has changed.

        Drops the gradient and the curvature.
        """
        self.losses, gradient = _evaluate_start(self._evaluate, self._image)
        self._scale = _gradient_scale(gradient)
        self._gradient = gradient * self._scale
        # Rejected steps in a row; those without a curvature pair count twice.
        self._rejected = torch.zeros((), device=self._image.device)
        self.diverging_steps = self._rejected  # in a row
        self._reclaim_snapshot()
        self._pairs.clear(self._first_step())

    def __next__(self) -> tuple[Tensor, Losses]:
        image, gradient = self._image, self._gradient
        active = self._active()
        free = gradient.masked_fill(active, 0)
        direction = self._pairs.inverse_hessian_times(free, self._precondition(free))
        direction = direction.masked_fill_(active, 0).mul_(
            _SHORTEN["lbfgs"] ** (self._rejected - 1).clamp_min(0)
        )
        new_image = direction.neg_().add_(image).clamp_(0, 1)
        del active, free  # an evaluation needs the memory
        losses, new_gradient = self._evaluate(new_image)
        new_gradient = new_gradient * self._scale
        self._reclaim_snapshot()
        is_finite = losses.total.isfinite() & new_gradient.sum().isfinite()
        change = torch.where(is_finite, new_gradient - gradient, 0)
        preconditioned = self._precondition(change)  # before the step, which takes as much memory
        was_kept = self._pairs.append(new_image - image, change, preconditioned).to(image.device)
        del change, preconditioned
        is_good = is_finite & (losses.total <= self.losses.total)
        bound = _DIVERGENCE_FACTOR["lbfgs"] * self.losses.total
        diverges = ~(is_finite & ((losses.total <= bound) | (losses.total <= self._negligible)))
        rejected_before = self._rejected
        # Without a new pair, the same step would come again.
        self._rejected = torch.where(is_good, 0, rejected_before + torch.where(was_kept, 1, 2))
        self.diverging_steps = torch.where(diverges, self.diverging_steps + 1, 0)
        self._image = torch.where(is_good, new_image, image)
        self._gradient = torch.where(is_good, new_gradient, gradient)
        self.losses = losses.where(is_good, self.losses)
        self._pairs.clear_if(
            (rejected_before < _DROP_PAIRS_AFTER) & (self._rejected >= _DROP_PAIRS_AFTER)
        )
        return self._image, self.losses

    @property
    def may_have_converged(self) -> Tensor:
        """False while steps diverge: the loss then stays the same for another reason. A scalar."""
        return self.diverging_steps == 0

    def _active(self) -> Tensor:
        """The active set (Bertsekas 1982): at a bound, and pushed outwards. (1, 3, H, W)."""
        image, gradient = self._image, self._gradient
        return ((image <= 0) & (gradient > 0)) | ((image >= 1) & (gradient < 0))

    def _first_step(self) -> Tensor:
        """The factor of the preconditioned gradient for a step without curvature pairs.

        The mean change of a pixel is `FIRST_STEP`, or less if the loss would reach 0 sooner.
        """
        gradient = self._gradient.masked_fill(self._active(), 0)
        step = self._precondition(gradient)
        to_zero = self.losses.total * self._scale / (gradient * step).sum().clamp_min(1e-30)
        return torch.minimum(FIRST_STEP / step.abs().mean().clamp_min(1e-30), to_zero)

    def state(self) -> SharedSnapshot:
        """Image, gradient, losses and pairs, after an iteration."""
        self._snapshot = SharedSnapshot(
            {
                "image": self._image,
                "gradient": self._gradient,
                "scale": self._scale,
                "losses": self.losses.stack(),
                "rejected": self._rejected,
                "diverging": self.diverging_steps,
                **self._pairs.counts(),
            },
            self._pairs.buffers(),
        )
        return self._snapshot

    def _reclaim_snapshot(self) -> None:
        if self._snapshot is not None:
            self._snapshot.reclaim()
            self._snapshot = None


def _evaluate_start(evaluate: Evaluate, image: Tensor) -> tuple[Losses, Tensor]:
    """Loss and gradient. The loss is NaN if the gradient is not finite: no step can follow."""
    losses, gradient = evaluate(image)
    nothing = Losses.of(losses.stack() * torch.nan)
    return losses.where(gradient.sum().isfinite(), nothing), gradient


def _gradient_scale(gradient: Tensor) -> Tensor:
    """The factor that gives a gradient a mean magnitude of 1.

    Loss weights may have any size; products of gradients then stay within float32. 1 for a gradient
    of 0, which says nothing about the size of later ones.
    """
    size = gradient.abs().mean()
    return torch.where(size > 0, 1 / size.clamp_min(1e-30), 1)


class _Pairs:
    """The newest steps s and gradient changes y, and the inverse Hessian that they approximate.

    In the compact form of Byrd, Nocedal and Schnabel 1994, eq. 3.1 (Nocedal and Wright, section
    7.2), with gamma P as the initial inverse Hessian. All work on image-sized vectors is three
    products with the rows; the rest are matrices of `history` x `history`. The rows are allocated
    once, so that memory does not run out in a later iteration.

    A pair without positive curvature would turn the direction uphill. It keeps its row, but its
    products are 0.

    The products are those of the rows as they are kept. Rounded rows are thus pairs of a slightly
    different function, and the inverse Hessian stays symmetric.
    """

    def __init__(
        self, image: Tensor, history: int, device: torch.device, *, half_pairs: bool = False
    ) -> None:
        self._history, self._count = history, 0
        dtype = torch.bfloat16 if half_pairs else image.dtype
        # (2h, n): s, then P y. Written once, because an operating system allocates zeros only at
        # their first use.
        self._rows = torch.empty(2 * history, image.numel(), dtype=dtype, device=device).zero_()
        exact = torch.float32 if device.type == "mps" else torch.float64  # mps has no float64
        # (2, h, h): S^T Y, of which only the pairs with s not newer than y are valid, and Y^T P Y.
        self._products = torch.zeros(2, history, history, dtype=exact, device=device)
        self._gamma = torch.ones((), dtype=exact, device=device)

    def buffers(self) -> dict[str, Tensor]:
        """What `restore` needs, as far as the next pair overwrites it."""
        return {"rows": self._rows, "products": self._products}

    def counts(self) -> dict[str, Tensor]:
        """What else `restore` needs; a new pair replaces these tensors."""
        return {"gamma": self._gamma.clone(), "count": torch.tensor(self._count)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Take over a state with the same number of rows."""
        self._count = int(state["count"])
        self._rows.copy_(state["rows"])
        self._products.copy_(state["products"])
        self._gamma.copy_(state["gamma"])

    def clear(self, gamma: Tensor) -> None:
        """Clear the curvature history; keep the buffers. Rows without products have no effect.

        gamma: the inverse Hessian until the next pair, as a factor of P.
        """
        self._count = 0
        self._products.zero_()
        self._gamma.copy_(gamma)

    def clear_if(self, condition: Tensor) -> None:
        """Clear the history, except gamma, if the condition, a scalar on a device, is true."""
        self._products.masked_fill_(condition.to(self._rows.device), 0)

    def append(self, step: Tensor, change: Tensor, preconditioned: Tensor) -> Tensor:
        """Add a pair, in place of the oldest; return whether it has positive curvature, a scalar.

        step, change, preconditioned: s, y and P y, each (1, 3, H, W).
        """
        h, row, device = self._history, self._count % self._history, self._rows.device
        self._count += 1
        # A number that is not finite would stay: its product with 0 is not 0.
        step = step.nan_to_num_()
        self._rows[row].copy_(step.flatten())
        self._rows[row + h].copy_(preconditioned.flatten())
        products = self._rows_times(change.flatten().to(device)).view(2, h)
        ss, sy, yy = step.square().sum().to(device), products[0, row], products[1, row]
        has_curvature = sy > 1e-10 * (ss * yy).sqrt()
        products = torch.where(has_curvature, products, 0)
        self._products[:, :, row] = products
        self._products[1, row] = products[1]
        # gamma = s^T y / y^T P y scales the initial Hessian (Nocedal and Wright, eq. 7.20).
        self._gamma = torch.where(has_curvature, sy / yy, self._gamma)
        return has_curvature

    def inverse_hessian_times(self, gradient: Tensor, preconditioned: Tensor) -> Tensor:
        """H g, for a gradient g and P g, both (1, 3, H, W)."""
        h, oldest, gamma = self._history, self._count % self._history, self._gamma
        vector = gradient.flatten().to(self._rows.device)  # (n,)
        # S^T g and Y^T P g, (2, h), the oldest pair first.
        by_rows = self._rows_times(vector).view(2, h).roll(-oldest, 1)
        sy, yy = self._products.roll((-oldest, -oldest), (1, 2))  # (h, h)
        is_valid = sy.diagonal() > 0  # (h,)
        both = is_valid[:, None] & is_valid
        sy, yy = torch.where(both, sy, 0), torch.where(both, yy, 0)
        by_rows = torch.where(is_valid, by_rows, 0)
        r = sy.triu() + (~is_valid).to(sy.dtype).diag()  # a unit row keeps R invertible
        u = torch.linalg.solve_triangular(r, by_rows[0, :, None], upper=True)  # R^-1 S^T g, (h, 1)
        right = sy.diagonal()[:, None] * u + gamma * (yy @ u - by_rows[1, :, None])
        by_s = torch.linalg.solve_triangular(r.T, right, upper=False)
        weights = torch.stack([by_s[:, 0], -gamma * u[:, 0]])  # (2, h)
        weights = weights.roll(oldest, 1).flatten()  # (2h,), in the order of the rows
        product = self._sum_rows(weights.to(vector.dtype)).to(gradient.device)
        scale = gamma.to(gradient.device, gradient.dtype)
        result: Tensor = product.view_as(gradient).addcmul_(preconditioned, scale)
        return result

    def _rows_times(self, vector: Tensor) -> Tensor:
        """The product of each row with a vector (n,): (2h,), in the precision of the products."""
        if self._rows.dtype == vector.dtype:
            return (self._rows @ vector).to(self._products.dtype)
        products = [rows.to(part.dtype) @ part for rows, part in self._chunks(vector)]
        return torch.stack(products).sum(0, dtype=self._products.dtype)

    def _sum_rows(self, weights: Tensor) -> Tensor:
        """The sum of the rows with weights (2h,): (n,), in the precision of the weights."""
        if self._rows.dtype == weights.dtype:
            return self._rows.T @ weights
        total = weights.new_empty(self._rows.shape[1])
        for rows, part in self._chunks(total):
            torch.mv(rows.to(weights.dtype).T, weights, out=part)
        return total

    def _chunks(self, vector: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Views of the rows and of a vector (n,), some columns at once."""
        for begin in range(0, len(vector), _CHUNK):
            yield self._rows[:, begin : begin + _CHUNK], vector[begin : begin + _CHUNK]


class Adam(Iterator[tuple[Tensor, Losses]]):
    """Adam (Kingma and Ba 2015) with learning rate 0.02.

    The image is clamped to [0, 1] after each step. Yields the best image so far. If the loss is far
    above the best one, Adam goes back to that image, with moments of 0 and shorter steps.
    """

    def __init__(
        self,
        evaluate: Evaluate,
        image: Tensor,
        state: Mapping[str, Tensor] | None = None,
        *,
        negligible: Tensor | float = 0.0,
    ) -> None:
        """negligible: a loss that cannot be told from 0."""
        self._evaluate, self._best, self._negligible = evaluate, image, negligible
        self._leaf = image.clone().requires_grad_()
        self.is_resumed = state is not None
        if state is None:
            self.reset()
        else:
            for name in _ADAM_STATE:
                setattr(self, f"_{name}", state[name].to(image.device))
            self.losses = Losses.of(state["losses"].to(image.device))
            self.diverging_steps = state["diverging"].to(image.device)
            self._leaf = state["leaf"].to(image.device, copy=True).requires_grad_()
            self._optimizer = self._new_optimizer()
            # torch keeps the step count on the CPU.
            self._optimizer.state[self._leaf] = {
                name: state[name].to("cpu" if name == "step" else image.device) for name in _MOMENTS
            }

    def start_from(self, image: Tensor) -> None:
        """Start again from another image."""
        self._best = image
        self.reset()

    def reset(self) -> None:
        """Start again from the best image, because the function has changed.

        Drops the gradient and the moments.
        """
        with torch.no_grad():
            self._leaf.copy_(self._best)
        self._optimizer = self._new_optimizer()
        self.losses, self._gradient = _evaluate_start(self._evaluate, self._best)
        self._best_gradient = self._gradient
        self._scale = _gradient_scale(self._gradient)
        self._rejected = torch.zeros((), device=self._best.device)  # rejected steps in all
        self.diverging_steps = self._rejected  # in a row

    def _new_optimizer(self) -> torch.optim.Adam:
        return torch.optim.Adam([self._leaf], lr=0.02, betas=(0.9, 0.99))

    @torch.no_grad()
    def __next__(self) -> tuple[Tensor, Losses]:
        before = self._leaf.clone()
        self._leaf.grad = self._gradient * self._scale
        self._optimizer.step()
        self._leaf.copy_(torch.lerp(before, self._leaf, _SHORTEN["adam"] ** self._rejected)).clamp_(
            0, 1
        )
        self._leaf.grad = None
        del before
        image = self._leaf.clone()  # the next step changes the leaf itself
        losses, gradient = self._evaluate(image)
        is_finite = losses.total.isfinite() & gradient.sum().isfinite()
        is_best = is_finite & (losses.total <= self.losses.total)
        bound = _DIVERGENCE_FACTOR["adam"] * self.losses.total
        diverges = ~(is_finite & ((losses.total <= bound) | (losses.total <= self._negligible)))
        self.may_have_converged = is_best  # a later image may be better than the best one so far
        self._best = torch.where(is_best, image, self._best)
        self._best_gradient = torch.where(is_best, gradient, self._best_gradient)
        self.losses = losses.where(is_best, self.losses)
        self._rejected = self._rejected + diverges
        self.diverging_steps = torch.where(diverges, self.diverging_steps + 1, 0)
        self._leaf.copy_(torch.where(diverges, self._best, image))
        self._gradient = torch.where(diverges, self._best_gradient, gradient)
        for moment in _MOMENTS[1:]:
            self._optimizer.state[self._leaf][moment].masked_fill_(diverges, 0)
        return self._best, self.losses

    def state(self) -> SharedSnapshot:
        """Images, gradients, losses and moments, after an iteration.

        Copies what the next step changes at once.
        """
        moments = {
            name: tensor.clone() for name, tensor in self._optimizer.state[self._leaf].items()
        }
        return SharedSnapshot(
            {
                "image": self._best,
                "leaf": self._leaf.detach().clone(),
                "losses": self.losses.stack(),
                "diverging": self.diverging_steps,
                **{name: getattr(self, f"_{name}") for name in _ADAM_STATE},
                **moments,
            }
        )


_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # Adam's state in torch
_ADAM_STATE = ("gradient", "best_gradient", "scale", "rejected")
