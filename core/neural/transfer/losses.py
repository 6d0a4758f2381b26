"""The paper's losses and their gradients with respect to the responses, as closed forms; total variation.

F: a layer's responses, N filters x M positions. P: those to the content image. G = F F^T; A: that of the painting.
Responses come in any precision; Gram matrices and losses are float32 (float64 for float64 responses). Where a response
is 0 its ReLU stops the gradient: that is the network's part (`vgg.Recording`). Knows no network and no optimiser.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

# Below these a variance or a distance counts as none.
_LEAST_VARIANCE = 1e-6
_LEAST = 1e-12
_NEAR = 0.01  # what the photo already has need not be had more exactly than to a tenth of its size

# Positions that are taken to float32 at once: few enough to stay in a processor's cache.
_CHUNK = 4096


def exact(tensor: Tensor) -> Tensor:
    """At least float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass(frozen=True)
class Statistics:
    """What a style is made of: which responses occur together, and how strong each is. Of one layer."""

    gram: Tensor  # (N, N): F F^T, or F F^T / M
    mean: Tensor  # (N,): F 1, or F 1 / M

    def __add__(self, other: "Statistics") -> "Statistics":
        """Sums over two parts of a picture."""
        return Statistics(self.gram + other.gram, self.mean + other.mean)

    def __mul__(self, factor: Tensor | float) -> "Statistics":
        """1 / M makes means of sums; a share makes a part of a mixture."""
        return Statistics(self.gram * factor, self.mean * factor)

    @property
    def deviation(self) -> Tensor:
        """The standard deviation of each filter over the positions, (N,); of means, not of sums."""
        return (self.gram.diagonal() - self.mean.square()).clamp_min(0).add(_LEAST_VARIANCE).sqrt()


def sums(responses: Tensor, guide: Tensor | None = None) -> Statistics:
    """Summed over the positions of a part of a picture: parts can be added up. (1, N, h, w)

    Gatys et al. 2015, eq. 3. Divided by the number of positions M, pictures of different sizes can be compared; the
    paper divides the loss instead (eq. 4), where photo and painting have the same M.

    With a guide T, (h, w), the responses count T^2 times: (F T)(F T)^T, as in Gatys et al. 2017, "Controlling
    Perceptual Factors in Neural Style Transfer", eq. 8.
    """
    rows = responses[0].permute(1, 2, 0).flatten(0, 1)  # (M, N): channels are last in memory
    times = None if guide is None else exact(guide).flatten().unsqueeze(1)  # (M, 1)
    if (
        times is None
        and rows.device.type == "cuda"
        and rows.dtype in (torch.float16, torch.bfloat16)
    ):
        # Summed in float32 by the tensor cores.
        return Statistics(
            torch.mm(rows.T, rows, out_dtype=torch.float32), rows.sum(0, dtype=torch.float32)
        )
    filters = rows.shape[1]
    total = Statistics(exact(rows.new_zeros(filters, filters)), exact(rows.new_zeros(filters)))
    for begin in range(0, len(rows), _CHUNK):
        part = exact(rows[begin : begin + _CHUNK])
        if times is None:
            mean = part.sum(0)
        else:
            part = part * times[begin : begin + _CHUNK]
            mean = times[begin : begin + _CHUNK, 0] @ part
        total = Statistics(total.gram.addmm_(part.T, part), total.mean.add_(mean))
    return total


def content_loss(responses: Tensor, target: Tensor) -> Tensor:
    """1/2 sum (F - P)^2: Gatys et al. 2015, eq. 1. In parts, so that little is copied to float32 at once."""
    rows = max(1, _CHUNK // responses.shape[3])
    parts = zip(responses.split(rows, 2), target.split(rows, 2), strict=True)  # type: ignore[no-untyped-call]
    return torch.stack([(exact(f) - exact(p)).square().sum() for f, p in parts]).sum() / 2


def content_gradient(responses: Tensor, target: Tensor) -> Tensor:
    """F - P: eq. 2."""
    return responses - target


class PaperStyle:
    """E = 1 / (4 N^2 M^2) sum (G - A)^2: Gatys et al. 2015, eq. 4; here G / M and A / M."""

    def __init__(self, target: Statistics, weight: Tensor | float) -> None:
        self._target = target.gram
        self._weight = weight / (4 * len(target.gram) ** 2)

    def loss(self, found: Statistics) -> Tensor:
        """The weighted term."""
        return self._weight * (found.gram - self._target).square().sum()

    def slope(self, found: Statistics) -> Statistics:
        """dE/dG, symmetric, and dE/dmean."""
        return Statistics(
            2 * self._weight * (found.gram - self._target), torch.zeros_like(found.mean)
        )


class RelativeStyle:
    """A third each of Gram matrix, means and deviations, by the distance they have to go. A departure from the paper.

    The Gram matrix alone can trade means against deviations (Risser et al. 2017). The whole is 1 at `start`, the photo,
    whatever the layer, network, painting and size: so weights mean the same for all of them.
    """

    def __init__(self, target: Statistics, start: Statistics, weight: Tensor | float) -> None:
        self._target = target
        # Means and deviations are judged by the whole energy, the sum of their squares: where one of the two is next to
        # nothing, as the deviations of a painting of one color are, it must not forbid every step.
        energy = target.gram.diagonal().sum()
        sizes = (target.gram.square().sum(), energy, energy)
        self._weights = [
            weight / 3 / ((at - to).square().sum() + _NEAR * size).clamp_min(_LEAST)
            for at, to, size in zip(_aspects(start), _aspects(target), sizes, strict=True)
        ]

    def loss(self, found: Statistics) -> Tensor:
        """The weighted term."""
        terms = zip(self._weights, _aspects(found), _aspects(self._target), strict=True)
        return sum(
            (weight * (at - to).square().sum() for weight, at, to in terms),
            start=found.mean.new_zeros(()),
        )

    def slope(self, found: Statistics) -> Statistics:
        """dE/dG, symmetric, and dE/dmean. The deviation is a function of both: sqrt(diag G - mean^2)."""
        gram, mean, deviation = (
            2 * weight * (at - to)
            for weight, at, to in zip(
                self._weights, _aspects(found), _aspects(self._target), strict=True
            )
        )
        by_deviation = deviation / found.deviation  # (N,)
        return Statistics(gram + (by_deviation / 2).diag(), mean - by_deviation * found.mean)


def _aspects(of: Statistics) -> tuple[Tensor, Tensor, Tensor]:
    return of.gram, of.mean, of.deviation


def style_gradient(responses: Tensor, slope: Statistics, guide: Tensor | None = None) -> Tensor:
    """dE/dF = 1 / M (2 F^T dE/dG)^T + 1 / M dE/dmean: Gatys et al. 2015, eq. 6, where dE/dG is (G - A) / (2 N^2).

    (1, N, h, w) -> (1, N, h, w). slope: dE/dG and dE/dmean, both already divided by M (with a guide: by sum T^2).
    """
    rows = responses[0].permute(1, 2, 0)  # (h, w, N)
    gradient = rows @ (2 * slope.gram).to(rows.dtype) + slope.mean.to(rows.dtype)
    if guide is not None:
        gradient = gradient * guide.square().to(rows.dtype).unsqueeze(2)
    return gradient.permute(2, 0, 1).unsqueeze(0)


def tv_loss(image: Tensor, *, seamless: bool = False) -> Tensor:
    """Mean squared difference of neighbors, down plus across. (1, 3, H, W); not in the paper. 2 for a checkerboard.

    seamless: the last row's neighbor is the first.
    """
    total = image.new_zeros(())
    for dim in (2, 3):
        total = total + _differences(image, dim, seamless=seamless).square().mean()
    return total


def tv_gradient(image: Tensor, *, seamless: bool = False) -> Tensor:
    """Its gradient. (1, 3, H, W)"""
    gradient = torch.zeros_like(image)
    for dim in (2, 3):
        slope = _differences(image, dim, seamless=seamless)
        slope *= 2 / slope.numel()
        if seamless:
            gradient += slope.roll(1, dim) - slope
        else:
            gradient.narrow(dim, 1, slope.shape[dim]).add_(slope)
            gradient.narrow(dim, 0, slope.shape[dim]).sub_(slope)
    return gradient


def _differences(image: Tensor, dim: int, *, seamless: bool) -> Tensor:
    return image.roll(-1, dim) - image if seamless else image.diff(dim=dim)
