"""Read the pixels of a PNG to 8 bits: transparency and color chunks at every depth and color type.

Pillow drops the low byte of 16-bit color before it looks for the transparent color. It compares a
gray of 2 or 4 bits with a sample that it has scaled. It ignores gAMA, cHRM and cICP.
"""

import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

from PIL import Image, ImageChops

from core.images import color, png

_GRAY, _RGB, _PALETTE, _GRAY_ALPHA, _RGB_ALPHA = 0, 2, 3, 4, 6
# How Pillow's decoder unpacks the high and the low bytes of 16-bit samples: (mode, raw mode) pairs.
# Gray comes as LA, and gray with alpha as RGBA, because both bytes of a sample fit in there.
_WIDE = {
    _GRAY: (("LA", "LA"),),
    _RGB: (("RGB", "RGB;16B"), ("RGB", "RGB;16L")),
    _GRAY_ALPHA: (("RGBA", "RGBA"),),
    _RGB_ALPHA: (("RGBA", "RGBA;16B"), ("RGBA", "RGBA;16L")),
}
_BAND_ROWS = 256  # converted at a time, because a wide sample takes four bytes in Pillow


class Pixels(NamedTuple):
    """What a file holds, as far as it is decoded."""

    color: Image.Image
    alpha: Image.Image | None  # mode L; None: opaque
    profile: bytes | None = None  # the ICC profile of `color`
    # What remains to be converted beside the profile.
    space: color.ColorSpace = color.SRGB


def read(open_file: Callable[[], Image.Image], data: bytes) -> Pixels:
    """Return the pixels; color in mode L or RGB, with the transfer function of sRGB.

    open_file: opens the file anew, unloaded. Raises what Pillow raises.
    """
    header, image = png.read_header(data), open_file()
    profile = image.info.get("icc_profile")
    # The first of cICP, iCCP, sRGB, and gAMA with cHRM counts: PNG, third edition, 4.3.
    if (space := _read_code_points(header)) is not None:
        profile = None
    elif profile is None and header.srgb is None:
        space = _read_gamma(header)
    space = space or color.SRGB
    if header.depth == 16:
        is_converted = profile is not None or space != color.SRGB
        pixels = _read_wide(open_file, header, space, exactly=is_converted)
    else:
        pixels = _read_narrow(image, header)
        pixels = pixels._replace(color=color.apply_transfer(pixels.color, space))
    space = space._replace(transfer=None)
    return pixels._replace(profile=profile, space=space)


def _read_code_points(header: png.Header) -> color.ColorSpace | None:
    if header.code_points is None or len(header.code_points) != 4:
        return None
    primaries, transfer, matrix, full_range = header.code_points
    if matrix:  # PNG allows no other than 0
        return None
    return color.from_code_points(primaries, transfer, full_range=bool(full_range))


def _read_gamma(header: png.Header) -> color.ColorSpace:
    gamma: float | None = None
    chromaticities: color.Chromaticities | None = None
    if header.gamma is not None and len(header.gamma) == 4:
        gamma = int.from_bytes(header.gamma) / 100_000
    if header.chromaticities is not None and len(header.chromaticities) == 32:
        a, b, c, d, e, f, g, h = (
            value / 100_000 for value in struct.unpack(">8I", header.chromaticities)
        )
        chromaticities = (a, b, c, d, e, f, g, h)
    return color.from_gamma(gamma, chromaticities)


def _read_narrow(image: Image.Image, header: png.Header) -> Pixels:
    """Read samples of at most 8 bits."""
    image.load()
    if header.color_type == _PALETTE:
        if header.transparent is None:
            return Pixels(image.convert("RGB"), None)
        image = image.convert("RGBA")
    if image.mode in ("LA", "RGBA"):
        return Pixels(image.convert(image.mode[:-1]), image.getchannel("A"))
    image = image.convert("L") if image.mode == "1" else image
    channels = image.split()
    key = _read_transparent_color(header, len(channels))
    if key is None:
        return Pixels(image, None)
    # Only the low bits of the stored color count. Pillow has scaled the samples to 0 … 255.
    highest = 2**header.depth - 1
    scaled = [(value & highest) * 255 // highest for value in key]
    return Pixels(image, _mask_color(channels, scaled))


def _read_wide(
    open_file: Callable[[], Image.Image],
    header: png.Header,
    space: color.ColorSpace,
    *,
    exactly: bool,
) -> Pixels:
    """Read samples of 16 bits.

    exactly: round them to 8 bits, instead of dropping the low bytes, which cost another decoding.
    """
    kinds = _WIDE[header.color_type]
    has_key = header.transparent is not None and header.color_type in (_GRAY, _RGB)
    if not (exactly or has_key):
        kinds = kinds[:1]
    planes = [plane for kind in kinds for plane in _unpack(open_file(), *kind)]
    if header.color_type in (_GRAY, _GRAY_ALPHA):  # the bytes of a sample are neighbors
        high, low = planes[::2], planes[1::2]
    else:
        half = len(planes) // len(kinds)
        high, low = planes[:half], planes[half:]
    alpha = None
    if header.color_type in (_GRAY_ALPHA, _RGB_ALPHA):
        alpha, high, low = high[-1], high[:-1], low[:-1]
    elif (key := _read_transparent_color(header, len(high))) is not None:
        pairs = [divmod(value, 256) for value in key]
        alpha = _mask_color([*high, *low], [*(a for a, _ in pairs), *(b for _, b in pairs)])
    if exactly:
        table = color.build_table(space.transfer or color.decode_srgb, 65536)
        high = [_look_up(*plane, table) for plane in zip(high, low, strict=True)]
    return Pixels(high[0] if len(high) == 1 else Image.merge("RGB", high), alpha)


def _unpack(image: Image.Image, mode: str, raw_mode: str) -> Sequence[Image.Image]:
    """Return the channels of an unloaded image that Pillow unpacks in another way than usual."""
    image._mode = mode
    image.tile = [tile._replace(args=raw_mode) for tile in image.tile]  # type: ignore[attr-defined]
    image.load()
    return image.split()


def _read_transparent_color(header: png.Header, channels: int) -> Sequence[int] | None:
    """Return the samples of tRNS."""
    if header.transparent is None or len(header.transparent) < 2 * channels:
        return None
    return struct.unpack_from(f">{channels}H", header.transparent)


def _mask_color(planes: Sequence[Image.Image], key: Sequence[int]) -> Image.Image:
    """Return the alpha that is 0 where each plane has its value of `key`, and 255 elsewhere."""
    alpha: Image.Image | None = None
    for plane, value in zip(planes, key, strict=True):
        differs = plane.point([0 if level == value else 255 for level in range(256)])
        alpha = differs if alpha is None else ImageChops.lighter(alpha, differs)
    assert alpha is not None, "there is at least one plane"
    return alpha


def _look_up(high: Image.Image, low: Image.Image, table: list[int]) -> Image.Image:
    """Return the 8-bit plane of the table's values for 16-bit samples."""
    found = Image.new("L", high.size)
    for top in range(0, high.height, _BAND_ROWS):
        box = (0, top, high.width, min(high.height, top + _BAND_ROWS))
        samples = Image.merge("LA", (low.crop(box), high.crop(box)))
        wide = Image.frombytes("I;16", samples.size, samples.tobytes())
        found.paste(wide.convert("I").point(table, "L"), box)
    return found
