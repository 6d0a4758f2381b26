"""Check an untrusted image file before Pillow decodes it: format, size, structure, dimensions.

The limits for uploads are here. png.py, jpeg.py and webp.py parse the structure of one format each.
"""

from typing import Literal, get_args

from core import errors
from core.images import jpeg, png, webp

Format = Literal["png", "jpeg", "webp"]
FORMATS: tuple[Format, ...] = get_args(Format)

MAX_BYTES = 20_000_000
MAX_PIXELS = 40_000_000
MAX_PIXELS_WEBP = 25_000_000  # a WebP decoder needs 16 bytes per pixel, a JPEG decoder 8
MAX_SIDE_PX = 12_000
MIN_SIDE_PX = 32
MAX_ASPECT = 20

_TOO_MANY_BYTES = f"A picture may have at most {MAX_BYTES // 10**6} MB."
_TOO_MUCH_METADATA = "The picture carries too much text; save it again without its metadata."
_TOO_SMALL = f"A picture must have at least {MIN_SIDE_PX} px a side."
_TOO_LONG = f"A picture may be at most {MAX_ASPECT} times as long as it is wide."


def detect_format(data: bytes) -> Format:
    """Return the format by content; the file's name and declared type are ignored.

    The first 12 bytes suffice. Raises UnsupportedImage.
    """
    if data[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    raise errors.UnsupportedImage()


def check_file_size(size_bytes: int) -> None:
    """Raise UploadTooLarge if a file has more bytes than an upload may have."""
    if size_bytes > MAX_BYTES:
        raise errors.UploadTooLarge(_TOO_MANY_BYTES)


def check_structure(data: bytes, file_format: Format) -> None:
    """Raise BadImage if a file is truncated or carries too much metadata.

    Pillow itself accepts truncated files and fills the missing part with black or gray.
    A PNG's pixel data is not checked here: see `png.is_complete`.
    """
    if file_format == "png" and not png.has_bounded_metadata(data):
        raise errors.BadImage(_TOO_MUCH_METADATA)
    if file_format == "jpeg" and not jpeg.is_complete(data):
        raise errors.BadImage()
    if file_format == "webp" and not webp.is_complete(data):
        raise errors.BadImage()


def check_dimensions(size: tuple[int, int], file_format: Format) -> None:
    """Raise ImageTooLarge or BadImage for the header's (width, height); needs no pixels."""
    short, long = sorted(size)
    if long > MAX_SIDE_PX or short * long > _max_pixels(file_format):
        raise errors.ImageTooLarge(describe_pixel_limit(file_format))
    if short < MIN_SIDE_PX:
        raise errors.BadImage(_TOO_SMALL)
    if long > MAX_ASPECT * short:
        raise errors.BadImage(_TOO_LONG)


def describe_pixel_limit(file_format: Format) -> str:
    """Return the sentence that states a format's limits."""
    return (
        f"A {file_format.upper()} picture may have at most "
        f"{_max_pixels(file_format) // 10**6} megapixels and {MAX_SIDE_PX} px a side."
    )


def _max_pixels(file_format: Format) -> int:
    return MAX_PIXELS_WEBP if file_format == "webp" else MAX_PIXELS


# All messages of this module beside the default ones.
MESSAGES = frozenset(
    {
        _TOO_MANY_BYTES,
        _TOO_MUCH_METADATA,
        _TOO_SMALL,
        _TOO_LONG,
        *map(describe_pixel_limit, FORMATS),
    }
)
