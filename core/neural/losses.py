"""Gram matrix; content, style and total-variation loss; their weighted sum with its parts by name.

F: a layer's responses, N filters x M positions. P: those of the content image. G = F F^T; A: that of the painting.
Features come in any precision; Gram matrices and losses are float32 (float64 for float64 features). Knows no optimiser.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from core.neural.vgg import Network
from core.spec import Layer, StyleSpec


def _exact(features: Tensor) -> Tensor:
    return features.to(torch.promote_types(features.dtype, torch.float32))


def gram(features: Tensor) -> Tensor:
    """G / M, the Gram matrix divided by the number of positions. (1, N, h, w) -> (N, N)

    Gatys et al. 2015, eq. 3, but for the division: it lets pictures of different sizes be compared. The paper divides
    the loss instead (eq. 4), where photo and painting have the same M; then both are the same.
    """
    responses = _exact(features)[0].flatten(1)  # (N, M)
    return responses @ responses.T / responses.shape[1]


def content_loss(features: Tensor, target: Tensor) -> Tensor:
    """1/2 sum (F - P)^2: Gatys et al. 2015, eq. 1."""
    return (_exact(features) - target).square().sum() / 2


def style_loss(features: Tensor, target: Tensor) -> Tensor:
    """E = 1 / (4 N^2 M^2) sum (G - A)^2: Gatys et al. 2015, eq. 4. target: A / M, (N, N)"""
    filters = features.shape[1]
    return (gram(features) - target).square().sum() / (4 * filters**2)


def relative_content_loss(features: Tensor, target: Tensor) -> Tensor:
    """Sum (F - P)^2 / sum P^2: 0 at the photo, 1 where every feature is 0. A departure from the paper: no unit."""
    return (_exact(features) - target).square().sum() / target.square().sum().clamp_min(1e-12)


def relative_style_loss(features: Tensor, target: Tensor) -> Tensor:
    """|G - A|^2 / |A|^2. A departure from the paper: means the same for every layer, network, size and painting."""
    return (gram(features) - target).square().sum() / target.square().sum().clamp_min(1e-12)


def tv_loss(image: Tensor) -> Tensor:
    """Mean squared difference of neighbors, down plus across. (1, 3, H, W); not in the paper. 2 for a checkerboard."""
    down = (image[..., 1:, :] - image[..., :-1, :]).square().mean()
    across = (image[..., :, 1:] - image[..., :, :-1]).square().mean()
    return down + across


def mixed_gram(network: Network, paintings: Sequence[Tensor], spec: StyleSpec) -> dict[str, Tensor]:
    """The Gram matrix of each style layer, mixed by the shares `spec.style_weights`. {layer: (N, N)}

    sum_k s_k |G - A_k|^2 = |G - sum_k s_k A_k|^2 + a constant, for shares that sum to 1: pulling towards the mixture is
    pulling towards every painting by its share, at the cost of one.
    """
    mixed: dict[str, Tensor] = {}
    for painting, share in zip(paintings, spec.style_weights, strict=True):
        for layer, features in network.features(painting, spec.style_layers, spec.pooling).items():
            mixed[layer] = mixed.get(layer, 0) + share * gram(features)
    return mixed


@dataclass(frozen=True)
class Losses:
    """The weighted terms as they enter the sum, and the sum; scalars."""

    content: Tensor
    style: Tensor
    tv: Tensor
    total: Tensor

    def by_name(self) -> dict[str, float]:
        """Plain numbers for people; waits for the device."""
        return {name: float(getattr(self, name)) for name in ("total", "content", "style", "tv")}


class Objective:
    """L = alpha L_content + beta L_style + tv L_tv (Gatys et al. 2015, eq. 7), with its targets."""

    def __init__(self, network: Network, spec: StyleSpec, content: Tensor, grams: Mapping[str, Tensor]) -> None:
        """content: (1, 3, H, W), the photo at the size of the images to judge. grams: from `mixed_gram`."""
        self._network, self._spec, self._grams = network, spec, grams
        self._content_layers = _shares(spec.content_layers) if spec.content_weight else {}
        self._style_layers = _shares(spec.style_layers) if spec.style_weight else {}
        self._layers = {*self._content_layers, *self._style_layers}
        with torch.no_grad():
            responses = (
                network.features(content, list(self._content_layers), spec.pooling) if self._content_layers else {}
            )
            self._targets = {layer: _exact(features) for layer, features in responses.items()}
        paper = spec.objective == "gatys"
        self._content_loss = content_loss if paper else relative_content_loss
        self._style_loss = style_loss if paper else relative_style_loss

    def __call__(self, image: Tensor) -> Losses:
        """The losses of an image (1, 3, H, W)."""
        spec, zero = self._spec, image.new_zeros(())
        features = self._network.features(image, self._layers, spec.pooling)
        content = style = tv = zero
        for layer, share in self._content_layers.items():
            content = content + spec.content_weight * share * self._content_loss(features[layer], self._targets[layer])
        for layer, share in self._style_layers.items():
            style = style + spec.style_weight * share * self._style_loss(features[layer], self._grams[layer])
        if spec.tv_weight:
            tv = spec.tv_weight * tv_loss(image)
        return Losses(content, style, tv, content + style + tv)

    def with_gradient(self, image: Tensor) -> tuple[Losses, Tensor]:
        """The losses and dL/dimage, (1, 3, H, W)."""
        leaf = image.detach().requires_grad_()
        losses = self(leaf)
        (gradient,) = torch.autograd.grad(losses.total, leaf)
        detached = Losses(*(term.detach() for term in (losses.content, losses.style, losses.tv, losses.total)))
        return detached, gradient.contiguous()  # it comes in the network's layout


def _shares(weights: Mapping[Layer, float]) -> dict[Layer, float]:
    """Layer weights that sum to 1; layers of weight 0 are not computed."""
    total = sum(weights.values())
    return {layer: weight / total for layer, weight in weights.items() if weight}
