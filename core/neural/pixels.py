"""Picture <-> image tensor (1, 3, H, W), RGB in [0, 1], float32; resizing; keeping colors. Knows no network."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

# Luminance of the YIQ space, as in Gatys et al. 2016, "Preserving Color in Neural Artistic Style Transfer".
_LUMA = (0.299, 0.587, 0.114)


def to_image(picture: Image.Image, size: tuple[int, int] | None = None) -> Tensor:
    """A picture, resized to (width, height) if given, as an image tensor on the CPU. (1, 3, H, W)"""
    if size is not None and size != picture.size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    pixels = torch.from_numpy(np.array(picture.convert("RGB")))  # (H, W, 3) uint8
    return pixels.permute(2, 0, 1).unsqueeze(0).float() / 255


def to_picture(image: Tensor) -> Image.Image:
    """An image tensor (1, 3, H, W) as the 8-bit picture that a user gets."""
    pixels = (image.detach()[0].clamp(0, 1) * 255).round().to("cpu", torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def enlarge(image: Tensor, size: tuple[int, int]) -> Tensor:
    """The image at (width, height), bicubic, back inside [0, 1]."""
    width, height = size
    larger = functional.interpolate(image, (height, width), mode="bicubic", align_corners=False)
    return larger.clamp(0, 1)


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


def _luma(image: Tensor) -> Tensor:
    weights = image.new_tensor(_LUMA).view(1, 3, 1, 1)
    return (image * weights).sum(1, keepdim=True)  # (1, 1, H, W)
