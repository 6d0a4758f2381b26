"""Picture to image tensor and back; keeping colors."""

import numpy as np
import torch
from PIL import Image

from core.neural import pixels


def _noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_a_picture_survives_the_way_there_and_back_to_the_bit() -> None:
    picture = Image.fromarray(np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3) * 2)

    image = pixels.to_image(picture)

    assert (1, 3, 5, 7) == tuple(image.shape)
    assert picture.tobytes() == pixels.to_picture(image).tobytes()


def test_a_size_is_width_and_height() -> None:
    picture = Image.new("RGB", (40, 30))

    assert (1, 3, 15, 20) == tuple(pixels.to_image(picture, (20, 15)).shape)
    assert (1, 3, 60, 80) == tuple(pixels.enlarge(pixels.to_image(picture), (80, 60)).shape)


def test_enlarging_stays_inside_the_bounds() -> None:
    edges = (_noise(8, 8) > 0.5).float()
    larger = pixels.enlarge(edges, (32, 32))

    assert 0 <= float(larger.min())
    assert float(larger.max()) <= 1


def test_luminance_is_gray_and_of_a_gray_image_itself() -> None:
    gray = _noise(6, 6)[:, :1].expand(-1, 3, -1, -1)
    light = pixels.luminance(_noise(6, 6))

    assert torch.equal(light[:, 0], light[:, 2])
    assert torch.allclose(gray, pixels.luminance(gray), atol=1e-6)


def test_matched_luminance_has_the_contents_mean_and_deviation() -> None:
    style, content = pixels.luminance(_noise(40, 40)) * 0.2, pixels.luminance(_noise(40, 40, 1)) * 0.3 + 0.3
    matched = pixels.match_luminance(style, content)

    assert torch.allclose(content.mean(), matched.mean(), atol=1e-3)
    assert torch.allclose(content.std(), matched.std(), atol=1e-3)


def test_recolored_the_luminance_is_the_images_and_the_color_is_the_contents() -> None:
    image, content = _noise(9, 9) * 0.2 + 0.4, _noise(9, 9, 1) * 0.2 + 0.4
    mixed = pixels.with_color_of(image, content)

    assert torch.allclose(pixels.luminance(image), pixels.luminance(mixed), atol=1e-5)
    assert torch.allclose(content - pixels.luminance(content), mixed - pixels.luminance(mixed), atol=1e-5)
