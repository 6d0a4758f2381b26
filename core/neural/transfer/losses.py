"""The paper's losses with their gradients as closed forms, and total variation.

Notation (Gatys, Ecker and Bethge 2015): F holds a layer's responses, N filters x M positions. P
holds the responses to the content image. G = F F^T is the Gram matrix; A is the Gram matrix of the
painting.

Responses may have any precision. Gram matrices and losses are float32 (float64 for float64
responses). The ReLU stops the gradient where a response is 0; `vgg.Recording` does that. Knows no
network and no optimizer.
"""

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from core.neural import torch_versions
from core.neural.convolution import add_product, can_fuse

# Added to every variance, so that its root has a gradient; and the least squared distance that
# divides.
_MIN_VARIANCE = 1e-6
_MIN_DISTANCE = 1e-12

# Share of the target's own size that is added to the photo's squared distance. Without it, a photo
# that already has the painting's statistics would be forced to match them ever more exactly (a
# tenth of the size is exact enough).
_TARGET_SHARE = 0.01

# Positions converted to float32 at once: few enough to stay in a cache, and enough for two threads.
_CHUNK = 8192


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32, or in its own precision if that is higher."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@dataclass(frozen=True)
class Statistics:
    """The style statistics of one layer.

    Which filters respond together, and how strongly each responds.
    """

    gram: Tensor  # (N, N): F F^T as a sum, F F^T / M as a mean
    mean: Tensor  # (N,): F 1 as a sum, F 1 / M as a mean

    def __add__(self, other: "Statistics") -> "Statistics":
        """Add the sums of two parts of a picture."""
        return Statistics(self.gram + other.gram, self.mean + other.mean)

    def __mul__(self, factor: Tensor | float) -> "Statistics":
        """Scale: 1 / M turns sums into means, a share gives a part of a mixture."""
        return Statistics(self.gram * factor, self.mean * factor)

    @property
    def deviation(self) -> Tensor:
        """The standard deviation of each filter over the positions, (N,).

        Defined for means, not for sums.
        """
        return (self.gram.diagonal() - self.mean.square()).clamp_min(0).add(_MIN_VARIANCE).sqrt()


def sum_statistics(responses: Tensor, guide: Tensor | None = None) -> Statistics:
    """Sum the statistics of responses (1, N, h, w) over their positions.

    The sums of parts can be added (Gatys et al. 2015, eq. 3). The caller divides the sums by M, so
    that pictures of different sizes are comparable. The paper divides the loss instead (eq. 4),
    because its photo and painting have the same M.

    guide: T, (h, w) in [0, 1]. Each position then counts T^2 times: (F T)(F T)^T. Source: Gatys et
    al. 2017, "Controlling Perceptual Factors in Neural Style Transfer", eq. 8.
    """
    rows = responses[0].permute(1, 2, 0)  # (h, w, N): channels are last in memory
    height, width, filters = rows.shape
    factors = None
    if guide is not None:
        factors = at_least_float32(guide).unsqueeze(2)  # (h, w, 1)
    is_half = rows.dtype in (torch.float16, torch.bfloat16)
    is_fast = rows.device.type == "cuda" and is_half and torch_versions.HAS_MM_TO_FLOAT32
    if factors is None and is_fast:  # the tensor cores sum in float32
        flat = rows.flatten(0, 1)
        return Statistics(
            torch_versions.mm_to_float32(flat.T, flat), flat.sum(0, dtype=torch.float32)
        )
    total = Statistics(
        at_least_float32(rows.new_zeros(filters, filters)),
        at_least_float32(rows.new_zeros(filters)),
    )
    # Only numbers that are bfloat16 already: rounding does not change them.
    is_bfloat16 = rows.device.type == "cpu" and rows.dtype == torch.bfloat16
    is_exact = is_bfloat16 and factors is None
    step = max(1, _CHUNK // max(1, width))  # a tile may own no position
    with torch_versions.allow_bfloat16_products() if is_exact else nullcontext():
        for begin in range(0, height, step):
            part = at_least_float32(rows[begin : begin + step]).flatten(0, 1)  # (chunk, N)
            if factors is None:
                mean = part.sum(0)
            else:
                chunk = factors[begin : begin + step].flatten(0, 1)  # (chunk, 1)
                part = part * chunk
                mean = chunk[:, 0] @ part
            total = Statistics(total.gram.addmm_(part.T, part), total.mean.add_(mean))
    return total


def content_loss(responses: Tensor, target: Tensor) -> Tensor:
    """1/2 sum (F - P)^2, a scalar: Gatys et al. 2015, eq. 1. Both (1, N, h, w).

    Computed in blocks of rows, so that only a small part is copied to float32 at once.
    """
    rows = max(1, _CHUNK // max(1, responses.shape[3]))  # a tile may own no position
    f_parts = responses.split(rows, 2)  # type: ignore[no-untyped-call]
    p_parts = target.split(rows, 2)  # type: ignore[no-untyped-call]
    parts = zip(f_parts, p_parts, strict=True)
    squares = [(at_least_float32(f) - at_least_float32(p)).square().sum() for f, p in parts]
    return torch.stack(squares).sum() / 2


def content_gradient(responses: Tensor, target: Tensor) -> Tensor:
    """dL/dF = F - P, (1, N, h, w): Gatys et al. 2015, eq. 2."""
    return responses - target


class PaperStyle:
    """The paper's style loss of one layer: E = 1 / (4 N^2 M^2) sum (G - A)^2.

    Gatys et al. 2015, eq. 4. Takes means, that is G / M and A / M, so the factor 1 / M^2 is already
    in them.
    """

    def __init__(self, target: Statistics, weight: Tensor | float) -> None:
        self._target = target.gram
        self._weight = weight / (4 * len(target.gram) ** 2)

    def evaluate(self, statistics: Statistics) -> tuple[Tensor, Statistics]:
        """The weighted term, a scalar; dE/dG, (N, N) and symmetric, and dE/dmean, (N,)."""
        away = statistics.gram - self._target
        gradient = Statistics(away * (2 * self._weight), torch.zeros_like(statistics.mean))
        return self._weight * _sum_squares(away), gradient


class RelativeStyle:
    """The default style loss of one layer: a third each for Gram matrix, means and deviations.

    Not in the paper.

    The Gram matrix alone can trade means against deviations (Risser et al. 2017). Each third is
    divided by the squared distance between `start`, the photo, and the target. The sum is therefore
    1 at the photo, and a weight means the same for every layer, network, painting and size.
    """

    def __init__(self, target: Statistics, start: Statistics, weight: Tensor | float) -> None:
        self._targets = _components(target)
        # The sizes of means and deviations are both the energy, the sum of their squares. One of
        # the two can be almost 0 by itself: the deviations of a one-color painting would otherwise
        # forbid every step.
        energy = target.gram.diagonal().sum()
        sizes = (_sum_squares(target.gram), energy, energy)
        self._weights = [
            weight / 3 / (_sum_squares(at - to) + _TARGET_SHARE * size).clamp_min(_MIN_DISTANCE)
            for at, to, size in zip(_components(start), self._targets, sizes, strict=True)
        ]

    def evaluate(self, statistics: Statistics) -> tuple[Tensor, Statistics]:
        """The weighted term, a scalar; dE/dG, (N, N) and symmetric, and dE/dmean, (N,).

        The deviation sqrt(diag G - mean^2) depends on both, so its part goes to both by the chain
        rule.
        """
        found = _components(statistics)
        away = [at - to for at, to in zip(found, self._targets, strict=True)]
        terms = [w * _sum_squares(d) for w, d in zip(self._weights, away, strict=True)]
        gram, mean, deviation = (d * (2 * w) for w, d in zip(self._weights, away, strict=True))
        by_deviation = deviation / found[2]  # (N,)
        gram.diagonal().add_(by_deviation / 2)
        return sum(terms[1:], terms[0]), Statistics(gram, mean - by_deviation * statistics.mean)


def _components(statistics: Statistics) -> tuple[Tensor, Tensor, Tensor]:
    return statistics.gram, statistics.mean, statistics.deviation


def _sum_squares(tensor: Tensor) -> Tensor:
    """The sum of the squares, a scalar, in one pass."""
    flat = tensor.flatten()
    return flat.dot(flat)


def style_gradient(
    responses: Tensor, by_statistics: Statistics, guide: Tensor | None = None
) -> Tensor:
    """dE/dF, (1, N, h, w), from dE/dG and dE/dmean by the chain rule.

    dE/dF = 1 / M (2 F^T dE/dG)^T + 1 / M dE/dmean. With dE/dG = (G - A) / (2 N^2) this is Gatys et
    al. 2015, eq. 6.

    by_statistics: dE/dG and dE/dmean, both already divided by M (with a guide: by sum T^2).
    """
    rows = responses[0].permute(1, 2, 0)  # (h, w, N)
    by_gram = 2 * by_statistics.gram  # (N, N)
    if rows.dtype == torch.float16:
        # The numbers of some layers are below those that float16 holds with all its digits.
        size = by_gram.abs().sum(0).max().clamp_min(1e-30)
        gradient = (rows @ (by_gram / size).to(rows.dtype)).mul_(size)
    else:
        gradient = rows @ by_gram.to(rows.dtype)
    gradient += by_statistics.mean.to(rows.dtype)
    if guide is not None:
        gradient = gradient * guide.square().to(rows.dtype).unsqueeze(2)
    return gradient.permute(2, 0, 1).unsqueeze(0)


def add_style_gradient(
    gradient: Tensor,
    responses: Tensor,
    part: tuple[slice, slice],
    by_statistics: Statistics,
    guide: Tensor | None = None,
) -> None:
    """Add dE/dF at the positions of a part to a gradient in place; both (1, N, h, w).

    part: rows and columns. by_statistics, guide: as for `style_gradient`.
    """
    rows, columns = part
    total, read = gradient[:, :, rows], responses[:, :, rows]
    if guide is None and can_fuse(total) and can_fuse(read):
        by_gram, by_mean = (
            part.to(read.dtype) for part in (by_statistics.gram, by_statistics.mean)
        )
        add_product(total, read, by_gram.mul_(2), by_mean, columns)
    else:
        total[..., columns].add_(style_gradient(read[..., columns], by_statistics, guide))


def tv_loss(image: Tensor, *, seamless: bool = False) -> Tensor:
    """Total variation of an image (1, 3, H, W).

    The mean squared difference of neighbors, down plus across. Not in the paper. A checkerboard of
    0 and 1 has the value 2. seamless: the last row's neighbor is the first row.
    """
    total = image.new_zeros(())
    for dim in (2, 3):
        total = total + _differences(image, dim, seamless=seamless).square().mean()
    return total


def tv_gradient(image: Tensor, *, seamless: bool = False) -> Tensor:
    """The gradient of `tv_loss`, (1, 3, H, W)."""
    gradient = torch.zeros_like(image)
    for dim in (2, 3):
        differences = _differences(image, dim, seamless=seamless)
        differences *= 2 / differences.numel()
        if seamless:
            gradient += differences.roll(1, dim) - differences
        else:
            gradient.narrow(dim, 1, differences.shape[dim]).add_(differences)
            gradient.narrow(dim, 0, differences.shape[dim]).sub_(differences)
    return gradient


def _differences(image: Tensor, dim: int, *, seamless: bool) -> Tensor:
    if seamless:
        return image.roll(-1, dim) - image
    return image.diff(dim=dim)
