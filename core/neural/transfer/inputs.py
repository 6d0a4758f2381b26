"""The pictures of a run, and what they are at one scale: the photo's image, the objective, the first image.

Keeps the photo's colors where that is asked for. Knows no optimiser and no progress.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from core.images import codec
from core.neural.transfer import pixels
from core.neural.transfer.objective import Objective, Region, Style, mixed, style_of
from core.neural.transfer.schedule import Scale
from core.neural.vgg import Network
from core.style.spec import MIN_RESULT_SIDE_PX, StyleSpec

MAX_PAINTING_PX = 4096


@dataclass(frozen=True)
class StyleInputs:
    """A photo and paintings; for each painting, if any, where its style goes (white) or not; what to begin with."""

    content: Image.Image
    styles: Sequence[Image.Image]
    masks: Sequence[Image.Image] = ()
    init: Image.Image | None = None

    def fitted(self, spec: StyleSpec) -> StyleSpec:
        """The spec with one mixing share a painting. Raises BadSpec, BadImage where pictures and spec do not fit."""
        spec = spec.for_pictures(
            len(self.styles), len(self.masks), init_image=self.init is not None
        )
        for mask, share in zip(self.masks, spec.style_weights, strict=False):
            if share:  # without one, the painting goes nowhere anyway
                codec.check_mask(mask)
        return spec

    def at(
        self, scale: Scale, spec: StyleSpec, network: Network, tile_px: int | None = None
    ) -> "ScaleTarget":
        """The photo as an image, and the objective that judges images of its size."""
        photo = pixels.to_image(self.content, scale.size).to(network.device)
        if spec.preserve_color == "luminance":
            photo = pixels.luminance(photo)
        styles = []
        for style in (
            self.styles if spec.beta else ()
        ):  # one at a time: each may be as large as the result
            painting = pixels.to_image(style, style_size(*style.size, spec, scale)).to(
                network.device
            )
            styles.append(style_of(network, _in_colors_of(photo, painting, spec), spec, tile_px))
        guides = [
            pixels.to_guide(mask, scale.size).to(network.device)
            for mask in (self.masks if styles else ())
        ]
        objective = Objective(network, spec, photo, _regions(styles, guides, spec), tile_px)
        return ScaleTarget(photo, styles, guides, objective)

    def first_image(self, photo: Tensor, spec: StyleSpec) -> Tensor:
        """(1, 3, H, W) in [0, 1]: the photo, white noise, the first painting, or the picture to begin with."""
        if spec.init == "content":
            return photo.clone()
        if spec.init == "noise":
            generator = torch.Generator().manual_seed(spec.seed)
            return torch.rand(photo.shape, generator=generator).to(photo.device)
        picture = self.styles[0] if self.init is None else self.init
        image = pixels.to_image(picture, (photo.shape[3], photo.shape[2])).to(photo.device)
        if spec.preserve_color == "luminance":
            return pixels.luminance(image)
        return image if spec.init == "picture" else _in_colors_of(photo, image, spec)

    def render(self, image: Tensor, spec: StyleSpec) -> Image.Image:
        """The picture that a user gets for an image (1, 3, H, W)."""
        if spec.preserve_color == "luminance":
            photo = pixels.to_image(self.content, (image.shape[3], image.shape[2])).to(image.device)
            image = pixels.with_color_of(image, photo)
        return pixels.to_picture(image)


@dataclass(frozen=True)
class ScaleTarget:
    """A subject at one scale: what of it stays the same whatever the weights, and the objective, which does not."""

    photo: Tensor
    styles: list[Style]  # of each painting
    guides: list[Tensor]
    objective: Objective

    def weigh(self, spec: StyleSpec) -> None:
        """Let the objective go by the weights and shares of another spec that is the same in all else."""
        self.objective.weigh(spec, _regions(self.styles, self.guides, spec))


def _regions(styles: Sequence[Style], guides: Sequence[Tensor], spec: StyleSpec) -> list[Region]:
    if not styles:
        return []
    if not guides:
        return [Region(mixed(styles, spec.style_weights))]
    shares = [
        share * len(styles) for share in spec.style_weights
    ]  # each counts where its mask is: equal is all of it
    return [Region(*region) for region in zip(styles, shares, guides, strict=True)]


def style_size(width: int, height: int, spec: StyleSpec, scale: Scale) -> tuple[int, int]:
    """A painting with its long side at the scale's times `style_scale`: that sets the size of the strokes.

    Never enlarged beyond its own size, where there are no strokes to find, but never too narrow for the network.
    """
    wanted = min(scale.long_side * spec.style_scale, MAX_PAINTING_PX) / max(width, height)
    factor = max(min(wanted, 1.0), MIN_RESULT_SIDE_PX / min(width, height))
    return round(width * factor), round(height * factor)


def _in_colors_of(photo: Tensor, painting: Tensor, spec: StyleSpec) -> Tensor:
    if spec.preserve_color == "luminance":
        return pixels.match_luminance(pixels.luminance(painting), photo)
    if spec.preserve_color == "match":
        return pixels.match_color(painting, photo)
    if spec.preserve_color == "histogram":
        return pixels.match_histogram(painting, photo)
    return painting
