"""Bytes to a checked, upright, sRGB picture, and a picture to bytes.

A picture is a Pillow image in mode RGB with empty metadata. This module knows Pillow only: no tensors, no storage,
no HTTP. The API calls `inspect_in_child`, which decodes where a hostile file can harm nothing.
"""

import io
import json
import multiprocessing
import os
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, BinaryIO, Literal, NoReturn, get_args

from PIL import Image, ImageCms, ImageOps, MpoImagePlugin, PngImagePlugin, WebPImagePlugin

from core import errors
from core.images import jpeg, png, sandbox, webp

Format = Literal["png", "jpeg", "webp"]
FORMATS: tuple[Format, ...] = get_args(Format)

MAX_BYTES = 20_000_000
MAX_PIXELS = 40_000_000
MAX_PIXELS_WEBP = 25_000_000  # a WebP decoder needs 16 bytes a pixel where JPEG needs 8
MAX_SIDE_PX = 12_000
MIN_SIDE_PX = 32
MAX_ASPECT = 20
PROVENANCE_KEY = "impasto"

DECODE_MEMORY_BYTES = 1536 * 2**20
DECODE_SECONDS = 10
_VERDICT_BYTES = 4096
_BEGUN, _START_SECONDS = (
    b"!",
    20,
)  # what the child says when it has the file, and how long that may take
_DEATH_SECONDS = 1  # that a child may take to be dead, once its pipe is closed
# A child that has shut itself in can load no code any more, so what Pillow loads late is loaded here.
Image.preinit()
_LOADED_EARLY = (MpoImagePlugin, WebPImagePlugin)

# Pillow only warns up to twice its own pixel limit; a warning nobody reads is no limit.
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


def detect_format(data: bytes) -> Format:
    """The format by content; a file's name and declared type count for nothing.

    Raises UnsupportedImage.
    """
    if data[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    raise errors.UnsupportedImage()


def decode(
    data: bytes, ground: Literal["white", "black"] = "white", *, any_size: bool = False
) -> Image.Image:
    """Bytes of a JPEG, PNG or WebP file to a picture: first frame, upright, sRGB, alpha composited on `ground`.

    any_size: it may be a result of ours, larger than what is taken from strangers.
    Raises UnsupportedImage, ImageTooLarge, UploadTooLarge, BadImage.
    """
    if len(data) > MAX_BYTES and not any_size:
        raise errors.UploadTooLarge(f"A picture may have at most {MAX_BYTES // 10**6} MB.")
    kind = detect_format(data)
    _check_structure(data, kind)
    try:
        with Image.open(io.BytesIO(data), formats=[kind.upper()]) as image:
            if not any_size:
                _check_size(image.size, kind)
            if kind == "png" and not png.is_complete(
                data
            ):  # costs as much as the pixels that the header promises
                raise errors.BadImage()
            image.load()
            return _rebuilt(_on(ground, _to_srgb(_upright(image))))
    except errors.ImpastoError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise errors.ImageTooLarge(_pixel_limit(kind)) from error
    except _PILLOW_ERRORS as error:
        raise errors.BadImage() from error


def decode_mask(data: bytes) -> Image.Image:
    """As `decode`, but gray, and transparent is black: what cannot be seen selects nothing."""
    return decode(data, "black").convert("L")


def check_mask(mask: Image.Image) -> None:
    """Raises BadImage where a mask is black all over."""
    if not mask.convert("L").getextrema()[1]:
        raise errors.BadImage(
            "A mask is black all over: its painting would go nowhere. White is where it goes."
        )


def open_result(
    data: bytes, kinds: Sequence[Format] = FORMATS, size: tuple[int, int] | None = None
) -> Image.Image:
    """A picture that `encode` wrote, maybe larger than what is taken from strangers; of that size, if one is told.

    Raises BadImage.
    """
    try:
        with Image.open(io.BytesIO(data), formats=[kind.upper() for kind in kinds]) as image:
            if size is not None and image.size != size:
                raise errors.BadImage()
            return image.convert("RGB")
    except _PILLOW_ERRORS as error:
        raise errors.BadImage() from error


def _pixel_limit(kind: Format) -> str:
    pixels = MAX_PIXELS_WEBP if kind == "webp" else MAX_PIXELS
    return f"A {kind.upper()} picture may have at most {pixels // 10**6} megapixels and {MAX_SIDE_PX} px a side."


def _check_structure(data: bytes, kind: Format) -> None:
    """Refuse what was cut or is stuffed before Pillow reads it: it fills up with black or gray what is missing."""
    if kind == "png" and not png.is_light(data):
        raise errors.BadImage(
            "The picture carries more text than is taken; save it again without its metadata."
        )
    if (kind == "jpeg" and not jpeg.is_complete(data)) or (
        kind == "webp" and not webp.is_complete(data)
    ):
        raise errors.BadImage()


def _check_size(size: tuple[int, int], kind: Format) -> None:
    """Refuse by the header alone, before a pixel is decoded."""
    short, long = sorted(size)
    if long > MAX_SIDE_PX or short * long > (MAX_PIXELS_WEBP if kind == "webp" else MAX_PIXELS):
        raise errors.ImageTooLarge(_pixel_limit(kind))
    if short < MIN_SIDE_PX:
        raise errors.BadImage(f"A picture must have at least {MIN_SIDE_PX} px a side.")
    if long > MAX_ASPECT * short:
        raise errors.BadImage(f"A picture may be at most {MAX_ASPECT} times as long as it is wide.")


def _upright(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    try:
        turned = ImageOps.exif_transpose(image)
    except _PILLOW_ERRORS:
        return image  # broken EXIF is no reason to refuse good pixels
    if profile is not None:
        turned.info["icc_profile"] = profile
    return turned


def _to_srgb(image: Image.Image) -> Image.Image:
    """Mode RGB or RGBA, in sRGB. A missing or broken profile means sRGB."""
    profile = image.info.get("icc_profile")
    alpha = None
    if image.mode.startswith("I"):  # 16-bit grey; convert("L") alone would clip at 255
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    elif image.has_transparency_data or image.mode in ("P", "PA"):
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        image = image.convert("RGB")
    if profile:
        image = _through_profile(image, profile)
    image = image.convert("RGB")
    if alpha is not None:
        image.putalpha(alpha)
    return image


def _through_profile(image: Image.Image, profile: bytes) -> Image.Image:
    try:
        convert = ImageCms.profileToProfile(
            image,
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            outputMode="RGB",
        )
    except (ImageCms.PyCMSError, *_PILLOW_ERRORS):
        return image
    return image if convert is None else convert


def _on(ground: str, image: Image.Image) -> Image.Image:
    if image.mode != "RGBA":
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, ground), image).convert("RGB")


def _rebuilt(image: Image.Image) -> Image.Image:
    """The same pixels in a fresh image: Pillow carries comments and chunks along in `info`, even through convert()."""
    return Image.frombytes("RGB", image.size, image.tobytes())


def encode(
    picture: Image.Image,
    kind: Format = "png",
    provenance: Mapping[str, Any] | None = None,
    quality: int = 95,
) -> bytes:
    """A picture to the bytes of a file; `provenance` goes into a PNG as one iTXt chunk of JSON."""
    buffer = io.BytesIO()
    if kind == "png":
        chunks = PngImagePlugin.PngInfo()
        if provenance is not None:
            chunks.add_itxt(PROVENANCE_KEY, json.dumps(provenance, ensure_ascii=False), zip=False)
        picture.save(buffer, "PNG", pnginfo=chunks)
    elif kind == "jpeg":
        picture.save(
            buffer, "JPEG", quality=quality, subsampling=0 if quality > 90 else 2
        )  # 2: 4:2:0
    else:
        picture.save(buffer, "WEBP", quality=quality)
    return buffer.getvalue()


def convert(data: bytes, kind: Format, width: int | None = None) -> bytes:
    """A picture that `encode` wrote, in another format, or as small as `width` px; a PNG keeps its record."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        record, picture = image.info.get(PROVENANCE_KEY), image.convert("RGB")
    if width is not None:
        size = (width, max(1, round(picture.height * width / picture.width)))
        picture = picture.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    return encode(picture, kind, None if record is None else json.loads(record))


def animate(
    pictures: Sequence[Image.Image], milliseconds: int, last_milliseconds: int, quality: int = 80
) -> bytes:
    """An animated WebP that repeats: all pictures at the size of the largest, each shown so long, and the last."""
    size = max((picture.size for picture in pictures), key=lambda size: size[0] * size[1])
    first, *others = (picture.resize(size, Image.Resampling.BICUBIC) for picture in pictures)
    buffer = io.BytesIO()
    times = [*[milliseconds] * len(others), last_milliseconds]
    # `method` 2: a third of the time of the usual 4, and hardly more bytes.
    first.save(
        buffer,
        "WEBP",
        save_all=True,
        append_images=others,
        duration=times,
        loop=0,
        quality=quality,
        method=2,
    )
    return buffer.getvalue()


def read_provenance(file: bytes | BinaryIO) -> dict[str, Any] | None:
    """What `encode` recorded in a PNG; None where there is nothing. Decodes no pixels. Raises BadRecord."""
    try:
        text = png.text(io.BytesIO(file) if isinstance(file, bytes) else file, PROVENANCE_KEY)
        return None if text is None else dict(json.loads(text, parse_constant=_refuse))
    except (ValueError, TypeError, RecursionError) as error:
        raise errors.InvalidProvenance() from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(constant)  # NaN and infinity are no JSON


def thumbnail(picture: Image.Image, side_px: int) -> Image.Image:
    """The picture with its long side at most `side_px`."""
    small = picture.copy()
    small.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    return small


def inspect_in_child(file: Path, *, mask: bool = False) -> tuple[int, int]:
    """Decode in a child process that has shut itself in (core/images/sandbox.py); the (width, height) that came out.

    A file that crashes the decoder, takes it over, or makes it eat memory harms only the child. mask: look as
    `decode_mask` does. Raises what `decode` raises, BadImage for a mask that is black all over, and Unavailable when no
    child can be had.
    """
    try:
        with file.open("rb") as opened:
            detect_format(opened.read(12))
            size_bytes = os.fstat(opened.fileno()).st_size
    except FileNotFoundError:  # swept: this machine's clock has jumped
        raise errors.Unavailable() from None
    if size_bytes > MAX_BYTES:
        raise errors.UploadTooLarge(f"A picture may have at most {MAX_BYTES // 10**6} MB.")
    return _read_verdict(_verdict_of_child(file, mask=mask))


def warm_up() -> bool:
    """Start the process that children come from, by one small picture; whether the kernel filters what they do."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(encode(Image.new("RGB", (MIN_SIDE_PX, MIN_SIDE_PX))))
        file.flush()
        verdict = _verdict_of_child(Path(file.name), mask=False)
    return bool(json.loads(verdict or b"{}").get("filtered"))


def _verdict_of_child(file: Path, *, mask: bool) -> bytes | None:
    """What the child has to say; None if it died."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["core.images.codec"])
    try:
        ours, theirs = context.Pipe(duplex=False)
        limits = (DECODE_MEMORY_BYTES, DECODE_SECONDS)
        child = context.Process(target=_inspect, args=(theirs, file, *limits, mask), daemon=True)
        child.start()
    except (OSError, EOFError) as error:  # too many files or processes
        raise errors.Unavailable() from error
    theirs.close()
    begun, patience = False, _START_SECONDS + 2 * DECODE_SECONDS
    began, late = (
        time.monotonic(),
        threading.Timer(patience, child.kill),
    )  # also one that says half a word
    late.start()
    try:
        begun = ours.recv_bytes(1) == _BEGUN
        return ours.recv_bytes(_VERDICT_BYTES)
    except (EOFError, OSError):  # the child died: over its limits, or crashed
        child.join(_DEATH_SECONDS)
    finally:
        late.cancel()
        child.kill()
        child.join()
        ours.close()
    # It could not be forked, or have its file, or the machine, out of memory, killed it: the picture is not to blame.
    if not begun or (child.exitcode == -signal.SIGKILL and time.monotonic() - began < patience):
        raise errors.Unavailable()
    return None


def _inspect(pipe: Connection, file: Path, memory_bytes: int, seconds: int, mask: bool) -> None:
    data = file.read_bytes()
    sandbox.close_descriptors(pipe.fileno())
    filtered = sandbox.restrict_process(memory_bytes, seconds)
    pipe.send_bytes(_BEGUN)
    try:
        picture = (decode_mask if mask else decode)(data)
        if mask:
            check_mask(picture)
        verdict: dict[str, Any] = {
            "width": picture.width,
            "height": picture.height,
            "filtered": filtered,
        }
    except errors.BadInput as error:
        verdict = {"refusal": type(error).__name__, "message": error.message}
    pipe.send_bytes(json.dumps(verdict).encode())


def _read_verdict(verdict: bytes | None) -> tuple[int, int]:
    """JSON, not pickle, and nothing taken on trust: a file may have taken the child over, or killed it."""
    try:
        answer = json.loads(verdict or b"")
        if "refusal" not in answer:
            return int(answer["width"]), int(answer["height"])
        name, message = str(answer["refusal"]), str(answer["message"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise errors.BadImage() from error
    refusals = (errors.UnsupportedImage, errors.ImageTooLarge, errors.UploadTooLarge)
    raise next((kind for kind in refusals if kind.__name__ == name), errors.BadImage)(message)
