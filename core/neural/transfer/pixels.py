"""Conversion between pictures and image tensors, resizing, and color transfer. Knows no network.

An image tensor has the shape (1, 3, H, W), RGB in [0, 1], float32.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from core.style.spec import GRID_PX

# Weights of R, G and B in the luminance Y of YIQ, as in Gatys et al. 2016, "Preserving Color in
# Neural Artistic Style Transfer", section 4.
_LUMA = (0.299, 0.587, 0.114)

# A picture counts as gray if its channels differ by less than this on average, of 255, and if they
# differ visibly in hardly any place.
_GRAY_LEVELS = 2.0
_COLOR_LEVELS = 24.0
_MAX_COLORED_SHARE = 0.0005

# A picture is first reduced by whole numbers to this many times the wanted size. That takes a tenth
# of the time for a photo of 12 megapixels; a noisy one differs by 0.3 of 255 levels on average.
_REDUCING_GAP = 3.0

# The finest detail is measured in fields of so many px. A painting counts as the field at this
# quantile: what is smooth in it, such as paper, may be smooth in the picture too.
_FIELD_PX = 16
_SMOOTH_SHARE = 0.1

_OCTAVES = 5  # whose contrast `match_detail` changes
_MAX_COLOR_GAIN = 3.0
_DETAIL_GAINS = 0.7, 2.0  # smaller ones lose the photo's detail, larger ones show its noise


def to_image(picture: Image.Image, size: tuple[int, int] | None = None) -> Tensor:
    """A picture as an image tensor (1, 3, H, W) on the CPU; `size` resizes it to (width, height)
    first.
    """
    if size is not None and size != picture.size:
        picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=_REDUCING_GAP)
    pixels = torch.from_numpy(np.array(picture.convert("RGB")))  # (H, W, 3) uint8
    return pixels.permute(2, 0, 1).unsqueeze(0).contiguous().float() / 255


def is_gray(picture: Image.Image) -> bool:
    """Whether a picture has no color, except for what compression leaves."""
    small = picture.reduce(max(1, max(picture.size) // 256)).convert("RGB")
    pixels = np.array(small, np.float32)
    spread = pixels.max(2) - pixels.min(2)  # (h, w)
    colored = float((spread > _COLOR_LEVELS).mean())
    return float(spread.mean()) < _GRAY_LEVELS and colored <= _MAX_COLORED_SHARE


def to_guide(mask: Image.Image, size: tuple[int, int]) -> Tensor:
    """A gray picture, resized to (width, height), as (H, W) in [0, 1]; white is 1."""
    return to_image(mask.convert("L"), size)[0, 0].contiguous()


def fill_outside(image: Tensor, mask: Tensor) -> Tensor:
    """An image (1, 3, H, W) whose black part in the mask (H, W) mirrors the white part.

    A guide only weighs positions of a layer. Near its border they still see what is black, such as
    a frame, and more of it in deeper layers.
    """
    is_inside = mask >= mask.max() / 2
    for _ in range(2):  # after the first time each row with a white pixel is full, or each column
        image, is_inside = _mirror_inside(image, is_inside)
    return image


def _mirror_inside(image: Tensor, is_inside: Tensor) -> tuple[Tensor, Tensor]:
    """The image with more of it filled, and where it is filled now, (H, W)."""
    height, width = is_inside.shape
    down, across = (torch.arange(side, device=image.device) for side in (height, width))
    column, from_column = _nearest_inside(is_inside)  # in the same row
    row, from_row = _nearest_inside(is_inside.T)
    is_vertical = from_column > from_row.T
    rows = torch.where(is_vertical, row.T, down[:, None])
    columns = torch.where(is_vertical, across, column)
    filled = torch.minimum(from_row.T, from_column) < height + width
    return torch.where(filled, image[:, :, rows, columns], image), filled


def _nearest_inside(is_inside: Tensor) -> tuple[Tensor, Tensor]:
    """For each pixel: where its mirror image in the row is, and its distance to the white part.

    (H, W), in px; the mirror is the nearest white pixel. The distance is large without one.
    """
    width = is_inside.shape[1]
    at, far = torch.arange(width, device=is_inside.device), 4 * sum(is_inside.shape)
    before = torch.where(is_inside, at, -far).cummax(1).values
    after = torch.where(is_inside, at, far).flip(1).cummin(1).values.flip(1)
    nearest = torch.where(at - before <= after - at, before, after)
    mirrored = (2 * nearest - at).clamp(0, width - 1)
    is_mirrored = is_inside.gather(1, mirrored)
    return torch.where(is_mirrored, mirrored, nearest.clamp(0, width - 1)), (nearest - at).abs()


def to_picture(image: Tensor) -> Image.Image:
    """An image tensor (1, 3, H, W) as an 8-bit picture; values outside [0, 1] are clamped."""
    pixels = (image.detach()[0].clamp(0, 1) * 255).round().to("cpu", torch.uint8)  # (3, H, W)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def enlarge(image: Tensor, size: tuple[int, int], *, seamless: bool = False) -> Tensor:
    """The image at (width, height), by bicubic interpolation, clamped to [0, 1].

    `antialias` selects the kernel of Keys 1981, a = -0.5. That of torch's default, -0.75, repeats
    large shapes as a weave of one pixel, as strong as a painting's own detail of that size.

    seamless: interpolate across the edges as if the picture repeated. Both sides must then be
    multiples of `GRID_PX`.
    """
    width, height = size
    if seamless:
        # A sixteenth of each side as margin: whole pixels before and after, because sides are
        # multiples of 16 px.
        across, down = image.shape[3] // GRID_PX, image.shape[2] // GRID_PX
        image = functional.pad(image, (across, across, down, down), mode="circular")
        across, down = width // GRID_PX, height // GRID_PX
        larger = enlarge(image, (width + 2 * across, height + 2 * down))
        return larger[..., down : down + height, across : across + width].contiguous()
    return _resize(image, (height, width)).clamp_(0, 1)


def reduce(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The image at (width, height), a smaller size, clamped to [0, 1]."""
    return _resize(image, size[::-1]).clamp_(0, 1)


def add_detail(image: Tensor, photo: Tensor, before: Sequence[int]) -> Tensor:
    """The enlarged image with the detail of the photo that was lost before, clamped to [0, 1].

    image, photo: (1, 3, H, W). before: the image's height and width before it was enlarged.
    """
    height, width = photo.shape[2:]
    small = reduce(photo, (before[1], before[0]))
    lost = photo - enlarge(small, (width, height))
    return lost.add_(image).clamp_(0, 1)


def fine_texture(painting: Tensor) -> float:
    """The mean square of a painting's finest luminance detail, where it is smoothest.

    painting: (1, 3, H, W).
    """
    return float(_fine_energy(painting).quantile(_SMOOTH_SHARE))


def add_grain(image: Tensor, texture: Tensor, seed: int) -> Tensor:
    """The image with luminance noise where it has less fine texture than the paintings.

    image: (1, 3, H, W). texture: what `fine_texture` returns of the painting of each pixel, (1, 1,
    H, W).

    An enlarged image is smooth. The optimizer can only add detail along the gradient, and in a
    smooth area that is the same weave of 3 px everywhere; from noise it makes brush strokes.
    """
    height, width = image.shape[2:]
    present = functional.interpolate(_fine_energy(image), (height, width), mode="bilinear")
    deviation = (texture - present).clamp_min_(0).sqrt_()
    # On the CPU, so that a seed gives the same noise on every device.
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn((1, 1, height + 2, width + 2), generator=generator)
    for _ in range(2):  # without the highest frequency, which would stay as a checkerboard
        noise = functional.avg_pool2d(noise, 2, 1)
    noise = _finest_octave(noise)
    noise /= noise.std()
    return (image + deviation * noise.to(image)).clamp_(0, 1)


def _fine_energy(image: Tensor) -> Tensor:
    """The mean square of the finest octave of luminance in each field, (1, 1, h, w)."""
    detail = _finest_octave(_luma(image))
    height, width = (-(-side // _FIELD_PX) for side in image.shape[2:])
    return functional.adaptive_avg_pool2d(detail.square_(), (height, width))


def luminance(image: Tensor) -> Tensor:
    """The luminance as a gray image, (1, 3, H, W) -> (1, 3, H, W)."""
    return _luma(image).expand(-1, 3, -1, -1).contiguous()


def match_luminance(style: Tensor, content: Tensor) -> Tensor:
    """The gray style image with the mean and standard deviation of the gray content image.

    Source: Gatys et al. 2016, "Preserving Color", section 4. Both (1, 3, H, W).
    """
    scale = content.std() / style.std().clamp_min(1e-3)
    return ((style - style.mean()) * scale + content.mean()).clamp(0, 1)


def restore_color(image: Tensor, content: Tensor) -> Tensor:
    """The luminance of `image` with the color of `content`: Y from one, I and Q from the other.

    Both (1, 3, H, W).

    Source: Gatys et al. 2016, "Preserving Color", section 4 (luminance-only transfer).
    """
    return (content + (_luma(image) - _luma(content))).clamp(0, 1)


def match_color(style: Tensor, content: Tensor, max_gain: float = math.inf) -> Tensor:
    """The style image with the mean and covariance of the content image's colors.

    Both (1, 3, H, W). max_gain: the most by which a difference of colors may grow.

    The linear map of optimal transport between two normal distributions, which changes the colors
    least (Pitie and Kokaram 2007, "The linear Monge-Kantorovitch colour mapping"). Gatys et al.
    2016, section 3, use other linear maps that give the same covariance.
    """
    style_rows, content_rows = (
        image[0].flatten(1).cpu().double() for image in (style, content)
    )  # (3, M)
    # A picture of one color has a covariance of 0, which has no inverse.
    minimum = 1e-5 * torch.eye(3, dtype=torch.float64)
    root = _square_root(torch.cov(style_rows) + minimum)
    target = torch.cov(content_rows) + minimum
    inverse = torch.linalg.inv(root)
    transport = inverse @ _square_root(root @ target @ root) @ inverse  # (3, 3)
    if max_gain < math.inf:
        gains, directions = torch.linalg.eigh(transport)
        transport = directions @ gains.clamp_max(max_gain).diag() @ directions.T
    centered = style_rows - style_rows.mean(1, keepdim=True)
    matched: Tensor = transport @ centered + content_rows.mean(1, keepdim=True)
    return matched.to(style).view_as(style).clamp(0, 1)


def match_detail(image: Tensor, painting: Tensor) -> Tensor:
    """The image with the colors of a painting, and with its contrast in each octave of detail.

    Both (1, 3, H, W), of any two sizes. A closed form of much that the style loss asks for: the
    image keeps its shapes. Gains are bounded, or noise of a plain photo would become visible.
    """
    matched = match_color(image, painting, _MAX_COLOR_GAIN)
    wanted, _ = _split_octaves(painting)
    octaves, result = _split_octaves(matched)
    for index in reversed(range(len(octaves))):
        detail = octaves[index]
        result = _resize(result, detail.shape[2:])
        if index < len(wanted):
            gain = _deviation(wanted[index]) / _deviation(detail).clamp_min(1e-3)  # (1, 3, 1, 1)
            detail = gain.clamp(*_DETAIL_GAINS) * detail
        result = result + detail
    return result.clamp(0, 1)


def _split_octaves(image: Tensor) -> tuple[list[Tensor], Tensor]:
    """The detail of each octave, the finest first, and what is left: a Laplacian pyramid."""
    octaves: list[Tensor] = []
    while len(octaves) < _OCTAVES and min(image.shape[2:]) > 4:
        smaller = _halve(image)
        octaves.append(image - _resize(smaller, image.shape[2:]))
        image = smaller
    return octaves, image


def _finest_octave(image: Tensor) -> Tensor:
    return image - _resize(_halve(image), image.shape[2:])


def _halve(image: Tensor) -> Tensor:
    return _resize(image, [-(-side // 2) for side in image.shape[2:]])


def _resize(image: Tensor, size: Sequence[int]) -> Tensor:
    return functional.interpolate(image, tuple(size), mode="bicubic", antialias=True)


def _deviation(image: Tensor) -> Tensor:
    return image.std((0, 2, 3), keepdim=True)


def match_histogram(style: Tensor, content: Tensor) -> Tensor:
    """The style image with the content image's histogram in each channel, after `match_color`.

    Both (1, 3, H, W).

    Source: Gatys et al. 2016, "Preserving Color", section 3 (color histogram matching).
    """
    source, target = match_color(style, content)[0].flatten(1), content[0].flatten(1)  # (3, M)
    target = target.sort(1).values
    order = source.argsort(stable=True, dim=1)
    count = source.shape[1]
    # The i-th smallest value becomes the target's value of the same rank, scaled to the target's
    # count.
    ranks = torch.arange(count, device=style.device) * (target.shape[1] - 1) // max(1, count - 1)
    return torch.empty_like(source).scatter_(1, order, target[:, ranks]).view_as(style)


def _square_root(matrix: Tensor) -> Tensor:
    """The square root of a symmetric matrix without negative eigenvalues."""
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = vectors @ values.clamp_min(0).sqrt().diag() @ vectors.T
    return root


def _luma(image: Tensor) -> Tensor:
    weights = image.new_tensor(_LUMA).view(1, 3, 1, 1)
    return (image * weights).sum(1, keepdim=True)  # (1, 1, H, W)
