"""PNG: each depth and color type, with transparency and color chunks, against other decoders.

pypng reads the samples. The reference then applies the specification to them, in floating point;
littleCMS converts ICC profiles.
"""

import io
import random
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import icc_profiles
import png as pypng
import pytest
from PIL import Image, ImageCms

from core.images import codec

SIDE = 32
# Levels: primaries and composition round once each. Only 8 bits go into the primaries, and a color
# at the edge of sRGB is a small difference there.
TOLERANCE, PRIMARIES_TOLERANCE = 2, 4
BACKGROUND = (51, 102, 153)
Color = tuple[float, ...]

TYPES = {
    "gray": (0, (1, 2, 4, 8, 16)),
    "RGB": (2, (8, 16)),
    "palette": (3, (1, 2, 4, 8)),
    "gray with alpha": (4, (8, 16)),
    "RGB with alpha": (6, (8, 16)),
}
P3 = (0.3127, 0.329, 0.68, 0.32, 0.265, 0.69, 0.15, 0.06)
# Display P3 to sRGB, in linear light, as published: CSS Color 4, section 10.
P3_TO_SRGB = (
    (1.2249401763, -0.2249401763, 0.0),
    (-0.0420569547, 1.0420569547, 0.0),
    (-0.0196375546, -0.0786360456, 1.0982736002),
)


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _gama(gamma: float) -> bytes:
    return _chunk(b"gAMA", struct.pack(">I", round(gamma * 100_000)))


def _iccp(profile: bytes) -> bytes:
    return _chunk(b"iCCP", b"p\0\0" + zlib.compress(profile))


CHRM = _chunk(b"cHRM", struct.pack(">8I", *(round(value * 100_000) for value in P3)))
SRGB_CHUNK = _chunk(b"sRGB", b"\0")


def _encode(light: float) -> float:
    light = min(1.0, max(0.0, light))
    return 12.92 * light if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055


def _decode(sample: float) -> float:
    return sample / 12.92 if sample <= 0.04045 else ((sample + 0.055) / 1.055) ** 2.4


def _power(exponent: float) -> Callable[[Color], Color]:
    return lambda color: tuple(_encode(sample**exponent) for sample in color)


def _from_p3(color: Color) -> Color:
    light = [_decode(sample) for sample in (color * 3 if len(color) == 1 else color)]
    return tuple(_encode(sum(a * b for a, b in zip(row, light, strict=True))) for row in P3_TO_SRGB)


def _narrow(color: Color) -> Color:
    return tuple(min(1.0, max(0.0, (sample * 255 - 16) / 219)) for sample in color)


def _by_profile(profile: bytes) -> Callable[[Color], Color]:
    """By littleCMS without its shortcuts."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))

    def convert(color: Color) -> Color:
        mode = "L" if len(color) == 1 else "RGB"
        pixel = Image.new(mode, (1, 1), tuple(round(255 * sample) for sample in color))
        converted = ImageCms.profileToProfile(
            pixel,
            source,
            ImageCms.createProfile("sRGB"),
            outputMode="RGB",
            flags=ImageCms.Flags.NOOPTIMIZE,
        )
        assert converted is not None
        return tuple(value / 255 for value in _pixel(converted, 0, 0))

    return convert


def _pixel(picture: Image.Image, x: int, y: int) -> tuple[int, ...]:
    value: Any = picture.getpixel((x, y))
    return value if isinstance(value, tuple) else (value,)


GRAY_PROFILE, RGB_PROFILE = icc_profiles.gray(1.8), icc_profiles.exchanged_srgb()

# (chunks before the pixels, what they mean, the color types that they are for; None: all)
TAGS: dict[str, tuple[bytes, Callable[[Color], Color], Sequence[str] | None]] = {
    "none": (b"", lambda color: color, None),
    "gAMA 1": (_gama(1.0), _power(1.0), None),
    "gAMA 1/1.8": (_gama(1 / 1.8), _power(1.8), None),
    "gAMA 1/2.2 is sRGB": (_gama(0.45455), lambda color: color, None),
    "gAMA 0 is nonsense": (_gama(0), lambda color: color, None),
    "cHRM": (CHRM, _from_p3, ("RGB", "palette", "RGB with alpha")),
    "cHRM and gray": (CHRM, lambda color: color, ("gray", "gray with alpha")),
    "sRGB before gAMA and cHRM": (_gama(1.0) + CHRM + SRGB_CHUNK, lambda color: color, None),
    "gray profile": (_iccp(GRAY_PROFILE), _by_profile(GRAY_PROFILE), ("gray", "gray with alpha")),
    "RGB profile before gAMA": (
        _iccp(RGB_PROFILE) + _gama(1.0),
        _by_profile(RGB_PROFILE),
        ("RGB", "palette", "RGB with alpha"),
    ),
    "cICP of Display P3 before a profile": (
        _chunk(b"cICP", bytes([12, 13, 0, 1])) + _iccp(RGB_PROFILE),
        _from_p3,
        ("RGB", "palette", "RGB with alpha"),
    ),
    "cICP, linear": (_chunk(b"cICP", bytes([1, 8, 0, 1])), _power(1.0), None),
    "cICP, narrow range": (_chunk(b"cICP", bytes([1, 13, 0, 0])), _narrow, None),
}


@cache
def _file(kind: str, depth: int, transparent: bool, interlaced: bool) -> bytes:
    """Return a PNG by pypng. The transparent color differs from others in its last bit."""
    random_ = random.Random(f"{kind} {depth}")
    color_type, _ = TYPES[kind]
    highest = 2**depth - 1
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color_type]
    options: dict[str, Any] = {}
    key = tuple(random_.randrange(highest + 1) for _ in range(channels))
    if color_type == 3:
        colors = [tuple(random_.randbytes(3)) for _ in range(highest + 1)]
        if transparent:  # fewer entries than colors: the others are opaque
            colors[:2] = [(*color, alpha) for color, alpha in zip(colors, (0, 128), strict=False)]
        options["palette"] = colors
    else:
        options |= {"greyscale": color_type in (0, 4), "alpha": color_type in (4, 6)}
        if transparent:
            options["transparent"] = key[0] if channels == 1 else key
    near = (key[0] ^ 1, *key[1:])
    rows = [
        [
            sample
            for _ in range(SIDE)
            for sample in random_.choice(
                (key, near, tuple(random_.randrange(highest + 1) for _ in range(channels)))
            )
        ]
        for _ in range(SIDE)
    ]
    buffer = io.BytesIO()
    writer = pypng.Writer(SIDE, SIDE, bitdepth=depth, interlace=interlaced, **options)
    writer.write(buffer, rows)
    return buffer.getvalue()


def _expect(data: bytes, meaning: Callable[[Color], Color]) -> list[tuple[Color, float]]:
    """Return (color, alpha) of each pixel, in [0, 1], from the samples that pypng reads."""
    reader = pypng.Reader(bytes=data)
    width, _, rows, info = reader.read()
    channels, highest = info["planes"], 2 ** info["bitdepth"] - 1
    palette = info.get("palette")
    key = info.get("transparent")
    convert = cache(meaning)
    found = []
    for row in rows:
        for x in range(width):
            sample = tuple(row[x * channels : (x + 1) * channels])
            alpha = 1.0
            if palette:
                entry = palette[sample[0]]
                color, alpha = entry[:3], entry[3] / 255 if len(entry) == 4 else 1.0
                sample, scale = color, 255
            else:
                scale = highest
                if info["alpha"]:
                    sample, alpha = sample[:-1], sample[-1] / highest
                elif key is not None and sample == tuple(key):
                    alpha = 0.0
            color = convert(tuple(value / scale for value in sample))
            found.append((color * 3 if len(color) == 1 else color, alpha))
    return found


def _cases() -> list[Any]:
    cases = []
    for kind, (color_type, depths) in TYPES.items():
        for depth in depths:
            for transparent in (False, True) if color_type in (0, 2, 3) else (False,):
                for tag, (_, _, kinds) in TAGS.items():
                    if kinds is None or kind in kinds:
                        cases.append((kind, depth, transparent, tag, False))
                cases.append((kind, depth, transparent, "none", True))
    return cases


@pytest.mark.parametrize(
    ("kind", "depth", "transparent", "tag", "interlaced"),
    [
        pytest.param(
            *case,
            id=f"{case[0]} {case[1]} bit{', tRNS' * case[2]}, {case[3]}{', interlaced' * case[4]}",
        )
        for case in _cases()
    ],
)
def test_every_pixel_is_what_the_specification_says(
    kind: str, depth: int, transparent: bool, tag: str, interlaced: bool
) -> None:
    data = _file(kind, depth, transparent, interlaced)
    chunks, meaning, _ = TAGS[tag]
    expected = _expect(data, meaning)
    tolerance = PRIMARIES_TOLERANCE if depth == 16 and meaning is _from_p3 else TOLERANCE
    decoded = codec.decode(data[:33] + chunks + data[33:], "#336699", keep_alpha=True)
    mask = codec.decode(data[:33] + chunks + data[33:], mask=True).convert("L")

    has_alpha = any(alpha < 1 for _, alpha in expected)
    assert decoded.mode == ("RGBA" if has_alpha else "RGB")
    for index, (color, alpha) in enumerate(expected):
        flat = [
            255 * value * alpha + level * (1 - alpha)
            for value, level in zip(color, BACKGROUND, strict=True)
        ]
        wanted = [*flat, 255 * alpha][: len(decoded.getbands())]
        x, y = index % SIDE, index // SIDE
        assert _differ(wanted, _pixel(decoded, x, y)) <= tolerance, (
            x,
            y,
            wanted,
            _pixel(decoded, x, y),
        )
        # A mask is composited on black: what is transparent selects nothing.
        gray = sum(a * b for a, b in zip(color, (0.299, 0.587, 0.114), strict=True))
        assert _differ([255 * gray * alpha], _pixel(mask, x, y)) <= tolerance, (x, y)


def _differ(wanted: Sequence[float], got: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(wanted, got, strict=True))


def test_the_largest_file_of_16_bits_stays_within_the_limits(tmp_path: Any) -> None:
    """Linear light needs both bytes of each sample."""
    from core.images.decoder import inspect_upload

    side, row = 6300, b"\0" + b"\x40\x80" * 4 * 6300
    deflater = zlib.compressobj(1)
    body = b"".join([*(deflater.compress(row) for _ in range(side)), deflater.flush()])
    head = struct.pack(">IIBBBBB", side, side, 16, 6, 0, 0, 0)
    chunks = _chunk(b"IHDR", head) + _gama(1.0) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")
    (tmp_path / "upload").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)

    assert inspect_upload(tmp_path / "upload").size == (side, side)
