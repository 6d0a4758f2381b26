"""The weighted sum L = alpha L_content + beta L_style + tv L_tv of an image, and its gradient, tile by tile.

Style is what is summed over the whole picture: a first pass over the tiles adds up its statistics, a second takes every
tile's gradient from them (Gatys et al. 2015, eq. 6). One tile makes both passes one. Knows no optimiser.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from core.neural.transfer import losses
from core.neural.transfer.losses import PaperStyle, RelativeStyle, Statistics
from core.neural.transfer.tiling import Tile, tiles
from core.neural.vgg import Edges, Network, Recording, stride
from core.style.spec import Layer, StyleSpec

Style = dict[str, Statistics]  # by layer; means, not sums
_Summable = TypeVar("_Summable", Tensor, Statistics)


@dataclass(frozen=True)
class Region:
    """Where a style goes: its statistics, its share, and a guide, (H, W) in [0, 1]; None is everywhere."""

    style: Style
    share: float = 1.0
    guide: Tensor | None = None


@dataclass(frozen=True)
class Losses:
    """The weighted terms as they enter the sum, and the sum; scalars."""

    content: Tensor
    style: Tensor
    tv: Tensor
    total: Tensor

    def by_name(self) -> dict[str, float]:
        """Plain numbers for people; waits for the device, once."""
        names = ("total", "content", "style", "tv")
        return dict(
            zip(names, torch.stack([getattr(self, name) for name in names]).tolist(), strict=True)
        )


def style_of(
    network: Network, picture: Tensor, spec: StyleSpec, tile_px: int | None = None
) -> Style:
    """The statistics of each style layer of a picture (1, 3, H, W)."""
    layers = _shares(spec.style_layers)
    style: Style = {}
    height, width = picture.shape[2:]
    for tile in tiles(height, width, tile_px, network.halo(layers)):
        for layer, responses in network.features(
            tile.cut(picture), layers, spec.pooling, edges_of(spec)
        ).items():
            _add(style, layer, losses.sums(tile.own(responses, stride(layer))))
    return {layer: total * (1 / _positions(layer, height, width)) for layer, total in style.items()}


def layers_of(spec: StyleSpec) -> tuple[dict[str, float], dict[str, float]]:
    """The layers that content and style really look at, with shares that sum to 1."""
    content = _shares(spec.content_layers) if spec.content_weight else {}
    return content, _shares(spec.style_layers) if spec.beta else {}


def edges_of(spec: StyleSpec) -> Edges:
    """The paper's network for the paper's objective."""
    return "zeros" if spec.objective == "gatys" else "repeat"


def mixed(styles: Iterable[Style], shares: Sequence[float]) -> Style:
    """Several styles in one, by shares that sum to 1.

    For Gram matrices and means, sum_k s_k |G - A_k|^2 = |G - sum_k s_k A_k|^2 + a constant: pulling towards the mixture
    is pulling towards every painting by its share, at the cost of one. Deviations become those of the mixture.
    """
    weighted = [
        {layer: statistics * share for layer, statistics in style.items()}
        for style, share in zip(styles, shares, strict=True)
    ]
    first, *others = weighted
    for style in others:
        first = {layer: statistics + style[layer] for layer, statistics in first.items()}
    return first


@dataclass(frozen=True)
class _Found:
    """What one look at an image finds, summed over its tiles."""

    content: dict[str, Tensor]  # by layer: 1/2 sum (F - P)^2
    styles: list[Style]  # by region: means, not sums


class Objective:
    """L with its targets (Gatys et al. 2015, eq. 7), for images of one size."""

    def __init__(
        self,
        network: Network,
        spec: StyleSpec,
        photo: Tensor,
        regions: Sequence[Region],
        tile_px: int | None = None,
    ) -> None:
        """photo: (1, 3, H, W), at the size of the images to judge. tile_px: the largest tile; None is one for all."""
        self._network, self._spec, self._sight = network, spec, (spec.pooling, edges_of(spec))
        self._height, self._width = photo.shape[2:]
        self._content_layers, self._style_layers = layers_of(spec)
        self._layers = {*self._content_layers, *self._style_layers}
        halo = network.halo(self._layers)
        self._tiles = tiles(self._height, self._width, tile_px, halo, seamless=spec.seamless)
        self._guides = [
            {layer: _guide(region.guide, layer) for layer in self._style_layers}
            for region in regions
        ]
        self._masses = [
            {layer: self._mass(guide, layer) for layer, guide in guides.items()}
            for guides in self._guides
        ]
        self._targets: dict[str, Tensor] = {}  # P, (1, N, h, w), in the network's precision
        start = self._sum_up(
            (tile, self._keep_targets(tile, features)) for tile, features in self._views(photo)
        )
        self._start = start.styles
        self.weigh(spec, regions)

    def weigh(self, spec: StyleSpec, regions: Sequence[Region]) -> None:
        """Other weights, and other mixtures of the same styles: another function from now on, with the same targets.

        Layers and guides must be the old ones: a content or style weight neither becomes 0 nor comes from there.
        """
        self._spec = spec
        self._alphas = {
            layer: self._alpha(layer, share) for layer, share in self._content_layers.items()
        }
        self._terms = [
            {
                layer: self._style_term(layer, region, masses[layer], at[layer])
                for layer in self._style_layers
            }
            for region, masses, at in zip(regions, self._masses, self._start, strict=True)
        ]

    def __call__(self, image: Tensor) -> Losses:
        """The losses of an image (1, 3, H, W)."""
        return self._weighted(image, self._sum_up(self._views(image)))

    @torch.no_grad()
    def with_gradient(self, image: Tensor) -> tuple[Losses, Tensor]:
        """The losses and dL/dimage, (1, 3, H, W)."""
        recordings: Iterable[Recording]
        if len(self._tiles) == 1:  # what is seen for the sums serves for the gradient, too
            recordings = [self._record(self._tiles[0], image)]
            found = self._sum_up([(self._tiles[0], recordings[0].features)])
        else:
            found = self._sum_up(self._views(image))
            recordings = (self._record(tile, image) for tile in self._tiles)
        slopes = self._slopes(found)
        boost = self._boost(slopes)
        gradient = torch.zeros_like(image)
        for tile, recording in zip(self._tiles, recordings, strict=True):
            tile.add(gradient, recording.gradient(partial(self._cotangent, tile, slopes, boost)))
        gradient /= boost
        if self._spec.tv_weight:
            gradient += self._spec.tv_weight * losses.tv_gradient(
                image, seamless=self._spec.seamless
            )
        return self._weighted(image, found), gradient

    # ------------------------------------------------------------------ the first pass: sums over the picture

    def _views(self, image: Tensor) -> Iterator[tuple[Tile, dict[str, Tensor]]]:
        """Each tile, and the responses to what it sees."""
        for tile in self._tiles:
            yield tile, self._network.features(tile.cut(image), self._layers, *self._sight)

    def _sum_up(self, views: Iterable[tuple[Tile, Mapping[str, Tensor]]]) -> _Found:
        content: dict[str, Tensor] = {}
        styles: list[Style] = [{} for _ in self._guides]
        for tile, features in views:
            for layer, responses in features.items():
                own = tile.own(responses, stride(layer))
                if layer in self._content_layers:
                    _add(
                        content,
                        layer,
                        losses.content_loss(own, tile.place(self._targets[layer], stride(layer))),
                    )
                if layer in self._style_layers:
                    for style, guides in zip(styles, self._guides, strict=True):
                        _add(style, layer, losses.sums(own, _placed(tile, guides[layer], layer)))
        means = [
            {layer: total * (1 / masses[layer]) for layer, total in style.items()}
            for style, masses in zip(styles, self._masses, strict=True)
        ]
        return _Found(content, means)

    def _mass(self, guide: Tensor | None, layer: str) -> Tensor | float:
        """M, or sum T^2; of a guide with nothing left at this resolution, next to nothing: all its sums are 0."""
        if guide is None:
            return _positions(layer, self._height, self._width)
        return guide.square().sum().clamp_min(1e-12)

    def _weighted(self, image: Tensor, found: _Found) -> Losses:
        content = style = tv = image.new_zeros(())
        for layer, loss in found.content.items():
            content = content + self._alphas[layer] * loss
        for terms, at in zip(self._terms, found.styles, strict=True):
            for layer, term in terms.items():
                style = style + term.loss(at[layer])
        if self._spec.tv_weight:
            tv = self._spec.tv_weight * losses.tv_loss(image, seamless=self._spec.seamless)
        return Losses(content, style, tv, content + style + tv)

    # ------------------------------------------------------------------ the second pass: gradients from the sums

    def _record(self, tile: Tile, image: Tensor) -> Recording:
        return self._network.record(tile.cut(image), self._layers, *self._sight)

    def _slopes(self, found: _Found) -> list[Style]:
        """By region and layer: dL/dG and dL/dmean, divided by M or sum T^2."""
        return [
            {layer: term.slope(at[layer]) * (1 / masses[layer]) for layer, term in terms.items()}
            for terms, at, masses in zip(self._terms, found.styles, self._masses, strict=True)
        ]

    def _boost(self, slopes: list[Style]) -> Tensor | float:
        """What the way back is multiplied by, so that float16 does not lose it below 6e-8; it is linear."""
        if self._network.dtype != torch.float16:
            return 1.0
        sizes = [slope.gram.abs().sum(0).max() for style in slopes for slope in style.values()]
        sizes += list(self._alphas.values())
        return 1 / torch.stack(sizes).max().clamp_min(1e-30)

    def _cotangent(
        self, tile: Tile, slopes: list[Style], boost: Tensor | float, layer: str, responses: Tensor
    ) -> Tensor:
        """dL/dresponses times the boost, 0 at the positions that the tile does not own."""
        own = tile.own(responses, stride(layer))
        total: Tensor | None = None
        for style, guides in zip(slopes, self._guides, strict=True):
            if layer in style:
                part = losses.style_gradient(
                    own, style[layer] * boost, _placed(tile, guides[layer], layer)
                )
                total = part if total is None else total.add_(part)
        if layer in self._content_layers:
            target = tile.place(self._targets[layer], stride(layer))
            part = losses.content_gradient(own, target).mul_(self._alphas[layer] * boost)
            total = part if total is None else total.add_(part)
        assert total is not None, "a layer is there for style or content"
        if total.shape == responses.shape:
            return total
        everywhere = torch.zeros_like(responses)
        tile.own(everywhere, stride(layer)).copy_(total)
        return everywhere

    # ------------------------------------------------------------------ targets and weights

    def _keep_targets(self, tile: Tile, features: dict[str, Tensor]) -> dict[str, Tensor]:
        """P at the tile's own positions, from the responses to the photo; they are handed on."""
        for layer in self._content_layers:
            responses = features[layer]
            if layer not in self._targets:
                size = (
                    1,
                    responses.shape[1],
                    self._height // stride(layer),
                    self._width // stride(layer),
                )
                empty = torch.empty(size, dtype=responses.dtype, device=responses.device)
                self._targets[layer] = empty.contiguous(memory_format=torch.channels_last)
            tile.place(self._targets[layer], stride(layer)).copy_(
                tile.own(responses, stride(layer))
            )
        return features

    def _alpha(self, layer: str, share: float) -> Tensor:
        """What the paper's content loss is multiplied by."""
        weight = self._spec.content_weight * share
        if self._spec.objective == "gatys":
            return torch.tensor(weight, device=self._network.device)
        return 2 * weight / losses.exact(self._targets[layer]).square().sum().clamp_min(1e-12)

    def _style_term(
        self, layer: str, region: Region, mass: Tensor | float, start: Statistics
    ) -> PaperStyle | RelativeStyle:
        """A region counts by its area: so that a small one is not pulled harder than a large one."""
        area = mass / _positions(layer, self._height, self._width)
        weight = self._spec.beta * self._style_layers[layer] * region.share * area
        if self._spec.objective == "gatys":
            return PaperStyle(region.style[layer], weight)
        if (
            not self._content_layers
        ):  # a texture comes from nothing: the photo lends it no more than its shape
            start = start * 0.0
        return RelativeStyle(region.style[layer], start, weight)


def _shares(weights: Mapping[Layer, float]) -> dict[str, float]:
    """Layer weights that sum to 1; layers of weight 0 are not computed."""
    total = sum(weights.values())
    return {layer: weight / total for layer, weight in weights.items() if weight}


def _positions(layer: str, height: int, width: int) -> int:
    return (height // stride(layer)) * (width // stride(layer))


def _guide(guide: Tensor | None, layer: str) -> Tensor | None:
    """The guide at the layer's resolution, (h, w): each position by the share of its own pixels that is inside."""
    if guide is None or stride(layer) == 1:
        return guide
    return functional.avg_pool2d(guide[None, None], stride(layer))[0, 0]


def _placed(tile: Tile, guide: Tensor | None, layer: str) -> Tensor | None:
    return None if guide is None else tile.place(guide, stride(layer))


def _add(totals: dict[str, _Summable], layer: str, part: _Summable) -> None:
    totals[layer] = totals[layer] + part if layer in totals else part
