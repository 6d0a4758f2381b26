"""Convert pixels to sRGB: by an ICC profile, or by a transfer function and primaries.

littleCMS, through Pillow, computes all that mixes channels. A transfer function alone is a table.
"""

import io
import struct
from collections.abc import Callable
from functools import lru_cache, partial
from typing import NamedTuple

from PIL import Image, ImageCms

Matrix = tuple[tuple[float, float, float], ...]
# The CIE x and y of white, red, green and blue.
Chromaticities = tuple[float, float, float, float, float, float, float, float]

_SRGB: Chromaticities = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06)
_SAME_CHROMATICITY = 0.002  # encoders round differently
# Old encoders state 1/2.2 for sRGB. libpng tolerates 5 % as well.
_SRGB_GAMMA, _SAME_GAMMA = 1 / 2.2, 0.05
_PLAUSIBLE_GAMMA = (0.1, 10.0)
# Pixels of CMYK that are converted without a precalculated table. Each takes half a microsecond.
_EXACT_PIXELS = 4_000_000
_REFERENCE_WHITE_NITS = 203  # of HDR: ITU-R BT.2408

# ITU-T H.273, table 2, by ColourPrimaries. Others count as those of sRGB.
_PRIMARIES: dict[int, Chromaticities] = {
    4: (0.310, 0.316, 0.67, 0.33, 0.21, 0.71, 0.14, 0.08),
    5: (0.3127, 0.329, 0.64, 0.33, 0.29, 0.60, 0.15, 0.06),
    6: (0.3127, 0.329, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    7: (0.3127, 0.329, 0.630, 0.340, 0.310, 0.595, 0.155, 0.070),
    9: (0.3127, 0.329, 0.708, 0.292, 0.170, 0.797, 0.131, 0.046),
    11: (0.314, 0.351, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
    12: (0.3127, 0.329, 0.680, 0.320, 0.265, 0.690, 0.150, 0.060),
}
_BRADFORD: Matrix = (
    (0.8951, 0.2664, -0.1614),
    (-0.7502, 1.7135, 0.0367),
    (0.0389, -0.0685, 1.0296),
)
_D50 = (0.9642, 1.0, 0.8249)


Transfer = Callable[[float], float]
"""From a sample in [0, 1] to linear light, where 1 is white."""


class ColorSpace(NamedTuple):
    """What a file states about its colors without an ICC profile. None: as sRGB."""

    transfer: Transfer | None = None
    chromaticities: Chromaticities | None = None


SRGB = ColorSpace()


def from_gamma(gamma: float | None, chromaticities: Chromaticities | None) -> ColorSpace:
    """Return the color space of PNG's gAMA (a sample is light to the power `gamma`) and cHRM.

    Values that make no sense are ignored.
    """
    transfer = None
    is_plausible = gamma is not None and _PLAUSIBLE_GAMMA[0] <= gamma <= _PLAUSIBLE_GAMMA[1]
    if gamma is not None and is_plausible and abs(gamma / _SRGB_GAMMA - 1) > _SAME_GAMMA:
        transfer = partial(_decode_power, 1 / gamma)
    return ColorSpace(transfer, _unless_srgb(chromaticities))


def from_code_points(primaries: int, transfer: int, *, full_range: bool = True) -> ColorSpace:
    """Return the color space that cICP or nclx names by code points of ITU-T H.273.

    HDR (PQ, HLG) is clipped at its reference white. The curve of video (BT.709) counts as sRGB, as
    in browsers. Unknown code points count as sRGB.
    """
    function = _TRANSFERS.get(transfer)
    if not full_range:
        function = partial(_decode_narrow, function or decode_srgb)
    return ColorSpace(function, _unless_srgb(_PRIMARIES.get(primaries)))


def _unless_srgb(chromaticities: Chromaticities | None) -> Chromaticities | None:
    if chromaticities is None:
        return None
    differences = (abs(a - b) for a, b in zip(chromaticities, _SRGB, strict=True))
    return chromaticities if max(differences) > _SAME_CHROMATICITY else None


def build_table(transfer: Transfer, levels: int) -> list[int]:
    """Return the 8-bit sRGB value of each sample below `levels`, 256 or 65536."""
    samples = (sample / (levels - 1) for sample in range(levels))
    return [round(255 * _encode_srgb(min(1.0, transfer(sample)))) for sample in samples]


def apply_transfer(image: Image.Image, space: ColorSpace) -> Image.Image:
    """Return an 8-bit image, of mode L or RGB, with the transfer function of sRGB."""
    if space.transfer is None:
        return image
    return image.point(build_table(space.transfer, 256) * len(image.getbands()))


def convert_primaries(image: Image.Image, space: ColorSpace) -> Image.Image:
    """Return an RGB image, whose transfer function is that of sRGB, with the primaries of sRGB."""
    if space.chromaticities is None:
        return image
    profile = _build_profile(space.chromaticities)
    converted = None if profile is None else convert_profile(image, profile)
    return image if converted is None else converted


def convert_profile(image: Image.Image, profile: bytes) -> Image.Image | None:
    """Return the image in sRGB, mode RGB; None if the profile is unusable for its mode.

    Raises what Pillow raises on a hostile file.
    """
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        # Pillow would pass a gray profile three channels, and an RGB profile one.
        if space == "RGB" and image.mode in ("1", "L"):
            image = image.convert("RGB")
        if image.mode != {"GRAY": "L", "Lab": "LAB"}.get(space, space):
            return None
        return ImageCms.profileToProfile(
            image,
            source,
            ImageCms.createProfile("sRGB"),
            outputMode="RGB",
            flags=_choose_flags(image),
        )
    except ImageCms.PyCMSError:
        return None


def _choose_flags(image: Image.Image) -> ImageCms.Flags:
    """By default, littleCMS resamples a table of four channels to 17 points a side."""
    if image.mode != "CMYK":
        return ImageCms.Flags.NONE
    if image.width * image.height <= _EXACT_PIXELS:
        return ImageCms.Flags.NOOPTIMIZE
    return ImageCms.Flags.GRIDPOINTS(33)


def convert_lab(image: Image.Image) -> Image.Image:
    """Return an image of mode LAB in sRGB."""
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    converted = ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB")
    assert converted is not None, "it is not done in place"
    return converted


# ---------------------------------------------------------------------- transfer functions


def _decode_power(exponent: float, sample: float) -> float:
    return float(sample**exponent)


def _decode_narrow(decode: Transfer, sample: float) -> float:
    """Decode a sample whose black is 16 and whose white is 235, of 255."""
    return decode(min(1.0, max(0.0, (sample * 255 - 16) / 219)))


def decode_srgb(sample: float) -> float:
    """The transfer function of sRGB."""
    return float(sample / 12.92 if sample <= 0.04045 else ((sample + 0.055) / 1.055) ** 2.4)


def _encode_srgb(light: float) -> float:
    return float(12.92 * light if light <= 0.0031308 else 1.055 * light ** (1 / 2.4) - 0.055)


def _decode_pq(sample: float) -> float:
    """SMPTE ST 2084."""
    root = sample ** (1 / 78.84375)
    light = max(0.0, root - 0.8359375) / (18.8515625 - 18.6875 * root)
    return float(10_000 * light ** (1 / 0.1593017578125) / _REFERENCE_WHITE_NITS)


def _decode_hlg(sample: float) -> float:
    """ITU-R BT.2100, on a display of 1000 cd/m², whose system gamma is 1.2."""
    a, b, c = 0.17883277, 0.28466892, 0.55991073
    scene = sample**2 / 3 if sample <= 0.5 else (2.718281828459045 ** ((sample - c) / a) + b) / 12
    return float(1000 * scene**1.2 / _REFERENCE_WHITE_NITS)


# ITU-T H.273, table 3, by TransferCharacteristics. Others count as that of sRGB.
_TRANSFERS: dict[int, Transfer] = {
    4: partial(_decode_power, 2.2),
    5: partial(_decode_power, 2.8),
    8: partial(_decode_power, 1),
    16: _decode_pq,
    18: _decode_hlg,
}


# ---------------------------------------------------------------------- an ICC profile of primaries


@lru_cache(maxsize=4)
def _build_profile(chromaticities: Chromaticities) -> bytes | None:
    """Return an ICC profile with these primaries and the transfer function of sRGB.

    None if they span no color space.
    """
    matrix = _compute_matrix(chromaticities)
    if matrix is None:
        return None
    curve = b"para" + struct.pack(">IHH", 0, 3, 0)
    curve += b"".join(map(_fixed, (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)))
    columns = [
        b"XYZ \0\0\0\0" + b"".join(map(_fixed, column)) for column in zip(*matrix, strict=True)
    ]
    white = b"XYZ \0\0\0\0" + b"".join(map(_fixed, _D50))
    tags = {
        b"wtpt": white,
        **dict(zip((b"rXYZ", b"gXYZ", b"bXYZ"), columns, strict=True)),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
    }
    directory, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        offset = 128 + 4 + 12 * len(tags) + len(body)
        directory += name + struct.pack(">II", offset, len(data))
        body += data
    header = struct.pack(
        ">I4xI4s4s4s12x4s4x40x", 128 + len(directory) + len(body), 0x04300000,
        b"mntr", b"RGB ", b"XYZ ", b"acsp",
    )  # fmt: skip
    header = header[:68] + b"".join(map(_fixed, _D50))
    return header.ljust(128, b"\0") + directory + body


def _fixed(value: float) -> bytes:
    return struct.pack(">i", round(value * 65536))


def _compute_matrix(chromaticities: Chromaticities) -> Matrix | None:
    """Return the matrix from linear RGB to XYZ, adapted to D50 by Bradford's method."""
    pairs = list(zip(chromaticities[::2], chromaticities[1::2], strict=True))
    if any(not (0 <= x <= 1 and 0 < y <= 1) for x, y in pairs):
        return None
    white, *primaries = [(x / y, 1.0, (1 - x - y) / y) for x, y in pairs]
    columns: Matrix = tuple(zip(*primaries, strict=True))
    inverse, cones = _invert(columns), _invert(_BRADFORD)
    if inverse is None or cones is None:
        return None
    scales = _apply(inverse, white)
    unadapted: Matrix = tuple(
        (row[0] * scales[0], row[1] * scales[1], row[2] * scales[2]) for row in columns
    )
    source, target = _apply(_BRADFORD, white), _apply(_BRADFORD, _D50)
    if min(map(abs, source)) < 1e-6 or min(scales) <= 0:
        return None
    gains = tuple(b / a for a, b in zip(source, target, strict=True))
    scaled: Matrix = tuple(
        (row[0] * gain, row[1] * gain, row[2] * gain)
        for row, gain in zip(_BRADFORD, gains, strict=True)
    )
    return _multiply(_multiply(cones, scaled), unadapted)


def _apply(matrix: Matrix, vector: tuple[float, ...]) -> tuple[float, float, float]:
    x, y, z = (sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix)
    return x, y, z


def _multiply(left: Matrix, right: Matrix) -> Matrix:
    columns = [_apply(left, column) for column in zip(*right, strict=True)]
    return tuple(zip(*columns, strict=True))


def _invert(matrix: Matrix) -> Matrix | None:
    (a, b, c), (d, e, f), (g, h, i) = matrix
    determinant = a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)
    if abs(determinant) < 1e-9:
        return None
    adjugate = (
        (e * i - f * h, c * h - b * i, b * f - c * e),
        (f * g - d * i, a * i - c * g, c * d - a * f),
        (d * h - e * g, b * g - a * h, a * e - b * d),
    )
    return tuple((x / determinant, y / determinant, z / determinant) for x, y, z in adjugate)
