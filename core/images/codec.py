"""Decode checked bytes to an upright sRGB picture, and encode a picture to bytes.

A picture is a Pillow image in mode RGB with empty metadata. This module knows Pillow only: no
tensors, no storage, no HTTP. To decode an untrusted file, use decoder.py, which calls this module
in a sandboxed process.
"""

import io
import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, Literal, NoReturn, get_args

from PIL import (
    Image,
    ImageCms,
    ImageOps,
    ImageStat,
    MpoImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

from core import errors
from core.images import png, validation
from core.images.validation import FORMATS, Format

# What lies behind transparent pixels. visible: white, or black behind a light drawing.
Background = Literal["visible", "black"]
_LIGHT = 224  # mean luminance of a drawing that would hardly be seen on white
# How to make a square. linear: scale each side on its own, whatever becomes of the proportions.
# crop: scale the short side, then crop the center.
Resize = Literal["linear", "crop"]
RESIZES: tuple[Resize, ...] = get_args(Resize)

PROVENANCE_KEY = "impasto"

_BLACK_MASK = "A mask is black all over. Only what is white in it counts."
_ONE_COLOR = "The picture is one color all over."
# All messages of this module beside the default ones and those of validation.py.
MESSAGES = frozenset({_BLACK_MASK, _ONE_COLOR})

# A restricted process cannot load code, so this module loads what Pillow would load on demand.
Image.preinit()
_LOADED_EARLY = (MpoImagePlugin, WebPImagePlugin)

# Pillow only warns up to twice its own pixel limit. A warning would stop nothing, so raise it.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)

# What Pillow is known to raise on hostile files, beyond OSError.
_PILLOW_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    EOFError,
    RuntimeError,
    MemoryError,
    OverflowError,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def decode(
    data: bytes, background: Background = "visible", *, any_size: bool = False
) -> Image.Image:
    """Decode a JPEG, PNG or WebP file: first frame, upright, sRGB, composited on `background`.

    any_size: skip the limits for uploads, because the file may be a result of ours.
    Raises UnsupportedImage, ImageTooLarge, UploadTooLarge, BadImage.
    """
    if not any_size:
        validation.check_file_size(len(data))
    file_format = validation.detect_format(data)
    validation.check_structure(data, file_format)
    try:
        with Image.open(io.BytesIO(data), formats=[file_format.upper()]) as image:
            if not any_size:
                validation.check_dimensions(image.size, file_format)
            # After the check of the dimensions: it inflates all pixels that the header promises.
            if file_format == "png" and not png.is_complete(data):
                raise errors.BadImage()
            image.load()
            return _strip_metadata(
                _composite(_convert_to_srgb(_apply_orientation(image)), background)
            )
    except errors.ImpastoError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise errors.ImageTooLarge(validation.describe_pixel_limit(file_format)) from error
    except _PILLOW_ERRORS as error:
        raise errors.BadImage() from error


def decode_mask(data: bytes) -> Image.Image:
    """Decode a mask as `decode` does, in mode L. Transparent is black, so it selects nothing."""
    return decode(data, "black").convert("L")


def check_mask(mask: Image.Image) -> None:
    """Raise BadImage if a mask is entirely black."""
    if not mask.convert("L").getextrema()[1]:
        raise errors.BadImage(_BLACK_MASK)


def decode_square(data: bytes, side_px: int, resize: Resize) -> Image.Image:
    """Decode a file for a data set, scaled to side_px × side_px.

    Raises what `decode` raises, and BadImage if the picture is one color all over: a network cannot
    learn from it.
    """
    picture = decode(data)
    if all(low == high for low, high in picture.getextrema()):  # type: ignore[misc]
        raise errors.BadImage(_ONE_COLOR)
    size = (side_px, side_px)
    if resize == "linear":
        return picture.resize(size, Image.Resampling.BILINEAR)
    return ImageOps.fit(picture, size, Image.Resampling.BILINEAR)


def open_result(
    data: bytes, formats: Sequence[Format] = FORMATS, size: tuple[int, int] | None = None
) -> Image.Image:
    """Decode a picture that `encode` wrote, which may be larger than an upload.

    size: the (width, height) that it must have, if known. Raises BadImage.
    """
    try:
        with Image.open(io.BytesIO(data), formats=[name.upper() for name in formats]) as image:
            if size is not None and image.size != size:
                raise errors.BadImage()
            return image.convert("RGB")
    except _PILLOW_ERRORS as error:
        raise errors.BadImage() from error


def _apply_orientation(image: Image.Image) -> Image.Image:
    """Turn the image upright as its EXIF says. Keeps the color profile, which Pillow drops."""
    profile = image.info.get("icc_profile")
    try:
        upright = ImageOps.exif_transpose(image)
    except _PILLOW_ERRORS:
        return image  # broken EXIF is no reason to refuse good pixels
    if profile is not None:
        upright.info["icc_profile"] = profile
    return upright


def _convert_to_srgb(image: Image.Image) -> Image.Image:
    """Convert to sRGB, in mode RGB or RGBA. A missing or broken profile means sRGB."""
    profile = image.info.get("icc_profile")
    alpha = None
    if image.mode.startswith("I"):  # 16-bit gray; convert("L") alone would clip at 255
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    elif image.has_transparency_data or image.mode in ("P", "PA"):
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert("RGB")
    if profile:
        image = _apply_profile(image, profile)
    image = image.convert("RGB")
    if alpha is not None:
        image.putalpha(alpha)
    return image


def _apply_profile(image: Image.Image, profile: bytes) -> Image.Image:
    try:
        converted = ImageCms.profileToProfile(
            image,
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            outputMode="RGB",
        )
    except (ImageCms.PyCMSError, *_PILLOW_ERRORS):
        return image
    return image if converted is None else converted


def _composite(image: Image.Image, background: Background) -> Image.Image:
    if image.mode != "RGBA":
        return image
    color = "black" if background == "black" or _is_light(image) else "white"
    canvas = Image.new("RGBA", image.size, color)
    return Image.alpha_composite(canvas, image).convert("RGB")


def _is_light(image: Image.Image) -> bool:
    """Whether an RGBA image is a light drawing on transparency, such as a white logo.

    It must have transparent parts: a light photo with a soft edge stays on white.
    """
    alpha = image.getchannel("A")
    if alpha.histogram()[0] < image.width * image.height // 100 or not alpha.getextrema()[1]:
        return False
    return float(ImageStat.Stat(image.convert("L"), mask=alpha).mean[0]) > _LIGHT


def _strip_metadata(image: Image.Image) -> Image.Image:
    """Copy the pixels to a new image. Pillow keeps comments in `info`, even through convert()."""
    return Image.frombytes("RGB", image.size, image.tobytes())


def encode(
    picture: Image.Image,
    file_format: Format = "png",
    provenance: Mapping[str, Any] | None = None,
    quality: int = 95,
) -> bytes:
    """Encode a picture as a file. A PNG stores `provenance` in one iTXt chunk, as JSON."""
    buffer = io.BytesIO()
    if file_format == "png":
        chunks = PngImagePlugin.PngInfo()
        if provenance is not None:
            chunks.add_itxt(PROVENANCE_KEY, json.dumps(provenance, ensure_ascii=False), zip=False)
        picture.save(buffer, "PNG", pnginfo=chunks)
    elif file_format == "jpeg":
        # Chroma subsampling: 0 is 4:4:4 (none), 2 is 4:2:0.
        picture.save(buffer, "JPEG", quality=quality, subsampling=0 if quality > 90 else 2)
    else:
        picture.save(buffer, "WEBP", quality=quality)
    return buffer.getvalue()


def convert(data: bytes, file_format: Format, width: int | None = None) -> bytes:
    """Convert a file that `encode` wrote to another format, or scale it to `width` px.

    A PNG keeps its provenance.
    """
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        provenance, picture = image.info.get(PROVENANCE_KEY), image.convert("RGB")
    if width is not None:
        size = (width, max(1, round(picture.height * width / picture.width)))
        picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return encode(picture, file_format, None if provenance is None else json.loads(provenance))


def animate(
    pictures: Sequence[Image.Image], milliseconds: int, last_milliseconds: int, quality: int = 80
) -> bytes:
    """Encode pictures as an animated WebP that repeats, each scaled to the size of the largest.

    Each picture is shown for `milliseconds`, the last one for `last_milliseconds`.
    """
    size = max((picture.size for picture in pictures), key=lambda size: size[0] * size[1])
    first, *others = (picture.resize(size, Image.Resampling.BICUBIC) for picture in pictures)
    buffer = io.BytesIO()
    # `method` 2 takes a third of the time of the default 4, and hardly more bytes.
    first.save(
        buffer,
        "WEBP",
        save_all=True,
        append_images=others,
        duration=[*[milliseconds] * len(others), last_milliseconds],
        loop=0,
        quality=quality,
        method=2,
    )
    return buffer.getvalue()


def read_provenance(file: bytes | BinaryIO) -> dict[str, Any] | None:
    """Return the provenance that `encode` stored in a PNG; None if there is none.

    Decodes no pixels. Raises InvalidProvenance.
    """
    try:
        text = png.read_text(io.BytesIO(file) if isinstance(file, bytes) else file, PROVENANCE_KEY)
        if text is None:
            return None
        return dict(json.loads(text, parse_constant=_reject_constant))
    except (ValueError, TypeError, RecursionError) as error:
        raise errors.InvalidProvenance() from error


def _reject_constant(constant: str) -> NoReturn:
    raise ValueError(constant)  # NaN and infinity are not JSON, but Python's parser accepts them


def thumbnail(picture: Image.Image, side_px: int) -> Image.Image:
    """Return a copy of the picture with its long side at most `side_px`."""
    small = picture.copy()
    small.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    return small
