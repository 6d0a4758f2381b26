"""The loss of an image and its gradient, tile by tile.

L = alpha L_content + beta L_style + tv L_tv. Source: Gatys, Ecker and Bethge 2015, eq. 7; total
variation is our addition.

Style is a sum over the whole picture. A first pass over the tiles therefore sums its statistics,
and a second pass computes the gradient of each tile from them (eq. 6). With a single tile one pass
serves both. With several, both passes compute the photo's shallow responses again. Knows no
optimizer.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import mul
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from core.neural.transfer import losses
from core.neural.transfer.losses import PaperStyle, RelativeStyle, Statistics
from core.neural.transfer.margin import Margin, edge_mode
from core.neural.transfer.tiling import Tile, make_tiles
from core.neural.vgg import Network, Recording, stride
from core.style.spec import Layer, StyleSpec

Style = dict[str, Statistics]  # by layer; means, not sums
_StyleTerm = tuple[Tensor, Statistics]  # E, and dE/dG with dE/dmean

# The content loss is relative to the photo's responses, or to this share of the painting's if that
# is more. A photo of a plain wall has hardly any, and would forbid every stroke.
_CONTENT_FLOOR = 0.25

# In fewer positions than this, a layer cannot have the statistics of a painting: the optimization
# would make colored noise. A region that is so small does without the layer.
_MIN_POSITIONS = 16

# Relative rounding errors of responses are below its root, even in half precision.
_NEGLIGIBLE_SHARE = 1e-4

# The content targets of a layer of at most this stride take 64 bytes per pixel or more (relu2_1 in
# bfloat16; the image takes 12). A picture in tiles computes them again for each tile.
_RECOMPUTED_STRIDE = 2
_Summable = TypeVar("_Summable", Tensor, Statistics)


@dataclass(frozen=True)
class Region:
    """A style and where it applies.

    style: the target statistics by layer. share: a factor of the region's loss. guide: (H, W) in
    [0, 1], at the size of the result; None is the whole picture.
    """

    style: Style
    share: float = 1.0
    guide: Tensor | None = None

    @property
    def fraction(self) -> Tensor | float:
        """The part of the result's area that it covers, 0 to 1."""
        return 1.0 if self.guide is None else self.guide.square().mean()


@dataclass(frozen=True)
class Losses:
    """The weighted terms and their sum; scalars on the device."""

    content: Tensor
    style: Tensor
    tv: Tensor
    total: Tensor

    @classmethod
    def of(cls, stacked: Tensor) -> "Losses":
        """The losses from what `stack` has returned."""
        return cls(*stacked.unbind())

    def stack(self) -> Tensor:
        """The terms and their sum as one tensor, (4,)."""
        return torch.stack([self.content, self.style, self.tv, self.total])

    def where(self, condition: Tensor, others: "Losses") -> "Losses":
        """These losses if the condition, a scalar on the device, is true, else the others."""
        return Losses.of(torch.where(condition, self.stack(), others.stack()))

    def by_name(self) -> dict[str, float]:
        """Plain numbers by name. Waits once for the device."""
        content, style, tv, total = self.stack().tolist()
        return {"total": total, "content": content, "style": style, "tv": tv}


def measure_style(
    network: Network, picture: Tensor, spec: StyleSpec, tile_px: int | None = None
) -> Style:
    """The statistics of a painting (1, 3, H, W) in each layer of the loss."""
    return measure_styles(network, picture, spec, [None], tile_px)[0]


def measure_styles(
    network: Network,
    picture: Tensor,
    spec: StyleSpec,
    guides: Sequence[Tensor | None],
    tile_px: int | None = None,
) -> list[Style]:
    """The statistics of several parts of a painting (1, 3, H, W), one for each guide.

    guides: (H, W) in [0, 1]; None is the whole painting.
    """
    layers = statistics_layers(spec)
    sums: list[Style] = [{} for _ in guides]
    margin = Margin.of_painting(picture.shape[2], picture.shape[3], spec)
    picture = margin.mirror(picture)
    by_layer = [{layer: _guide_at(guide, layer, margin) for layer in layers} for guide in guides]
    for tile in make_tiles(margin, tile_px, network.halo(layers)):
        features = network.features(tile.crop(picture), layers, spec.pooling, edge_mode(spec))
        for layer, responses in features.items():
            owned = tile.owned_part(responses, stride(layer))
            for style, pooled in zip(sums, by_layer, strict=True):
                part = _guide_part(tile, pooled[layer], layer)
                _add(style, layer, losses.sum_statistics(owned, part))
    return [
        {
            layer: total * (1 / _area(pooled[layer], margin.layer_size(stride(layer))))
            for layer, total in style.items()
        }
        for style, pooled in zip(sums, by_layer, strict=True)
    ]


def statistics_layers(spec: StyleSpec) -> set[str]:
    """The layers whose statistics `measure_styles` returns."""
    return {*_normalize(spec.style_layers), *used_layers(spec)[0]}


def used_layers(spec: StyleSpec) -> tuple[dict[str, float], dict[str, float]]:
    """The content and the style layers that the loss uses, each with weights that sum to 1."""
    content = _normalize(spec.content_layers) if spec.content_weight else {}
    style = _normalize(spec.style_layers) if spec.beta else {}
    return content, style


def recomputed_layers(content_layers: Iterable[str], tiles: int) -> set[str]:
    """The content layers whose targets are not kept, for a picture in this many tiles."""
    return {layer for layer in content_layers if tiles > 1 and stride(layer) <= _RECOMPUTED_STRIDE}


def mix_styles(styles: Iterable[Style], shares: Sequence[float]) -> Style:
    """Several styles as one target, by shares that sum to 1.

    For Gram matrices and means, sum_k s_k |G - A_k|^2 = |G - sum_k s_k A_k|^2 + a constant. The
    mixture therefore has the same gradient as the weighted losses of all paintings, at the cost of
    one. The deviations become those of the mixture.
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
class _Measurement:
    """What the losses need to know of an image, summed over its tiles."""

    content: dict[str, Tensor]  # by layer: 1/2 sum (F - P)^2
    styles: list[Style]  # by region: means, not sums


class Objective:
    """The loss with its targets (Gatys et al. 2015, eq. 7), for images of one size.

    margin: what images have around the picture; it is not counted.
    """

    def __init__(
        self,
        network: Network,
        spec: StyleSpec,
        photo: Tensor,
        regions: Sequence[Region],
        tile_px: int | None = None,
    ) -> None:
        """photo: (1, 3, H, W), of the size of the result.

        Images have the margin of `Margin.of_image` around it. tile_px: the largest side of a tile
        in px; None: one tile, the whole picture.
        """
        self._network, self._spec = network, spec
        self._pooling, self._edges = spec.pooling, edge_mode(spec)
        self.margin = Margin.of_image(photo.shape[2], photo.shape[3], spec)
        self._photo = self.margin.mirror(photo)
        self._content_layers, self._style_layers = used_layers(spec)
        self._layers = {*self._content_layers, *self._style_layers}
        tiles_with_halo = partial(make_tiles, self.margin, tile_px, seamless=spec.seamless)
        self._tiles = tiles_with_halo(network.halo(self._layers))
        self._guides, self._areas = _fit_layers(regions, [*self._style_layers], self.margin)
        self._targets: dict[str, Tensor] = {}  # P, (1, N, h, w), in the network's precision
        self._energies: dict[str, Tensor] = {}  # sum P^2
        self._recomputed = recomputed_layers(self._content_layers, len(self._tiles))
        if self._recomputed:
            # They own what `_tiles` own, and read less.
            self._photo_tiles = tiles_with_halo(network.halo(self._recomputed))
        start = self._measure(self._store_targets, has_targets=False)
        self._start = start.styles  # the photo's own statistics; they divide relative terms
        self.set_weights(spec, regions)

    @property
    def photo(self) -> Tensor:
        """The photo, (1, 3, H, W); a view."""
        return self.margin.cut(self._photo)

    def set_weights(self, spec: StyleSpec, regions: Sequence[Region]) -> None:
        """Change the weights and the mixture of styles.

        The targets stay, so this costs no evaluation. Layers and guides must be those of the first
        spec. A content or style weight must not become 0, or change from 0.
        """
        self._spec = spec
        self._alphas = {
            layer: self._alpha(layer, share, regions)
            for layer, share in self._content_layers.items()
        }
        self._terms = [
            {layer: self._style_term(layer, region, areas, start[layer]) for layer in areas}
            for region, areas, start in zip(regions, self._areas, self._start, strict=True)
        ]

    @property
    def negligible_loss(self) -> Tensor:
        """A loss that cannot be told from 0: a small share of that of no responses at all."""
        total = torch.zeros((), device=self._network.device)
        for layer, alpha in self._alphas.items():
            total = total + alpha * self._energies[layer] / 2
        for terms, start in zip(self._terms, self._start, strict=True):
            for layer, term in terms.items():
                total = total + term.evaluate(start[layer] * 0.0)[0]
        return _NEGLIGIBLE_SHARE * total

    def __call__(self, image: Tensor) -> Losses:
        """The losses of an image (1, 3, H, W), which has a margin."""
        measurement = self._measure(partial(self._features, image))
        return self._weighted_losses(image, measurement.content, self._evaluate_style(measurement))

    @torch.no_grad()
    def value_and_gradient(self, image: Tensor) -> tuple[Losses, Tensor]:
        """The losses of an image (1, 3, H, W), which has a margin, and dL/dimage."""
        if len(self._tiles) == 1:  # the recording serves for the sums and for the gradient
            recording = self._record(self._tiles[0], image)
            measurement = self._measure(lambda _: recording.features)
            record: Callable[[Tile], Recording] = lambda _: recording  # noqa: E731
        else:
            measurement = self._measure(partial(self._features, image))
            record = partial(self._record, image=image)
        terms = self._evaluate_style(measurement)
        by_style = self._style_gradients(terms)
        scale = self._loss_scale(by_style)
        if scale is not None:
            by_style = [{layer: by * scale for layer, by in style.items()} for style in by_style]
        gradient = torch.zeros_like(image)
        for index, tile in enumerate(self._tiles):
            tile.scatter_add(gradient, self._tile_gradient(index, record, by_style, scale))
        if scale is not None:
            gradient /= scale
        if self._spec.tv_weight:
            self.margin.cut(gradient).add_(
                losses.tv_gradient(self.margin.cut(image), seamless=self._spec.seamless),
                alpha=self._spec.tv_weight,
            )
        return self._weighted_losses(image, measurement.content, terms), gradient

    # -------------------------------------------------- first pass: sums over the picture

    def _features(self, image: Tensor, tile: Tile) -> dict[str, Tensor]:
        """The responses to the tile's pixels and its halo."""
        return self._network.features(tile.crop(image), self._layers, self._pooling, self._edges)

    def _measure(
        self, read: Callable[[Tile], Mapping[str, Tensor]], *, has_targets: bool = True
    ) -> _Measurement:
        """The sums over all tiles. read: the responses of a tile.

        has_targets: whether to compare with the photo's responses.
        """
        content: dict[str, Tensor] = {}
        sums: list[Style] = [{} for _ in self._guides]
        for index, tile in enumerate(self._tiles):
            # In a call of its own, so that one tile's responses are gone before the next one's.
            self._add_tile(
                content, sums, tile, read(tile), self._targets_of(index) if has_targets else {}
            )
        means = [
            {layer: total * (1 / areas[layer]) for layer, total in style.items()}
            for style, areas in zip(sums, self._areas, strict=True)
        ]
        return _Measurement(content, means)

    def _add_tile(
        self,
        content: dict[str, Tensor],
        sums: list[Style],
        tile: Tile,
        features: Mapping[str, Tensor],
        targets: Mapping[str, Tensor],
    ) -> None:
        for layer, responses in features.items():
            owned = tile.owned_part(responses, stride(layer))
            if layer in targets:
                _add(content, layer, losses.content_loss(owned, targets[layer]))
            if layer in self._style_layers:
                for style, guides in zip(sums, self._guides, strict=True):
                    if layer in guides:
                        guide = _guide_part(tile, guides[layer], layer)
                        _add(style, layer, losses.sum_statistics(owned, guide))

    def _evaluate_style(self, measurement: _Measurement) -> list[dict[str, _StyleTerm]]:
        """By region and layer: the weighted term, dE/dG and dE/dmean."""
        return [
            {layer: term.evaluate(statistics[layer]) for layer, term in terms.items()}
            for terms, statistics in zip(self._terms, measurement.styles, strict=True)
        ]

    def _weighted_losses(
        self, image: Tensor, by_layer: Mapping[str, Tensor], terms: list[dict[str, _StyleTerm]]
    ) -> Losses:
        """by_layer: 1/2 sum (F - P)^2."""
        content = style = tv = image.new_zeros(())
        for layer, loss in by_layer.items():
            content = content + self._alphas[layer] * loss
        for layers in terms:
            for loss, _ in layers.values():
                style = style + loss
        if self._spec.tv_weight:
            picture = self.margin.cut(image)
            tv = self._spec.tv_weight * losses.tv_loss(picture, seamless=self._spec.seamless)
        return Losses(content, style, tv, content + style + tv)

    # -------------------------------------------------- second pass: gradients from the sums

    def _record(self, tile: Tile, image: Tensor) -> Recording:
        return self._network.record(tile.crop(image), self._layers, self._pooling, self._edges)

    def _style_gradients(self, terms: list[dict[str, _StyleTerm]]) -> list[Style]:
        """By region and layer: dL/dG and dL/dmean, divided by M or sum T^2."""
        return [
            {layer: by * (1 / areas[layer]) for layer, (_, by) in layers.items()}
            for layers, areas in zip(terms, self._areas, strict=True)
        ]

    def _loss_scale(self, by_style: list[Style]) -> Tensor | None:
        """The factor of the backward pass in float16, where a number below 6e-8 becomes 0.

        None in other precisions. The backward pass is linear, so the gradient is divided by the
        same factor at the end.
        """
        if self._network.dtype != torch.float16:
            return None
        sizes = [by.gram.abs().sum(0).max() for style in by_style for by in style.values()]
        sizes += list(self._alphas.values())
        return 1 / torch.stack(sizes).max().clamp_min(1e-30)

    def _tile_gradient(
        self,
        index: int,
        record: Callable[[Tile], Recording],
        by_style: list[Style],
        scale: Tensor | None,
    ) -> Tensor:
        """dL/dpixels times the loss scale, for the pixels that the tile reads."""
        tile = self._tiles[index]
        targets = self._targets_of(index)  # before the recording, which takes the most memory
        return record(tile).gradient(
            partial(self._add_cotangent, tile, targets, by_style=by_style, scale=scale)
        )

    def _add_cotangent(
        self,
        tile: Tile,
        targets: dict[str, Tensor],
        layer: str,
        responses: Tensor,
        gradient: Tensor,
        *,
        by_style: list[Style],
        scale: Tensor | None,
    ) -> None:
        """Add dL/dresponses times the loss scale to a gradient (1, N, h, w) in place.

        It is 0 at the positions that the tile does not own. Takes the layer's target out of
        `targets`, because the first block, which comes last, needs the memory.
        """
        part = tile.owned_slices(responses, stride(layer))
        for style, guides in zip(by_style, self._guides, strict=True):
            if layer in style:
                guide = _guide_part(tile, guides[layer], layer)
                losses.add_style_gradient(gradient, responses, part, style[layer], guide)
        if layer in targets:
            owned = tile.owned_part(responses, stride(layer))
            added = losses.content_gradient(owned, targets.pop(layer))
            alpha = self._alphas[layer]
            added.mul_(alpha if scale is None else alpha * scale)
            tile.owned_part(gradient, stride(layer)).add_(added)

    # -------------------------------------------------- targets and weights

    def _store_targets(self, tile: Tile) -> dict[str, Tensor]:
        """Store P at the tile's own positions, and add to sum P^2.

        Returns the responses to the photo.
        """
        features = self._features(self._photo, tile)
        for layer in self._content_layers:
            responses = features[layer]
            owned = tile.owned_part(responses, stride(layer))
            _add(self._energies, layer, losses.at_least_float32(owned).square().sum())
            if layer in self._recomputed:
                continue
            if layer not in self._targets:
                size = (1, responses.shape[1], *self.margin.layer_size(stride(layer)))
                empty = torch.empty(size, dtype=responses.dtype, device=responses.device)
                self._targets[layer] = empty.contiguous(memory_format=torch.channels_last)
            tile.part_of(self._targets[layer], stride(layer)).copy_(owned)
        return features

    def _targets_of(self, index: int) -> dict[str, Tensor]:
        """P at the own positions of a tile, (1, N, h, w), by content layer."""
        tile = self._tiles[index]
        targets = {
            layer: tile.part_of(target, stride(layer)) for layer, target in self._targets.items()
        }
        if self._recomputed:
            tile = self._photo_tiles[index]
            photo = tile.crop(self._photo)
            features = self._network.features(photo, self._recomputed, self._pooling, self._edges)
            targets |= {
                layer: tile.owned_part(responses, stride(layer))
                for layer, responses in features.items()
            }
        return targets

    def _alpha(self, layer: str, share: float, regions: Sequence[Region]) -> Tensor:
        """The factor of the paper's content loss: its weight.

        The objective `relative` divides it by 1/2 sum P^2, or by a share of the paintings' if that
        is more. Each painting counts by its share and by the area of its region.
        """
        weight = self._spec.content_weight * share
        if self._spec.objective == "gatys":
            weight *= self._network.response_unit**2
            return torch.tensor(weight, device=self._network.device)
        energy = self._energies[layer]
        if regions:
            weights = [region.share * region.fraction for region in regions]
            traces = [region.style[layer].gram.trace() for region in regions]
            mean = sum(map(mul, weights, traces)) / (sum(weights) + 1e-12)
            positions = math.prod(self.margin.layer_size(stride(layer)))
            energy = torch.maximum(energy, _CONTENT_FLOOR * positions * mean)
        return 2 * weight / energy.clamp_min(1e-12)

    def _style_term(
        self, layer: str, region: Region, areas: Mapping[str, Tensor | float], start: Statistics
    ) -> PaperStyle | RelativeStyle:
        """The style loss of a region, weighted by its area.

        A small region then has no stronger pull than a large one. areas: of the region's layers,
        which share the weight of those that it is too small for.
        """
        fraction = areas[layer] / math.prod(self.margin.layer_size(stride(layer)))
        layer_weight = self._style_layers[layer] / sum(self._style_layers[one] for one in areas)
        weight = self._spec.beta * layer_weight * region.share * fraction
        if self._spec.objective == "gatys":
            return PaperStyle(region.style[layer], weight * self._network.response_unit**4)
        if self._content_layers:
            weight = weight * _balance(region.style[layer], start)
        else:
            start = start * 0.0  # a texture starts from nothing; the photo only gives its shape
        return RelativeStyle(region.style[layer], start, weight)


def _balance(target: Statistics, start: Statistics) -> Tensor:
    """A factor of the style loss: the root of the painting's energy by the photo's, 0.35 to 2.83.

    The relative loss divides the contrast of the painting out. A painting of strong responses would
    then show too little beside the photo, and a faint one too much.
    """
    ratio = target.gram.trace() / start.gram.trace().clamp_min(1e-12)
    return ratio.clamp(1 / 8, 8).sqrt()


def _normalize(weights: Mapping[Layer, float]) -> dict[str, float]:
    """Layer weights that sum to 1, without layers of weight 0, which are not computed."""
    total = sum(weights.values())
    return {layer: weight / total for layer, weight in weights.items() if weight}


def _fit_layers(
    regions: Sequence[Region], layers: Sequence[str], margin: Margin
) -> tuple[list[dict[str, Tensor | None]], list[dict[str, Tensor | float]]]:
    """By region: its guide and its area in each layer that has enough positions there.

    The finest layer always stays.
    """
    all_guides: list[dict[str, Tensor | None]] = []
    all_areas: list[dict[str, Tensor | float]] = []
    for region in regions:
        guides = {layer: _guide_at(region.guide, layer, margin) for layer in layers}
        areas = {
            layer: _area(guide, margin.layer_size(stride(layer))) for layer, guide in guides.items()
        }
        finest = min(layers, key=stride, default=None)
        kept = [
            layer
            for layer in layers
            if region.guide is None or layer == finest or areas[layer] >= _MIN_POSITIONS
        ]
        all_guides.append({layer: guides[layer] for layer in kept})
        all_areas.append({layer: areas[layer] for layer in kept})
    return all_guides, all_areas


def _area(guide: Tensor | None, size: tuple[int, int]) -> Tensor | float:
    """The number of positions M of a layer of this size, or sum T^2 with a guide.

    A guide may be 0 everywhere at a coarse resolution. Then all sums are 0 and the area only must
    not be 0.
    """
    if guide is None:
        return math.prod(size)
    return guide.square().sum().clamp_min(1e-12)


def _guide_at(guide: Tensor | None, layer: str, margin: Margin) -> Tensor | None:
    """The guide at the layer's resolution, (h, w): each position has the mean of its own pixels."""
    if guide is None:
        return None
    padded, step = margin.mirror(guide[None, None]), stride(layer)
    pooled = padded if step == 1 else functional.avg_pool2d(padded, step)
    height, width = margin.layer_size(step)
    first = margin.before // step
    return pooled[0, 0, first : first + height, first : first + width]


def _guide_part(tile: Tile, guide: Tensor | None, layer: str) -> Tensor | None:
    return None if guide is None else tile.part_of(guide, stride(layer))


def _add(totals: dict[str, _Summable], layer: str, part: _Summable) -> None:
    totals[layer] = totals[layer] + part if layer in totals else part
