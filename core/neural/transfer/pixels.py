"""Picture <-> image tensor (1, 3, H, W), RGB in [0, 1], float32; resizing; keeping colors. Knows no network."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from core.style.spec import GRID_PX

# Luminance of the YIQ space, as in Gatys et al. 2016, "Preserving Color in Neural Artistic Style Transfer".
_LUMA = (0.299, 0.587, 0.114)


def to_image(picture: Image.Image, size: tuple[int, int] | None = None) -> Tensor:
    """A picture, resized to (width, height) if given, as an image tensor on the CPU. (1, 3, H, W)"""
    if size is not None and size != picture.size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(picture.convert("RGB")))  # (H, W, 3) uint8
    return pixels.permute(2, 0, 1).unsqueeze(0).contiguous().float() / 255


def to_guide(mask: Image.Image, size: tuple[int, int]) -> Tensor:
    """A gray picture, resized to (width, height), as (H, W) in [0, 1]: white is 1."""
    return to_image(mask.convert("L"), size)[0, 0].contiguous()


def to_picture(image: Tensor) -> Image.Image:
    """An image tensor (1, 3, H, W) as the 8-bit picture that a user gets."""
    pixels = (image.detach()[0].clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def enlarge(image: Tensor, size: tuple[int, int], *, seamless: bool = False) -> Tensor:
    """The image at (width, height), bicubic, back inside [0, 1]. seamless: beyond an edge comes the other side."""
    width, height = size
    if seamless:  # sides are multiples of 16 px: a sixteenth more on each side is whole pixels before and after
        across, down = image.shape[3] // GRID_PX, image.shape[2] // GRID_PX
        image = functional.pad(image, (across, across, down, down), mode="circular")
        across, down = width // GRID_PX, height // GRID_PX
        larger = enlarge(image, (width + 2 * across, height + 2 * down))
        return larger[..., down : down + height, across : across + width].contiguous()
    return functional.interpolate(image, (height, width), mode="bicubic").clamp(0, 1)


def luminance(image: Tensor) -> Tensor:
    """Light and dark alone, as a gray image. (1, 3, H, W) -> (1, 3, H, W)"""
    return _luma(image).expand(-1, 3, -1, -1).contiguous()


def match_luminance(style: Tensor, content: Tensor) -> Tensor:
    """The gray style image with the mean and standard deviation of the gray content image (Gatys et al. 2016)."""
    scale = content.std() / style.std().clamp_min(1e-3)
    return ((style - style.mean()) * scale + content.mean()).clamp(0, 1)


def with_color_of(image: Tensor, content: Tensor) -> Tensor:
    """Luminance of `image`, color of `content`: Y from one, I and Q from the other. Both (1, 3, H, W)."""
    return (content + (_luma(image) - _luma(content))).clamp(0, 1)


def match_color(style: Tensor, content: Tensor) -> Tensor:
    """The style image with the mean and covariance of the content image's colors, moved as little as can be.

    The linear map of optimal transport between two normal distributions (Pitie and Kokaram 2007, "The linear
    Monge-Kantorovitch colour mapping"); Gatys et al. 2016, section 3, use others with the same covariance.
    """
    of_style, of_content = (
        image[0].flatten(1).cpu().double() for image in (style, content)
    )  # (3, M)
    least = 1e-5 * torch.eye(3, dtype=torch.float64)  # a picture of one color has no spread at all
    root, wanted = _square_root(torch.cov(of_style) + least), torch.cov(of_content) + least
    back = torch.linalg.inv(root)
    turn = back @ _square_root(root @ wanted @ root) @ back  # (3, 3)
    moved: Tensor = turn @ (of_style - of_style.mean(1, keepdim=True)) + of_content.mean(
        1, keepdim=True
    )
    return moved.to(style).view_as(style).clamp(0, 1)


def match_histogram(style: Tensor, content: Tensor) -> Tensor:
    """The style image with the content image's histogram in each of red, green and blue, after `match_color`."""
    source, wanted = match_color(style, content)[0].flatten(1), content[0].flatten(1)  # (3, M)
    wanted = wanted.sort(1).values
    order = source.argsort(stable=True, dim=1)
    count = source.shape[1]
    places = torch.arange(count, device=style.device) * (wanted.shape[1] - 1) // max(1, count - 1)
    return torch.empty_like(source).scatter_(1, order, wanted[:, places]).view_as(style)


def _square_root(matrix: Tensor) -> Tensor:
    """Of a symmetric matrix without negative eigenvalues."""
    values, vectors = torch.linalg.eigh(matrix)
    root: Tensor = vectors @ values.clamp_min(0).sqrt().diag() @ vectors.T
    return root


def _luma(image: Tensor) -> Tensor:
    weights = image.new_tensor(_LUMA).view(1, 3, 1, 1)
    return (image * weights).sum(1, keepdim=True)  # (1, 1, H, W)
