"""Colors are converted to sRGB as littleCMS converts them in full precision."""

import io
import random
from typing import Any

import icc_profiles
import pytest
from PIL import Image, ImageCms

from core.images import codec, color

INKS = icc_profiles.cmyk(
    lambda c, m, y, k: tuple(int((250 - 220 * ink) * (1 - 0.9 * k)) for ink in (c, m, y))  # type: ignore[return-value]
)


def _saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _convert_exactly(picture: Image.Image, profile: bytes) -> Image.Image:
    converted = ImageCms.profileToProfile(
        picture,
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
        outputMode="RGB",
        flags=ImageCms.Flags.NOOPTIMIZE,
    )
    assert converted is not None
    return converted


def _largest_difference(first: Image.Image, second: Image.Image) -> int:
    return max(abs(a - b) for a, b in zip(first.tobytes(), second.tobytes(), strict=True))


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk_with_a_profile_is_converted_exactly(kind: str) -> None:
    inks = Image.frombytes("CMYK", (64, 64), random.Random(1).randbytes(4 * 64 * 64))
    options = {"quality": 95} if kind == "JPEG" else {}
    data = _saved(inks, kind, icc_profile=INKS, **options)
    with Image.open(io.BytesIO(data)) as stored:
        expected = _convert_exactly(stored, INKS)

    assert _largest_difference(codec.decode(data), expected) <= 1


def test_large_cmyk_is_converted_by_a_finer_table_than_the_usual_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Exactly, 40 megapixels would take 20 seconds. The usual table is wrong by up to 3 levels."""
    monkeypatch.setattr(color, "_EXACT_PIXELS", 0)
    inks = Image.frombytes("CMYK", (64, 64), random.Random(1).randbytes(4 * 64 * 64))
    approximate, exact = color.convert_profile(inks, INKS), _convert_exactly(inks, INKS)

    assert approximate is not None
    assert _largest_difference(approximate, exact) <= 1


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_gray_with_alpha_uses_its_gray_profile(kind: str) -> None:
    profile = icc_profiles.gray(1.0)
    mode = "RGBA" if kind == "WEBP" else "LA"  # WebP has no gray
    picture = Image.new("LA", (40, 40), (128, 255)).convert(mode)
    picture.putpixel((0, 0), (0,) * len(picture.getbands()))
    decoded = codec.decode(_saved(picture, kind, icc_profile=profile), "white")

    # A gray profile does not fit RGB, so there it is ignored. Linear 128 is 188 in sRGB.
    assert decoded.getpixel((20, 20)) == ((128,) * 3 if kind == "WEBP" else (188,) * 3)


def test_a_profile_of_another_mode_is_ignored() -> None:
    picture = Image.new("RGB", (40, 40), (128, 90, 20))
    for profile in (icc_profiles.gray(1.0), INKS):
        data = _saved(picture, "PNG", icc_profile=profile)
        assert codec.decode(data).getpixel((5, 5)) == (128, 90, 20)


@pytest.mark.parametrize(
    ("transfer", "sample", "expected"),
    [
        (8, 128, 188),  # linear
        (4, 128, 129),  # a power of 2.2
        (13, 77, 77),  # sRGB itself
        (1, 77, 77),  # of video; browsers show it as sRGB
        # ITU-R BT.2408, table 1: white of 203 cd/m², and a gray card of 26 cd/m².
        (16, 148, 255),
        (16, 97, 100),
        (18, 191, 255),
        (18, 97, 100),
        (99, 77, 77),  # unknown
    ],
)
def test_transfer_functions_have_their_published_values(
    transfer: int, sample: int, expected: int
) -> None:
    space = color.from_code_points(1, transfer)
    picture = color.apply_transfer(Image.new("L", (1, 1), sample), space)

    assert abs(int(picture.getpixel((0, 0))) - expected) <= 2  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "chromaticities",
    [
        (0.0,) * 8,
        (0.3, 0.3) * 4,
        (0.3127, 0.329, 0.64, 0.0, 0.3, 0.6, 0.15, 0.06),
        (42949.0,) * 8,
    ],
)
def test_primaries_that_span_nothing_are_ignored(chromaticities: Any) -> None:
    picture = Image.new("RGB", (4, 4), (9, 120, 200))
    space = color.from_gamma(None, chromaticities)

    assert color.convert_primaries(picture, space).getpixel((0, 0)) == (9, 120, 200)
