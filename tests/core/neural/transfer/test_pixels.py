"""Conversion between pictures and image tensors, and color transfer."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from core.neural.transfer import pixels


def _noise(height: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def test_converting_a_picture_to_an_image_and_back_keeps_every_bit() -> None:
    picture = Image.fromarray(np.arange(5 * 7 * 3, dtype=np.uint8).reshape(5, 7, 3) * 2)

    image = pixels.to_image(picture)

    assert tuple(image.shape) == (1, 3, 5, 7)
    assert pixels.to_picture(image).tobytes() == picture.tobytes()


def test_a_size_is_width_and_height() -> None:
    picture = Image.new("RGB", (40, 30))

    assert tuple(pixels.to_image(picture, (20, 15)).shape) == (1, 3, 15, 20)
    assert tuple(pixels.enlarge(pixels.to_image(picture), (80, 60)).shape) == (1, 3, 60, 80)


def test_an_enlarged_wave_is_not_repeated_at_the_highest_frequencies() -> None:
    """Interpolation repeats a wave of frequency f at 0.5 - f: with a poor kernel as a weave."""
    across = torch.arange(256)
    wave = 0.5 + 0.4 * torch.sin(2 * torch.pi * across / 16)  # a period of 32 px when enlarged
    enlarged = pixels.enlarge(wave.expand(1, 3, 256, 256), (512, 512))[0, 0, 256, 64:448]
    power = torch.fft.rfft((enlarged - 0.5) * torch.hann_window(384)).abs().square()
    frequency = torch.fft.rfftfreq(384)
    repeated = power[(frequency - (0.5 - 1 / 32)).abs() < 0.01].sum()
    assert repeated < 1e-5 * power[(frequency - 1 / 32).abs() < 0.01].sum()


def test_an_enlarged_image_stays_inside_0_and_1() -> None:
    edges = (_noise(8, 8) > 0.5).float()
    larger = pixels.enlarge(edges, (32, 32))

    assert float(larger.min()) >= 0
    assert float(larger.max()) <= 1


def test_grain_gives_a_smooth_part_the_texture_of_the_painting_and_leaves_the_rest() -> None:
    texture = pixels.fine_texture(0.5 + 0.1 * (_noise(128, 128) - 0.5))
    image = torch.full((1, 3, 128, 256), 0.5)
    image[..., 128:] += 0.4 * (_noise(128, 128, 1) - 0.5)
    grainy = pixels.add_grain(image, torch.full((1, 1, 128, 256), texture), 3)
    grain = grainy[..., :96] - 0.5

    assert 0.5 * texture < pixels.fine_texture(grainy[..., :96]) < 1.1 * texture
    assert torch.equal(grain[:, 0], grain[:, 2])
    assert torch.equal(grainy[..., 160:], image[..., 160:])
    power = torch.fft.rfft(grain[0, 0]).abs().square().mean(0)
    assert power[-4:].mean() < 0.05 * power.max()
    assert torch.equal(pixels.add_grain(image, torch.zeros(1, 1, 128, 256), 3), image)


def test_a_painting_has_the_texture_of_its_smooth_parts() -> None:
    """A tenth of it may be smoother. Grain in the paper around an ink drawing would be dirt."""
    painting = torch.full((1, 3, 160, 160), 0.5)
    painting[..., :96, :] += 0.4 * (_noise(96, 160) - 0.5)
    mostly_smooth = pixels.fine_texture(painting)
    painting[..., :152, :] += 0.1 * (_noise(152, 160, 1) - 0.5)

    assert mostly_smooth < 1e-9
    assert pixels.fine_texture(painting) > 1e-5


def test_luminance_is_gray_and_leaves_a_gray_image_unchanged() -> None:
    gray = _noise(6, 6)[:, :1].expand(-1, 3, -1, -1)
    light = pixels.luminance(_noise(6, 6))

    assert torch.equal(light[:, 0], light[:, 2])
    assert torch.allclose(pixels.luminance(gray), gray, atol=1e-6)


def test_matched_luminance_has_the_contents_mean_and_deviation() -> None:
    style, content = (
        pixels.luminance(_noise(40, 40)) * 0.2,
        pixels.luminance(_noise(40, 40, 1)) * 0.3 + 0.3,
    )
    matched = pixels.match_luminance(style, content)

    assert torch.allclose(matched.mean(), content.mean(), atol=1e-3)
    assert torch.allclose(matched.std(), content.std(), atol=1e-3)


def test_restored_color_keeps_the_images_luminance_and_takes_the_contents_color() -> None:
    image, content = _noise(9, 9) * 0.2 + 0.4, _noise(9, 9, 1) * 0.2 + 0.4
    mixed = pixels.restore_color(image, content)

    assert torch.allclose(pixels.luminance(mixed), pixels.luminance(image), atol=1e-5)
    assert torch.allclose(
        mixed - pixels.luminance(mixed), content - pixels.luminance(content), atol=1e-5
    )


def test_matched_colors_have_the_contents_mean_and_covariance() -> None:
    style, content = _noise(40, 40) ** 2, _noise(30, 50, 1) * 0.3 + 0.3
    content[:, 0] = content[:, 1] * 0.5 + 0.1  # two correlated channels
    matched = pixels.match_color(style, content)
    (mean, covariance), (expected_mean, expected_covariance) = (
        (image[0].flatten(1).mean(1), torch.cov(image[0].flatten(1)))
        for image in (matched, content)
    )

    assert torch.allclose(mean, expected_mean, atol=0.02)
    assert torch.allclose(covariance, expected_covariance, atol=0.003)


def test_colors_that_match_already_stay_unchanged() -> None:
    content = _noise(40, 40) * 0.5 + 0.2

    assert torch.allclose(pixels.match_color(content, content), content, atol=1e-3)


def _octave_deviations(image: Tensor) -> list[float]:
    octaves, _ = pixels._split_octaves(pixels.luminance(image))
    return [float(octave.std()) for octave in octaves]


def test_matched_detail_has_the_paintings_colors_and_contrast_and_the_images_shapes() -> None:
    photo = functional.avg_pool2d(_noise(72, 88), 9, 1)
    painting = 0.8 * _noise(48, 48, 1) + functional.avg_pool2d(_noise(72, 72, 2), 25, 1)
    painting *= torch.tensor([0.9, 0.6, 0.2]).view(1, 3, 1, 1)
    recolored, matched = (
        match(photo, painting) for match in (pixels.match_color, pixels.match_detail)
    )

    assert torch.allclose(matched.mean((2, 3)), painting.mean((2, 3)), atol=0.04)
    before, wanted, after = map(_octave_deviations, (recolored, painting, matched))
    assert all(abs(c - b) < abs(a - b) for a, b, c in zip(before, wanted, after, strict=True))
    gray = torch.stack([pixels.luminance(one)[0, 0].flatten() for one in (photo, matched)])
    assert torch.corrcoef(gray)[0, 1] > 0.8


def test_matched_detail_does_not_show_the_noise_of_a_plain_picture() -> None:
    plain = 0.5 + (_noise(64, 64) - 0.5) / 128
    matched = pixels.match_detail(plain, _noise(64, 64, 1))

    assert float(matched.std((2, 3)).max()) < 6 * float(plain.std((2, 3)).max())


def test_a_matched_histogram_is_the_contents_in_every_channel() -> None:
    style, content = _noise(40, 40) ** 2, _noise(30, 50, 1) ** 3
    matched = pixels.match_histogram(style, content)

    for level in (0.1, 0.5, 0.9):
        expected, actual = (
            torch.quantile(image[0].flatten(1), level, dim=1) for image in (content, matched)
        )
        assert torch.allclose(actual, expected, atol=0.01)


def test_enlarging_a_seamless_picture_keeps_it_seamless() -> None:
    """Rolling first or enlarging first gives the same."""
    image = _noise(32, 48)
    larger = pixels.enlarge(image, (96, 64), seamless=True)

    assert torch.allclose(
        larger.roll((32, 48), (2, 3)),
        pixels.enlarge(image.roll((16, 24), (2, 3)), (96, 64), seamless=True),
        atol=1e-5,
    )
    assert not torch.allclose(larger, pixels.enlarge(image, (96, 64)), atol=1e-2)


def test_a_guide_is_white_where_the_mask_is() -> None:
    mask = Image.new("L", (40, 20), 0)
    mask.paste(255, (0, 0, 20, 20))
    guide = pixels.to_guide(mask, (20, 10))

    assert tuple(guide.shape) == (10, 20)
    assert (float(guide[5, 2]), float(guide[5, 17])) == (1, 0)


def test_what_a_mask_hides_mirrors_what_it_shows() -> None:
    image, mask = _noise(12, 16), torch.zeros(12, 16)
    mask[4:8, 5:11] = 1
    filled = pixels.fill_outside(image, mask)

    assert torch.equal(filled[..., 4:8, 5:11], image[..., 4:8, 5:11])
    assert torch.equal(filled[..., 4:8, 2:5], image[..., 4:8, 6:9].flip(3))
    assert torch.equal(filled[..., 2:4, 5:11], image[..., 5:7, 5:11].flip(2))
    assert torch.equal(filled[..., 8, 11], image[..., 6, 9])  # a corner, by its row and column
    assert torch.equal(filled[..., 11, 7], image[..., 7, 7])  # beyond it the nearest one
    assert torch.equal(pixels.fill_outside(image, torch.ones(12, 16)), image)


def test_a_mask_of_one_pixel_fills_the_image_with_it() -> None:
    image, mask = _noise(5, 7), torch.zeros(5, 7)
    mask[1, 6] = 0.2

    filled = pixels.fill_outside(image, mask)

    assert torch.equal(filled, image[..., 1:2, 6:7].expand_as(image))


def test_the_detail_of_the_photo_that_a_smaller_image_lost_is_added_again() -> None:
    photo = 0.3 + 0.4 * _noise(64, 48)
    small = torch.nn.functional.interpolate(photo, (32, 24), mode="bicubic", antialias=True)
    enlarged = pixels.enlarge(small, (48, 64))

    restored = pixels.add_detail(enlarged, photo, (32, 24))

    assert (enlarged - photo).abs().mean() > 0.05
    assert torch.allclose(restored, photo, atol=1e-5)
    assert pixels.add_detail(enlarged * 9, photo, (32, 24)).max() <= 1
