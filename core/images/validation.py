"""Check an untrusted image file before Pillow decodes it: format, size, structure, dimensions.

The limits for uploads are here. png.py, jpeg.py, webp.py, bmff.py, tiff.py and gif.py parse the
structure of one format each; svg.py recognizes a refused one.
"""

import re
from typing import Literal, get_args

from core import errors
from core.images import bmff, gif, jpeg, png, svg, tiff, webp

Format = Literal["png", "jpeg", "webp"]  # of results
FORMATS: tuple[Format, ...] = get_args(Format)
InputFormat = Literal["png", "jpeg", "webp", "heic", "avif", "tiff", "gif"]
INPUT_FORMATS: tuple[InputFormat, ...] = get_args(InputFormat)
HEAD_BYTES = 8192  # of a file, by which its format is recognized

MAX_BYTES = 20_000_000
MAX_PIXELS = 40_000_000
MAX_PIXELS_WEBP = 25_000_000  # a WebP decoder needs 16 bytes per pixel, a JPEG decoder 8
MAX_SIDE_PX = 12_000
MIN_SIDE_PX = 32
MAX_ASPECT = 20

# Why an undamaged file is refused as bad_image: the stable reason of the error.
REASONS = frozenset(
    {
        "empty_file",
        "too_small",
        "too_long",
        "too_much_metadata",
        "unsupported_samples",
        "transparent",
        "black_mask",
    }
)

_TOO_MANY_BYTES = f"A picture may have at most {MAX_BYTES // 10**6} MB."
_TOO_MUCH_METADATA = "The picture carries too much text; save it again without its metadata."
# With the size of the picture: 20 × 30 px.
_TOO_SMALL = f"The picture has {{}} px; it must have at least {MIN_SIDE_PX} px a side."
_TOO_LONG = f"The picture has {{}} px; it may be at most {MAX_ASPECT} times as long as wide."
_EMPTY = "The file is empty."
_LACKS_PRECISION = (
    "The JPEG has no scan for its finest details. If it looks coarse, it was cut off: send the "
    "original file."
)
_UNCHECKED = "The JPEG is arithmetic-coded, so nobody can tell whether it is complete."

# Formats that are refused by name: what a file begins with. An untrusted client chooses the bytes,
# so a pattern takes linear time: no two parts of it may match the same bytes (hence the `*+`).
_REFUSED_FORMATS = {
    "PDF": rb".{,1000}%PDF-",
    "PostScript": rb"%!PS",
    "BMP": rb"BM.{4}\0\0\0\0",
    "Photoshop": rb"8BPS",
    "JPEG XL": rb"\xff\x0a|\0\0\0\x0cJXL ",
    "JPEG 2000": rb"\xff\x4f\xff\x51|\0\0\0\x0cjP  ",
    "Camera raw": rb"....ftypcr[x3]|FUJIFILMCCD-RAW|IIR[OS]\x08\0|MMOR\0|IIU\0",
    "Video": rb"....ftyp|\x1a\x45\xdf\xa3",
}
_REFUSED_FORMAT = "{} is not supported; export the picture as PNG or JPEG."
_SVG = _REFUSED_FORMAT.format("SVG")
_REFUSALS = {
    re.compile(beginning, re.DOTALL | re.IGNORECASE): _REFUSED_FORMAT.format(name)
    for name, beginning in _REFUSED_FORMATS.items()
}


def detect_format(data: bytes) -> InputFormat:
    """Return the format by content; the file's name and declared type are ignored.

    The first HEAD_BYTES suffice. Raises UnsupportedImage, and BadImage for an empty file.
    """
    if not data:
        raise errors.BadImage(_EMPTY, reason="empty_file")
    if (file_format := _find_format(data)) is not None:
        return file_format
    raise errors.UnsupportedImage(_find_refusal(data[:HEAD_BYTES]))


def is_picture(data: bytes) -> bool:
    """Return whether a file claims a format that is supported, or one that is refused by name.

    data: its first bytes. 12 suffice for all but SVG and PDF.
    """
    return _find_format(data) is not None or _find_refusal(data[:HEAD_BYTES]) is not None


def _find_refusal(data: bytes) -> str | None:
    if svg.is_svg(data):
        return _SVG
    return next((text for start, text in _REFUSALS.items() if start.match(data)), None)


def _find_format(data: bytes) -> InputFormat | None:
    if data[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "tiff"
    if data[:6] in (b"GIF87a", b"GIF89a"):
        return "gif"
    if bmff.is_avif(data[:HEAD_BYTES]):
        return "avif"
    if bmff.is_heic(data[:HEAD_BYTES]):
        return "heic"
    return None


def needs_threads(data: bytes) -> bool:
    """Return whether the decoder of this file, of which the first bytes suffice, needs a thread.

    The decoder of HEVC starts one for every picture.
    """
    return bmff.is_heic(data) and not bmff.is_avif(data)


def check_file_size(size_bytes: int) -> None:
    """Raise UploadTooLarge if a file has more bytes than an upload may have."""
    if size_bytes > MAX_BYTES:
        raise errors.UploadTooLarge(_TOO_MANY_BYTES)


def check_structure(data: bytes, file_format: InputFormat) -> None:
    """Raise BadImage if a file is truncated or carries too much metadata.

    Pillow itself accepts truncated files and fills the missing part with black or gray.
    A PNG's pixel data is not checked here: see `png.is_complete`.
    """
    if file_format == "png" and not png.has_bounded_metadata(data):
        raise errors.BadImage(_TOO_MUCH_METADATA, reason="too_much_metadata")
    is_complete = _IS_COMPLETE.get(file_format)
    if is_complete is not None and not is_complete(data):
        raise errors.BadImage()


_IS_COMPLETE = {
    "jpeg": jpeg.is_complete,
    "webp": webp.is_complete,
    "heic": bmff.is_complete,
    "avif": bmff.is_complete,
    "tiff": tiff.is_complete,
    "gif": gif.is_complete,
}


def check_dimensions(size: tuple[int, int], file_format: InputFormat) -> None:
    """Raise ImageTooLarge or BadImage for the header's (width, height); needs no pixels."""
    short, long = sorted(size)
    if long > MAX_SIDE_PX or short * long > _max_pixels(file_format):
        raise errors.ImageTooLarge(describe_pixel_limit(file_format))
    if short < MIN_SIDE_PX:
        raise errors.BadImage(_TOO_SMALL.format(f"{size[0]} × {size[1]}"), reason="too_small")
    if long > MAX_ASPECT * short:
        raise errors.BadImage(_TOO_LONG.format(f"{size[0]} × {size[1]}"), reason="too_long")


def describe_pixel_limit(file_format: InputFormat) -> str:
    """Return the sentence that states a format's limits."""
    return (
        f"A {file_format.upper()} picture may have at most "
        f"{_max_pixels(file_format) // 10**6} megapixels and {MAX_SIDE_PX} px a side."
    )


def _max_pixels(file_format: InputFormat) -> int:
    return MAX_PIXELS_WEBP if file_format == "webp" else MAX_PIXELS


def list_doubts(structure: jpeg.Structure) -> list[str]:
    """Return sentences about what may be wrong with a JPEG that was decoded."""
    doubts = {
        _LACKS_PRECISION: jpeg.lacks_precision(structure),
        _UNCHECKED: structure.is_arithmetic,
    }
    return [sentence for sentence, is_doubtful in doubts.items() if is_doubtful]


def strip_size(message: str) -> str:
    """Return a message of MESSAGES with a placeholder for the size that it states."""
    return re.sub(r"\b\d{1,10} × \d{1,10} px", "{} px", message)


# All messages of this module beside the default ones, without sizes: see `strip_size`.
MESSAGES = frozenset(
    {
        _TOO_MANY_BYTES,
        _TOO_MUCH_METADATA,
        _TOO_SMALL,
        _TOO_LONG,
        _EMPTY,
        _LACKS_PRECISION,
        _UNCHECKED,
        *_REFUSALS.values(),
        _SVG,
        *map(describe_pixel_limit, INPUT_FORMATS),
    }
)
