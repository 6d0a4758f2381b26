"""The pictures of a run, and what they become at one scale.

That is the photo's image, the objective and the initial image. Also applies `preserve_color`. Knows
no optimizer and no progress.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from PIL import Image
from torch import Tensor

from core.images import codec
from core.images.frame import Box, find_painting, scale_box
from core.neural.transfer import pixels
from core.neural.transfer.margin import Margin
from core.neural.transfer.objective import (
    Losses,
    Objective,
    Region,
    Style,
    measure_styles,
    mix_styles,
)
from core.neural.transfer.regions import SIDE_PX, RegionMap, find_regions
from core.neural.transfer.style_cache import StyleCache
from core.neural.vgg import Network
from core.style.schedule import Scale, adds_detail
from core.style.spec import GRID_PX, MIN_RESULT_SIDE_PX, StyleSpec

# Long side of a painting at most: a larger one costs memory and shows the network no other strokes.
MAX_PAINTING_PX = 4096

# What a run starts with matters for the coarse scale; a larger picture only takes memory.
_START_PX = 256
_FULL_START_BETA = 1.0  # with less weight of the style, its colors show in part only

# Share of white noise in the first image with a seed that is not 0.
VARIATION = 0.1


@dataclass(frozen=True)
class StyleInputs:
    """The pictures of a run.

    One photo, one or more paintings, optional masks, an optional initial picture. A mask belongs to
    the painting at the same index. Its style applies where the mask is white. A style mask belongs
    to it too: only the white parts of the painting count.

    alpha: what the result is to have, mode L; None: it is opaque. region_map: the parts of photo
    and paintings that belong together; set by `with_regions`. style_crops: of each painting the
    box to which it was cropped, in px of its file; None: not at all. Set by
    `without_frames`; empty if none was cropped. style_cache: statistics of earlier runs, for a
    process that makes several.
    """

    content: Image.Image
    styles: Sequence[Image.Image]
    masks: Sequence[Image.Image] = ()
    init: Image.Image | None = None
    style_masks: Sequence[Image.Image] = ()
    alpha: Image.Image | None = None
    region_map: RegionMap | None = None
    style_crops: Sequence[Box | None] = ()
    style_cache: StyleCache | None = None

    def fit_spec(self, spec: StyleSpec) -> StyleSpec:
        """The spec with one mixing share for each painting; the shares sum to 1.

        Raises BadSpec if the numbers of pictures do not fit the spec, BadImage for a mask that is
        black all over.
        """
        spec = spec.for_pictures(
            len(self.styles),
            len(self.masks),
            len(self.style_masks),
            init_image=self.init is not None,
        )
        for masks in (self.masks, self.style_masks):
            for mask, share in zip(masks, spec.style_weights, strict=False):
                if share:  # a painting without a share is not used, so its mask does not matter
                    codec.check_mask(mask)
        return spec

    def without_frames(self, spec: StyleSpec) -> "StyleInputs":
        """The inputs with the paintings inside their frames.

        The frames stay if the spec says so, and if style masks say what belongs to the paintings.
        """
        if spec.style_frame == "keep" or self.style_masks:
            return self
        boxes = [find_painting(picture) for picture in self.styles]
        if not any(boxes):
            return self
        cropped = [
            picture.crop(box) if box else picture
            for picture, box in zip(self.styles, boxes, strict=True)
        ]
        crops = [
            box and scale_box(box, picture.info.get(codec.REDUCTION, 1))
            for picture, box in zip(self.styles, boxes, strict=True)
        ]
        return replace(self, styles=cropped, style_crops=crops)

    def with_regions(self, spec: StyleSpec, network: Network) -> "StyleInputs":
        """The inputs with automatic regions, if the spec asks for them and there is a style."""
        if spec.regions != "auto" or not spec.beta:
            return self
        sizes = [_clustered_size(*picture.size) for picture in (self.content, *self.styles)]
        photo = pixels.to_image(self.content, sizes[0])
        paintings = [
            self._painting(index, size, network.device) for index, size in enumerate(sizes[1:])
        ]
        masks = [*map(pixels.to_guide, self.style_masks, sizes[1:])]
        return replace(self, region_map=find_regions(network, photo, paintings, masks))

    def is_gray(self, spec: StyleSpec) -> bool:
        """Whether the image has no color while it is optimized.

        True if all pictures are gray, if only the luminance is transferred, and if the colors of a
        gray photo are kept.
        """
        if spec.preserve_color == "luminance" or self._has_only_gray:
            return True
        return spec.preserve_color != "none" and self._has_gray_photo

    @cached_property
    def _has_gray_photo(self) -> bool:
        return pixels.is_gray(self.content)

    @cached_property
    def _has_only_gray(self) -> bool:
        init = [self.init] if self.init else []
        return self._has_gray_photo and all(map(pixels.is_gray, (*self.styles, *init)))

    def target_at(
        self, scale: Scale, spec: StyleSpec, network: Network, tile_px: int | None = None
    ) -> "ScaleTarget":
        """The photo and the objective at the size of a scale.

        tile_px: the largest tile, in px; None evaluates the whole picture at once.
        """
        photo = self.photo_at(scale.size, spec).to(network.device)
        is_gray = self.is_gray(spec)
        styles: list[list[Style]] = []
        textures: list[float] = []
        masks: list[Tensor] = []
        region_guides: list[Tensor] = []
        if spec.beta:
            # One painting at a time: each may be as large as the result.
            for index, picture in enumerate(self.styles):
                size = style_size(*picture.size, spec, scale.long_side)
                painting = self._painting(index, size, network.device)
                painting = _match_colors(photo, painting, spec)
                textures.append(pixels.fine_texture(painting))
                parts = [
                    None if part is None else part.to(network.device)
                    for part in self._painting_guides(index, size)
                ]
                measure = self.style_cache.measure if self.style_cache else measure_styles
                styles.append(measure(network, painting, spec, parts, tile_px))
            masks = [pixels.to_guide(mask, scale.size).to(network.device) for mask in self.masks]
            if self.region_map is not None:
                guides = self.region_map.photo_guides(*scale.size)
                region_guides = [guide.to(network.device) for guide in guides]
        regions = _build_regions(styles, masks, region_guides, spec)
        objective = Objective(network, spec, photo, regions, tile_px)
        return ScaleTarget(styles, textures, masks, region_guides, objective, is_gray)

    def photo_at(self, size: tuple[int, int], spec: StyleSpec) -> Tensor:
        """The photo as an image at (width, height), on the CPU; gray where the image stays gray."""
        photo = pixels.to_image(self.content, size)
        return pixels.luminance(photo) if self.is_gray(spec) else photo

    def _painting(self, index: int, size: tuple[int, int], device: torch.device) -> Tensor:
        """A painting at (width, height), (1, 3, H, W), without what its style mask hides."""
        painting = pixels.to_image(self.styles[index], size).to(device)
        if not self.style_masks:
            return painting
        mask = pixels.to_guide(self.style_masks[index], size).to(device)
        return pixels.fill_outside(painting, mask)

    def _painting_guides(self, index: int, size: tuple[int, int]) -> list[Tensor | None]:
        """The parts of a painting at (width, height), one for each region: (height, width)."""
        parts: list[Tensor | None] = [None]
        if self.region_map is not None:
            parts = [*self.region_map.painting_guides(index, *size)]
        if not self.style_masks:
            return parts
        mask = pixels.to_guide(self.style_masks[index], size)
        return [mask if part is None else mask * part for part in parts]

    def initial_image(self, photo: Tensor, spec: StyleSpec) -> Tensor:
        """The first image, (1, 3, H, W) in [0, 1], of the photo's size with a margin.

        By `spec.init`: the photo, white noise, the first painting, or the initial picture. Photo
        and painting come with a little noise if `spec.seed` is not 0. With the default method the
        photo has the colors and the contrast of the paintings already.
        """
        margin = Margin.of_image(photo.shape[2], photo.shape[3], spec)
        return margin.mirror(self._first_picture(photo, spec))

    def _first_picture(self, photo: Tensor, spec: StyleSpec) -> Tensor:
        if spec.init == "content":
            return self._vary(self._approach_styles(photo, spec), spec)
        if spec.init == "noise":
            return self._white_noise(photo, spec)
        size = (photo.shape[3], photo.shape[2])
        if self.init is None:
            image = self._painting(0, size, photo.device)
        else:
            image = pixels.to_image(self.init, size).to(photo.device)
        if self.is_gray(spec):
            image = pixels.luminance(image)
        elif spec.init == "style":
            image = _match_colors(photo, image, spec)
        return self._vary(image, spec) if spec.init == "style" else image

    def _approach_styles(self, photo: Tensor, spec: StyleSpec) -> Tensor:
        """The photo with the colors and the contrast of the paintings, each in its mask.

        A departure from the paper, which begins with the photo itself: the first iterations then
        change its colors, and deform its shapes meanwhile. Where the style weighs little, or no
        layer sees colors, the photo stays.
        """
        amount = _start_amount(spec)
        if not amount:
            return photo
        height, width = photo.shape[2:]
        factor = min(1.0, _START_PX / max(height, width))
        size = (round(width * factor), round(height * factor))
        small = photo if factor == 1 else pixels.reduce(photo, size)
        image = small.lerp(self._match_styles(small, spec), amount)
        if factor == 1:
            return image
        return pixels.add_detail(pixels.enlarge(image, (width, height)), photo, small.shape[2:])

    def _match_styles(self, photo: Tensor, spec: StyleSpec) -> Tensor:
        """A mixture of what `match_detail` makes of the photo with each painting."""
        result = torch.zeros_like(photo)
        rest = torch.ones_like(photo[:, :1])
        for index, part in enumerate(self._parts(photo, spec)):
            size = style_size(*self.styles[index].size, spec, max(photo.shape[2:]))
            painting = self._painting(index, size, photo.device)
            matched = pixels.match_detail(photo, _match_colors(photo, painting, spec))
            result += part * matched
            rest -= part
        result += rest * photo
        return pixels.luminance(result) if self.is_gray(spec) else result

    def _parts(self, photo: Tensor, spec: StyleSpec) -> Iterator[Tensor]:
        """How much of each pixel is of each painting: (1, 1, H, W), with a sum of at most 1."""
        rest = torch.ones_like(photo[:, :1])
        for index, share in enumerate(spec.style_weights):
            part = torch.full_like(rest, share)
            if self.masks:
                mask = pixels.to_guide(self.masks[index], (photo.shape[3], photo.shape[2]))
                part *= len(self.masks) * mask.to(part)
            part = part.minimum(rest)
            yield part
            rest -= part

    def add_grain(self, image: Tensor, textures: Sequence[float], spec: StyleSpec) -> Tensor:
        """The first image of a finer scale with noise, (1, 3, H, W), where it is too smooth.

        textures: the finest detail of each painting at this scale (`ScaleTarget.textures`). Only
        for runs that begin near their end, as in `_approach_styles`.
        """
        amount = _start_amount(spec)
        if not amount:
            return image
        texture = torch.zeros_like(image[:, :1])
        for part, value in zip(self._parts(image, spec), textures, strict=True):
            texture += amount**2 * value * part
        return pixels.add_grain(image, texture, spec.seed)

    def _white_noise(self, like: Tensor, spec: StyleSpec) -> Tensor:
        """Uniform noise in [0, 1] of the shape of an image; gray where the image is gray."""
        # On the CPU, so that a seed gives the same noise on every device.
        generator = torch.Generator().manual_seed(spec.seed)
        noise = torch.rand(like.shape, generator=generator).to(like.device)
        return pixels.luminance(noise) if self.is_gray(spec) else noise

    def _vary(self, image: Tensor, spec: StyleSpec) -> Tensor:
        """The image with a little noise, so that another seed gives another picture.

        Seed 0 adds none: the default begins with the picture itself.
        """
        if spec.seed == 0:
            return image.clone()
        return image.lerp(self._white_noise(image, spec), VARIATION)

    def render(self, image: Tensor, spec: StyleSpec) -> Image.Image:
        """The 8-bit picture of an image (1, 3, H, W).

        It has the photo's colors if `spec.preserve_color` asks for them, and the alpha, if any.
        """
        if spec.preserve_color == "luminance":
            photo = pixels.to_image(self.content, (image.shape[3], image.shape[2])).to(image.device)
            image = pixels.restore_color(image, photo)
        picture = pixels.to_picture(image)
        if self.alpha is not None:  # a filter without lobes leaves no halo around the outline
            picture.putalpha(self.alpha.resize(picture.size, Image.Resampling.BILINEAR))
        return picture


@dataclass(frozen=True)
class ScaleTarget:
    """The inputs at one scale. Only the objective depends on the weights."""

    styles: list[list[Style]]  # of each painting, of each region
    textures: list[float]  # of each painting: `pixels.fine_texture`
    masks: list[Tensor]  # (H, W) in [0, 1], of each painting; empty without masks
    region_guides: list[Tensor]  # (H, W) in [0, 1]; empty: the whole picture is the only region
    objective: Objective
    is_gray: bool  # whether the image stays gray

    @property
    def photo(self) -> Tensor:
        """(1, 3, H, W) in [0, 1]; a view of the objective's, because it may be large."""
        return self.objective.photo

    def value_and_gradient(self, image: Tensor) -> tuple[Losses, Tensor]:
        """The losses of an image, and the gradient by which it changes; gray for a gray image."""
        losses, gradient = self.objective.value_and_gradient(image)
        if self.is_gray:
            gradient = gradient.mean(1, keepdim=True).expand(-1, 3, -1, -1).contiguous()
        return losses, gradient

    def set_weights(self, spec: StyleSpec) -> None:
        """Apply the weights and shares of another spec, which must agree in everything else."""
        regions = _build_regions(self.styles, self.masks, self.region_guides, spec)
        self.objective.set_weights(spec, regions)


def _build_regions(
    styles: Sequence[Sequence[Style]],
    masks: Sequence[Tensor],
    region_guides: Sequence[Tensor],
    spec: StyleSpec,
) -> list[Region]:
    """Each region with a mixture of the paintings, or with each painting inside its mask."""
    if not styles:
        return []
    found: list[Region] = []
    guides: Sequence[Tensor | None] = region_guides or [None]
    for guide, by_painting in zip(guides, zip(*styles, strict=True), strict=True):
        if not masks:
            found.append(Region(mix_styles(by_painting, spec.style_weights), 1.0, guide))
            continue
        # With masks a share is relative to the equal share: equal shares count fully where their
        # masks are.
        for style, share, mask in zip(by_painting, spec.style_weights, masks, strict=True):
            where = mask if guide is None else mask * guide
            found.append(Region(style, share * len(masks), where))
    return found


def _clustered_size(width: int, height: int) -> tuple[int, int]:
    """Width and height in px at which the network looks for regions: multiples of `GRID_PX`.

    The responses of all layers then cover the same part of the picture.
    """
    factor = max(SIDE_PX / max(width, height), MIN_RESULT_SIDE_PX / min(width, height))
    across, down = (max(2, round(side * factor / GRID_PX)) for side in (width, height))
    return across * GRID_PX, down * GRID_PX


def style_size(width: int, height: int, spec: StyleSpec, long_side: int) -> tuple[int, int]:
    """Width and height of a painting in px: its long side is the scale's times `style_scale`.

    long_side: of the scale.

    This ratio sets the size of the strokes (Gatys et al. 2017, "Controlling Perceptual Factors",
    section 6). A smaller painting is not enlarged to the scale, because that blurs its strokes:
    `style_scale` then counts from its own size. Its short side is at least what the network needs.
    """
    wanted = min(long_side * spec.style_scale, MAX_PAINTING_PX) / max(width, height)
    factor = max(min(wanted, spec.style_scale), MIN_RESULT_SIDE_PX / min(width, height))
    return round(width * factor), round(height * factor)


def _match_colors(photo: Tensor, painting: Tensor, spec: StyleSpec) -> Tensor:
    """The painting's image with the photo's colors, by the method that `preserve_color` names."""
    if spec.preserve_color == "luminance":
        return pixels.match_luminance(pixels.luminance(painting), photo)
    if spec.preserve_color == "match":
        return pixels.match_color(painting, photo)
    if spec.preserve_color == "histogram":
        return pixels.match_histogram(painting, photo)
    return painting


def _start_amount(spec: StyleSpec) -> float:
    """How far the first image of a scale goes from the photo to the paintings, 0 to 1.

    With little weight of the style it would be farther from the result than the photo is. Without
    layers that follow colors and fine detail, nothing would change what it begins with.
    """
    sees_detail = any(
        weight
        for layer, weight in spec.style_layers.items()
        if layer.startswith(("relu1_", "relu2_"))
    )
    return min(1.0, spec.beta / _FULL_START_BETA) if adds_detail(spec) and sees_detail else 0.0
