"""Formats beside JPEG, PNG and WebP: the first picture, its colors, and what is refused by name."""

import gzip
import struct
import time
from typing import Any

import hostile_files
import pytest
from PIL import Image, TiffImagePlugin

from core import errors
from core.images import codec, validation


def _saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    return hostile_files.saved(picture, kind, **options)


RED, BLUE, GREEN = (200, 30, 30), (30, 30, 200), (30, 200, 30)


def _near(picture: Image.Image, x: int, y: int, expected: tuple[int, ...], tolerance: int) -> bool:
    got: Any = picture.getpixel((x, y))
    return all(abs(a - b) <= tolerance for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [
        ("HEIC plain", 4),
        ("HEIC profile", 4),
        ("HEIC two", 4),
        ("AVIF", 4),
        ("AVIF animated", 4),
        ("TIFF LZW", 0),
        ("TIFF JPEG", 4),
        ("TIFF CMYK", 0),
        ("GIF", 56),  # Pillow quantizes to a fixed palette
        ("GIF animated", 56),
    ],
)
def test_the_first_picture_of_a_file_is_decoded(name: str, tolerance: int) -> None:
    decoded = codec.decode(hostile_files.encodings()[name])

    assert (decoded.mode, decoded.size, decoded.info) == ("RGB", (64, 48), {})
    assert _near(decoded, 8, 40, RED, tolerance)
    assert _near(decoded, 56, 40, BLUE, tolerance)
    assert _near(decoded, 32, 4, GREEN, tolerance)


@pytest.mark.parametrize("name", ["HEIC alpha", "AVIF alpha", "TIFF deflate"])
def test_the_alpha_of_a_file_is_decoded(name: str) -> None:
    decoded = codec.decode(hostile_files.encodings()[name], "white", keep_alpha=True)

    assert decoded.mode == "RGBA"
    low, high = decoded.getchannel("A").getextrema()
    assert (low <= 10, high >= 250) == (True, True)


def test_the_transparent_color_of_a_gif_is_transparent() -> None:
    picture = Image.new("P", (40, 40), 1)
    picture.putpalette([0, 0, 0, 255, 0, 0] + [0] * 750)
    picture.paste(0, (0, 0, 20, 40))
    decoded = codec.decode(_saved(picture, "GIF", transparency=1), keep_alpha=True)

    assert [decoded.getpixel((x, 5)) for x in (5, 25)] == [(0, 0, 0, 255), (255, 255, 255, 0)]


def test_premultiplied_alpha_is_divided_out() -> None:
    picture = Image.new("RGBA", (40, 40), (100, 50, 0, 128))
    picture.paste((0, 0, 0, 0), (0, 0, 20, 40))
    # The tag ExtraSamples, a short: 2 is unassociated alpha, 1 is associated.
    tag = struct.pack("<HHIH", 338, 3, 1, 2)
    data = _saved(picture, "TIFF")
    assert tag in data
    decoded = codec.decode(data.replace(tag, tag[:-2] + b"\1\0"), "black", keep_alpha=True)

    # 100 of premultiplied color over black stays 100.
    assert _near(decoded, 30, 20, (100, 50, 0, 128), 2)


@pytest.mark.parametrize("kind", ["TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied_once(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = codec.decode(_saved(hostile_files.colors(), kind, exif=exif))
    corner = {1: (1, 1), 2: (1, 1), 3: (-2, -2), 4: (-2, -2)}.get(orientation)

    assert decoded.size == ((64, 48) if orientation < 5 else (48, 64))
    if corner is not None:  # the green bar is at the top of the stored picture
        x, y = (value % side for value, side in zip(corner, decoded.size, strict=True))
        assert _near(decoded, x, y, GREEN, 6)


def test_a_turned_heic_is_upright() -> None:
    assert codec.decode(hostile_files.encodings()["HEIC exif"]).size in ((48, 64), (64, 48))


def test_the_primaries_that_avif_names_without_a_profile_are_converted() -> None:
    """As in PNG: cICP. Display P3's red is outside of sRGB."""
    data = _saved(Image.new("RGB", (64, 64), (200, 100, 50)), "AVIF", quality=100)
    at = data.index(b"colrnclx") + 8
    assert codec.decode(data).getpixel((5, 5)) == pytest.approx((200, 100, 50), abs=3)

    p3 = data[:at] + struct.pack(">HH", 12, 13) + data[at + 4 :]
    assert codec.decode(p3).getpixel((5, 5)) == pytest.approx((215, 95, 34), abs=4)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_a_tiff_of_32_bits_is_refused_with_what_to_do(mode: str) -> None:
    with pytest.raises(errors.BadImage, match="8 or 16 bits per sample"):
        codec.decode(_saved(Image.new(mode, (40, 40)), "TIFF"))


def _retag(tiff: bytes, tag: int, value: int) -> bytes:
    """Return a little-endian TIFF with another value of a tag that holds one short."""
    entry = struct.pack("<HHI", tag, 3, 1)
    at = tiff.index(entry) + len(entry)
    return tiff[:at] + struct.pack("<H", value) + tiff[at + 2 :]


@pytest.mark.parametrize(
    ("bits", "photometric", "levels"),
    [(16, 1, (32, 224)), (16, 0, (255 - 32, 255 - 224)), (12, 1, (32, 224))],
)
def test_a_gray_tiff_of_more_bits_is_scaled_and_never_negative(
    bits: int, photometric: int, levels: tuple[int, int]
) -> None:
    """Pillow leaves the samples as they are. photometric: 0 if zero is white."""
    halves = [level << (bits - 8) for level in (32, 224)]  # left, right
    wide = b"".join(struct.pack("<H", value) * 32 for value in halves) * 64
    data = _saved(Image.frombytes("I;16", (64, 64), wide), "TIFF")
    if bits == 12:
        packed = b"".join(((value << 12) | value).to_bytes(3) * 16 for value in halves) * 64
        data = _retag(data.replace(wide, packed.ljust(len(wide), b"\0")), 258, bits)
    decoded = codec.decode(_retag(data, 262, photometric))

    assert [decoded.getpixel((x, 9)) for x in (5, 50)] == [(level,) * 3 for level in levels]


def _tiff(pixel: bytes, bits: tuple[int, ...], photometric: int, **tags: int) -> bytes:
    """Return a TIFF of 40 × 40 such pixels, as other programs write it."""
    names = {"planes": TiffImagePlugin.PLANAR_CONFIGURATION, "extra": TiffImagePlugin.EXTRASAMPLES}
    pixels = pixel * 1600
    planes = len(bits) if tags.get("planes") == 2 else 1
    size = len(pixels) // planes
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    directory.update({256: 40, 257: 40, 258: bits, 259: 1, 262: photometric, 278: 40})
    directory.update({273: tuple(size * at for at in range(planes)), 277: len(bits)})
    directory.update({279: (size,) * planes, 339: (tags.pop("numbers", 1),) * len(bits)})
    directory.update({names[name]: value for name, value in tags.items()})
    return b"II*\0" + struct.pack("<I", 8) + directory.tobytes(8) + pixels


@pytest.mark.parametrize(
    ("data", "message"),
    [
        pytest.param(_tiff(bytes(6), (16,) * 3, 2, planes=2), "separate planes", id="planes"),
        pytest.param(_tiff(bytes(12), (32,) * 3, 2, numbers=3), "8 or 16 bits", id="float RGB"),
        pytest.param(_tiff(bytes(6), (16,) * 3, 2, numbers=3), "whole numbers", id="half float"),
        pytest.param(_tiff(bytes(4), (16, 16), 1, extra=2), "no alpha", id="16-bit gray, alpha"),
        pytest.param(_tiff(bytes(1), (8,), 1, numbers=2), "whole numbers", id="int8"),
        pytest.param(_tiff(bytes(2), (16,), 1, numbers=2), "whole numbers", id="int16"),
    ],
)
def test_a_tiff_that_pillow_would_misread_is_refused_by_what_it_is(
    data: bytes, message: str
) -> None:
    with pytest.raises(errors.BadImage, match=message):
        codec.decode(data)


@pytest.mark.parametrize(
    "data",
    [
        _tiff(b"\x40" * 3, (8,) * 3, 2, planes=2),
        _tiff(b"\x40" * 6, (16,) * 3, 2),
        _tiff(b"\x40" * 8, (16,) * 4, 2, extra=2, planes=1),
        _tiff(b"\x40\xff", (8, 8), 1, extra=2),
        _saved(Image.new("RGB", (40, 40), (64, 64, 64)), "TIFF", big_tiff=True),
    ],
    ids=["8-bit planes", "16-bit RGB", "16-bit RGBA", "gray with alpha", "BigTIFF"],
)
def test_a_tiff_of_supported_samples_keeps_its_color(data: bytes) -> None:
    assert codec.decode(data, background="none").getpixel((9, 9)) == (64, 64, 64)


@pytest.mark.parametrize(("tag", "value"), [(50706, b"\1\4\0\0"), (254, 1)])
def test_camera_raw_is_refused_instead_of_its_small_preview(tag: int, value: Any) -> None:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[tag] = value
    if tag == 50706:
        tags.tagtype[tag] = 1
    with pytest.raises(errors.UnsupportedImage, match="Camera raw"):
        codec.decode(_saved(hostile_files.colors(), "TIFF", tiffinfo=tags))


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b'\xef\xbb\xbf <?xml version="1.0"?>\n<!-- a -->\n<svg width="3">', "SVG"),
        (b"<?xml version='1.0'?><!DOCTYPE svg PUBLIC 'x'>\n<svg:svg>", "SVG"),
        (b'<!DOCTYPE svg PUBLIC "-//W3C//DTD SVG 1.1//EN" [<!ENTITY a "b">]>\n<svg>', "SVG"),
        (b"<!-- " + b"a <b> " * 500 + b"-->\n<!-- b --><svg>", "SVG"),
        ("\ufeff<?xml version='1.0' encoding='utf-16'?><svg>".encode("utf-16-le"), "SVG"),
        ("<svg/>".encode("utf-16-be"), "SVG"),
        (gzip.compress(b"<?xml version='1.0'?>" + b" " * 9000 + b"<svg>", mtime=0), "SVG"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "Camera raw"),
        (b"FUJIFILMCCD-RAW 0201FF", "Camera raw"),
        (b"%PDF-1.7\n", "PDF"),
        (b"\n\n%PDF-1.4", "PDF"),
        (b"%!PS-Adobe-3.0", "PostScript"),
        (_saved(hostile_files.colors(), "BMP"), "BMP"),
        (b"8BPS\0\1", "Photoshop"),
        (b"\xff\x0a\xfa\x1f", "JPEG XL"),
        (_saved(hostile_files.colors(), "JPEG2000"), "JPEG 2000"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom", "Video"),
    ],
)
def test_other_formats_are_refused_by_name(data: bytes, name: str) -> None:
    with pytest.raises(
        errors.UnsupportedImage, match=f"^{name} is not supported; export"
    ) as raised:
        validation.detect_format(data)

    assert raised.value.message in validation.MESSAGES


@pytest.mark.parametrize(
    "data",
    [
        b"hello",
        b"<html><body><svg>",
        b"<!DOCTYPE html><svg>",
        b"<!-- <svg> -->",
        b"<!-- <svg>",
        b"\x1f\x8b<svg>",
        gzip.compress(b"hello", mtime=0),
        b"BM is how it begins",
        b"\0" * 50,
    ],
)
def test_what_is_no_picture_at_all_gets_the_list_of_formats(data: bytes) -> None:
    with pytest.raises(errors.UnsupportedImage):
        validation.detect_format(data)


@pytest.mark.parametrize(
    "tail", [b"<", b"<a", b"<a:", b"<" + b"a" * 60, b"%", b"\n", b"<!---->", b"<!--"]
)
def test_no_beginning_of_a_file_takes_long_to_recognize(tail: bytes) -> None:
    """An untrusted client chooses the bytes. The quadratic pattern took 27 ms."""
    data = (b" " * 400 + tail * validation.HEAD_BYTES)[: validation.HEAD_BYTES]
    times = []
    for _ in range(5):
        start = time.perf_counter()
        with pytest.raises(errors.UnsupportedImage):
            validation.detect_format(data)
        times.append(time.perf_counter() - start)

    assert min(times) < 0.003


def test_an_empty_file_is_called_empty() -> None:
    with pytest.raises(errors.BadImage, match=r"^The file is empty\.$"):
        codec.decode(b"")


def test_a_gif_with_endless_comments_is_refused() -> None:
    """Pillow copies a comment once more for each of its blocks."""
    data = _saved(hostile_files.colors(), "GIF")
    blocks = b"\xff" + bytes(255)
    start = 13 + 3 * 2 ** ((data[10] & 7) + 1)
    stuffed = data[:start] + b"\x21\xfe" + blocks * 5000 + b"\0" + data[start:]

    with pytest.raises(errors.BadImage):
        codec.decode(stuffed)
