"""Decode files to pictures, and encode pictures."""

import io
import json
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import hostile_files
import pytest
from PIL import Image, ImageChops, ImageCms, ImageStat, PngImagePlugin

from core import errors
from core.images import codec, png, validation
from core.images.codec import REDUCTION
from core.images.decoder import inspect_upload

GRADIENT = Image.linear_gradient("L").resize((64, 48))


def _colors() -> Image.Image:
    """64 x 48: red left, blue right, a green bar on top, so that every rotation is visible."""
    picture = Image.new("RGB", (64, 48), (200, 30, 30))
    picture.paste((30, 30, 200), (32, 0, 64, 48))
    picture.paste((30, 200, 30), (0, 0, 64, 12))
    return picture


def _bytes(picture: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def _near(expected: tuple[int, int, int], got: Any, tolerance: int = 12) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(expected, got, strict=True))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_each_format_is_decoded_to_rgb_with_empty_metadata(kind: str) -> None:
    got = codec.decode(_bytes(_colors(), kind))

    assert (got.mode, got.size, got.info) == ("RGB", (64, 48), {})
    assert _near((200, 30, 30), got.getpixel((8, 40)))
    assert _near((30, 30, 200), got.getpixel((56, 40)))


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _png(rows: bytes, depth: int, interlaced: int = 0) -> bytes:
    """Return a gray PNG of 40 x 40 px, written without a library."""
    head = struct.pack(">IIBBBBB", 40, 40, depth, 0, 0, 0, interlaced)
    chunks = _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _png16(gray: int) -> bytes:
    return _png((b"\0" + struct.pack(">H", gray) * 40) * 40, 16)


def _interlaced(gray: int) -> bytes:
    """Return an Adam7 PNG of one value. `passes`: columns and rows of each pass for 40 x 40."""
    passes = ((5, 5), (5, 5), (10, 5), (10, 10), (20, 10), (20, 20), (40, 20))
    return _png(
        b"".join((b"\0" + bytes([gray]) * columns) * rows for columns, rows in passes), 8, 1
    )


@pytest.mark.parametrize(
    ("data", "at", "expected"),
    [
        pytest.param(_bytes(_colors().convert("L"), "PNG"), (8, 40), (84, 84, 84), id="gray"),
        pytest.param(_bytes(_colors().convert("1"), "PNG"), (8, 4), None, id="one bit"),
        pytest.param(_bytes(_colors().convert("P"), "PNG"), (8, 40), (200, 30, 30), id="palette"),
        pytest.param(_bytes(_colors().convert("CMYK"), "JPEG"), (8, 40), (200, 30, 30), id="CMYK"),
        pytest.param(
            _bytes(_colors().convert("LA"), "PNG"), (8, 40), (84, 84, 84), id="gray with alpha"
        ),
        pytest.param(_interlaced(77), (5, 5), (77, 77, 77), id="interlaced"),
        pytest.param(_png16(0x8080), (5, 5), (128, 128, 128), id="16-bit gray, middle"),
        pytest.param(_png16(0x2000), (5, 5), (32, 32, 32), id="16-bit gray, dark"),
        pytest.param(_png16(0xFFFF), (5, 5), (255, 255, 255), id="16-bit gray, white"),
    ],
)
def test_every_mode_is_decoded_to_its_colors(
    data: bytes, at: tuple[int, int], expected: Any
) -> None:
    got = codec.decode(data)

    assert got.mode == "RGB"
    assert expected is None or _near(expected, got.getpixel(at), 30)


def test_alpha_is_composited_on_white() -> None:
    half = _colors().convert("RGBA")
    half.putalpha(Image.new("L", half.size, 128))

    assert _near((227, 142, 142), codec.decode(_bytes(half, "PNG")).getpixel((8, 40)), 3)


def _drawing(color: int, background: int = 0) -> Image.Image:
    """A square on transparency, or on what is nearly so."""
    picture = Image.new("LA", (40, 40), (color, background))
    picture.paste((color, 255), (10, 10, 30, 30))
    return picture


@pytest.mark.parametrize(
    ("color", "transparent", "expected"),
    [(255, 0, 0), (235, 0, 0), (0, 0, 255), (128, 0, 255), (255, 250, 255)],
)
def test_a_light_drawing_on_transparency_lies_on_black(
    color: int, transparent: int, expected: int
) -> None:
    """On white a white logo would disappear. A picture that is opaque everywhere stays on white."""
    decoded = codec.decode(_bytes(_drawing(color, transparent), "PNG")).convert("L")

    assert decoded.getpixel((20, 20)) == color
    assert decoded.getpixel((2, 2)) == expected


def test_a_transparent_palette_color_is_white() -> None:
    picture = Image.new("P", (40, 40), 1)
    picture.paste(0, (0, 0, 20, 40))
    picture.putpalette([0, 0, 0, 255, 0, 0] + [0] * 750)
    decoded = codec.decode(_bytes(picture, "PNG", transparency=1))

    assert [decoded.getpixel((x, 5)) for x in (5, 25)] == [(0, 0, 0), (255, 255, 255)]


def test_transparent_parts_of_a_mask_are_black() -> None:
    half = Image.new("LA", (40, 40), (255, 128))
    half.paste((255, 0), (0, 0, 20, 40))
    mask = codec.decode(_bytes(half, "PNG"), mask=True).convert("L")

    assert (mask.mode, mask.getpixel((5, 5)), mask.getpixel((35, 5))) == ("L", 0, 128)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_all_eight_orientations_are_decoded_upright(kind: str, orientation: int) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = _colors().transpose(undo[orientation]) if orientation > 1 else _colors()
    exif = Image.Exif()
    exif[0x0112] = orientation

    got = codec.decode(_bytes(stored, kind, exif=exif))

    assert got.size == (64, 48)
    assert _near((30, 200, 30), got.getpixel((32, 4)), 20)
    assert _near((200, 30, 30), got.getpixel((8, 40)), 20)


REDUCED_FILES: dict[str, dict[str, Any]] = {
    "JPEG": {"kind": "JPEG", "quality": 95},
    "JPEG, 4:4:4": {"kind": "JPEG", "quality": 95, "subsampling": 0},
    "JPEG, progressive": {"kind": "JPEG", "quality": 95, "progressive": True},
    "MPO": {"kind": "MPO", "quality": 95, "save_all": True},
    "PNG": {"kind": "PNG"},
    "WebP": {"kind": "WEBP", "quality": 95},
}


@pytest.mark.parametrize("file", REDUCED_FILES)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_large_picture_is_reduced_by_what_divides_its_sides(file: str, mode: str) -> None:
    options = dict(REDUCED_FILES[file])
    if mode == "CMYK" and not file.startswith("JPEG"):
        pytest.skip("the format has no CMYK")
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = _colors().resize((640, 480), Image.Resampling.BICUBIC).convert(mode)
    data = _bytes(picture, options.pop("kind"), exif=exif, **options)
    whole = codec.decode(data)
    sizes = {
        None: (480, 640),
        240: (240, 320),
        239: (240, 320),
        241: (480, 640),
        120: (120, 160),
        9: (60, 80),
    }

    assert REDUCTION not in whole.info
    for min_side_px, size in sizes.items():
        got = codec.decode(data, min_side_px=min_side_px)
        reduction = 480 // size[0]
        assert (got.size, got.info.get(REDUCTION, 1)) == (size, reduction), min_side_px
        difference = ImageChops.difference(got, whole.reduce(reduction))
        assert max(ImageStat.Stat(difference).mean) < 1


@pytest.mark.parametrize(
    ("size", "reduced"), [((642, 480), (321, 240)), ((640, 482), (320, 241)), ((641, 480), None)]
)
def test_the_proportions_of_a_picture_are_never_reduced(
    size: tuple[int, int], reduced: tuple[int, int] | None
) -> None:
    """They set the size of the result."""
    for kind in ("JPEG", "PNG"):
        data = _bytes(Image.new("RGB", size), kind)
        assert codec.decode(data, min_side_px=9).size == (reduced or size)


def test_a_transparent_picture_is_not_reduced() -> None:
    data = _bytes(Image.new("RGBA", (640, 480), (200, 30, 30, 100)), "PNG")
    for options in ({}, {"keep_alpha": True}, {"mask": True}):
        got = codec.decode(data, min_side_px=9, **options)
        assert (got.size, got.info) == ((640, 480), {})


def test_a_jpeg_with_a_missing_part_is_refused_also_where_it_would_be_reduced() -> None:
    data = _bytes(Image.effect_noise((640, 480), 90).convert("RGB"), "JPEG")
    with pytest.raises(errors.BadImage):
        codec.decode(data[: len(data) // 2] + b"\xff\xd9", min_side_px=9)


@pytest.mark.parametrize("mode", ["RGB", "I;16"])
def test_an_orientation_behind_the_pixels_of_a_png_counts(mode: str) -> None:
    """Editors that add metadata append the chunk."""
    exif = Image.Exif()
    exif[0x0112] = 6
    data = _bytes(Image.new(mode, (64, 48)), "PNG", exif=exif)
    start = data.index(b"eXIf") - 4
    length = 12 + int.from_bytes(data[start : start + 4])
    chunk, rest = data[start : start + length], data[:start] + data[start + length :]
    end = rest.index(b"IEND") - 4

    assert codec.decode(rest[:end] + chunk + rest[end:]).size == (48, 64)


def test_broken_exif_is_ignored() -> None:
    assert codec.decode(_bytes(_colors(), "JPEG", exif=b"Exif\0\0garbage")).size == (64, 48)


def test_a_profile_is_converted_to_srgb() -> None:
    """A profile that is sRGB with red and blue exchanged turns red into blue."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exchanged = srgb.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")

    got = codec.decode(_bytes(_colors(), "PNG", icc_profile=exchanged))

    assert _near((30, 30, 200), got.getpixel((8, 40)), 3)


@pytest.mark.parametrize(
    "profile", [b"no profile", ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()]
)
def test_an_unusable_profile_is_ignored(profile: bytes) -> None:
    assert codec.decode(_bytes(_colors(), "PNG", icc_profile=profile)).getpixel((8, 40)) == (
        200,
        30,
        30,
    )


def test_only_the_first_frame_is_decoded() -> None:
    frames = [Image.new("RGB", (40, 40), color) for color in ("red", "blue")]
    data = _bytes(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)

    assert codec.decode(data).getpixel((5, 5)) == (255, 0, 0)


def _png_claiming(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and holds almost no pixels."""
    data = bytearray(_png16(0))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        pytest.param(b"", errors.BadImage, id="empty"),
        pytest.param(b"<html>", errors.UnsupportedImage, id="html"),
        pytest.param(_bytes(_colors(), "BMP"), errors.UnsupportedImage, id="bmp"),
        pytest.param(_bytes(_colors(), "JPEG")[:400], errors.BadImage, id="cut JPEG"),
        pytest.param(_bytes(_colors(), "PNG")[:-40], errors.BadImage, id="cut PNG"),
        pytest.param(_bytes(_colors(), "WEBP")[:-20], errors.BadImage, id="cut WebP"),
        pytest.param(_png((b"\0" + b"x" * 40) * 39, 8), errors.BadImage, id="a row short"),
        pytest.param(_interlaced(7)[:-16] + b"\0" * 16, errors.BadImage, id="bad end"),
        pytest.param(b"\xff\xd8\xff" + b"\0" * 50, errors.BadImage, id="JPEG's first bytes only"),
        pytest.param(_png_claiming(20_000, 20_000), errors.ImageTooLarge, id="400 megapixels"),
        pytest.param(_png_claiming(9_000, 9_000), errors.ImageTooLarge, id="81 megapixels"),
        pytest.param(_png_claiming(12_001, 1_000), errors.ImageTooLarge, id="12,001 px"),
        pytest.param(_png_claiming(31, 400), errors.BadImage, id="31 px"),
        pytest.param(_png_claiming(40, 801), errors.BadImage, id="20 times as long"),
        pytest.param(
            b"\x89PNG\r\n\x1a\n" + b"\0" * validation.MAX_BYTES, errors.UploadTooLarge, id="20 MB"
        ),
        pytest.param(_png_claiming(40, 40)[:16] + b"\0" * 40, errors.BadImage, id="no head"),
    ],
)
def test_a_bad_file_is_refused(
    tmp_path: Path, data: bytes, error: type[errors.ImpastoError]
) -> None:
    """With the same refusal in this process and in a sandboxed one."""
    (tmp_path / "upload").write_bytes(data)
    with pytest.raises(error) as here:
        codec.decode(data)
    with pytest.raises(error) as sandboxed:
        inspect_upload(tmp_path / "upload")

    assert type(here.value) is type(sandboxed.value) is error
    assert sandboxed.value.message == here.value.message


@pytest.mark.parametrize("name", sorted(hostile_files.encodings()))
def test_a_truncated_file_is_refused_and_one_with_trailing_bytes_is_not(
    name: str,
) -> None:
    """Thumbnails, comments and second pictures contain end markers that are not the file's."""
    whole = hostile_files.encodings()[name]
    assert (
        codec.decode(whole)
        == codec.decode(whole + b"<script>\xff\xd9IEND")
        == codec.decode(whole + bytes(999))
    )

    needed = hostile_files.needed_bytes(whole)
    for end in range(needed, len(whole)):
        assert codec.decode(whole[:end]) == codec.decode(whole)
    for end in range(needed):
        # Outside of tests, Pillow's warnings are no errors.
        quiet = warnings.catch_warnings(action="ignore", category=UserWarning)
        with quiet, pytest.raises(errors.BadImage):
            codec.decode(whole[:end])


@pytest.mark.parametrize("name", sorted(hostile_files.canaries()))
def test_no_metadata_of_a_file_reaches_a_result(name: str) -> None:
    """Also not a preview, in any format, from any place in the file."""
    data = hostile_files.canaries()[name]
    assert hostile_files.CANARY in data
    picture = codec.decode(data)

    for kind in validation.FORMATS:
        for seen in (picture, codec.thumbnail(picture, 40)):
            encoded = codec.encode(seen, kind, {"spec": {}})
            assert hostile_files.CANARY not in encoded
            assert {
                "impasto",
                "jfif",
                "jfif_version",
                "jfif_unit",
                "jfif_density",
                "loop",
                "background",
            } >= {*Image.open(io.BytesIO(encoded)).info} - {"timestamp", "duration"}


def test_texts_are_accepted_up_to_a_mebibyte() -> None:
    def stuffed(count: int) -> bytes:
        return hostile_files.png(
            40, 40, 8, 2, hostile_files.chunk(b"tEXt", b"a\0" + bytes(98)) * count
        )

    assert codec.decode(stuffed(png.MAX_METADATA_BYTES // 100)).size == (40, 40)
    with pytest.raises(errors.BadImage, match="too much text"):
        codec.decode(stuffed(png.MAX_METADATA_BYTES // 100 + 1))


def test_a_png_with_a_damaged_chunk_is_refused_and_one_with_trailing_bytes_is_not() -> None:
    whole = _bytes(_colors(), "PNG")
    data = bytearray(whole)
    data[whole.index(b"IDAT") + 30] ^= 1

    with pytest.raises(errors.BadImage):
        codec.decode(bytes(data))
    assert codec.decode(whole + b"<script>").size == (64, 48)


@pytest.mark.parametrize(("kind", "pillow"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_an_encoded_picture_has_its_format_and_decodes_to_the_same_colors(
    kind: validation.Format, pillow: str
) -> None:
    data = codec.encode(_colors(), kind)

    assert validation.detect_format(data) == kind
    assert _near((200, 30, 30), codec.decode(data).getpixel((8, 40)), 6)


def test_a_png_stores_its_provenance_and_no_metadata_of_the_inputs() -> None:
    secret = PngImagePlugin.PngInfo()
    secret.add_text("Comment", "canary")
    exif = Image.Exif()
    exif[0x010E] = "canary"
    source = codec.decode(_bytes(_colors(), "PNG", pnginfo=secret, exif=exif))
    jpeg = codec.decode(_bytes(_colors(), "JPEG", comment=b"canary", exif=exif))

    data = codec.encode(source, "png", {"spec": {"size": 64}, "model": "é"})

    assert codec.read_provenance(data) == {"spec": {"size": 64}, "model": "é"}
    assert not any(
        b"canary" in codec.encode(picture, kind)
        for picture in (source, jpeg)
        for kind in validation.FORMATS
    )
    assert codec.read_provenance(codec.encode(source)) is None
    assert json.dumps({"size": 64}).encode() in data


def test_a_result_may_be_larger_than_an_upload(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = codec.encode(Image.effect_noise((200, 100), 50).convert("RGB"))
    monkeypatch.setattr(validation, "MAX_BYTES", len(data) - 1)
    monkeypatch.setattr(validation, "MAX_SIDE_PX", 150)
    with pytest.raises(errors.UploadTooLarge):
        codec.decode(data)

    assert codec.decode(data, any_size=True).size == (200, 100)
