"""Hostile picture files, and some that only look hostile, each with the answer that it must get.

The numbers I1 to I15 are kinds of threat:

    I1   oversize                                    I9   several frames
    I2   cheap to send, expensive to decode          I10  orientation
    I3   within the limits, but expensive            I11  color profiles
    I4   excessive metadata                          I12  other formats
    I5   polyglots                                   I13  wrong labels
    I6   truncated or damaged                        I14  all of these as a style
    I7   odd shapes                                  I15  files that crash or take over the decoder
    I8   odd modes
"""

import io
import random
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageCms

OK = (201, "")
BAD, TOO_LARGE = (422, "bad_image"), (422, "image_too_large")
OTHER, TOO_MANY_BYTES = (415, "unsupported_image"), (413, "upload_too_large")

CANARY = b"canary-7f3a"
HEIC = Path(__file__).with_name("heic")


@dataclass(frozen=True)
class File:
    """A file, its name and type in the form, and the (status, code) that it must get."""

    name: str
    data: bytes
    verdict: tuple[int, str]
    filename: str = "x.jpg"
    label: str = "image/jpeg"


def saved(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """Return the picture as a file that Pillow writes."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    """Return one chunk of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(
    width: int, height: int, depth: int, color: int, *before: bytes, rows: int | None = None
) -> bytes:
    """Return a PNG written without a library: black, or opaque white if it has an alpha.

    before: chunks before the pixels. rows: the rows that it holds, if not all.
    """
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    row = b"\0" + bytes([255 * (color in (4, 6))]) * -(-width * depth * channels // 8)
    deflater = zlib.compressobj()
    pixels = [deflater.compress(row) for _ in range(height if rows is None else rows)]
    body = b"".join([*pixels, deflater.flush()])
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0))
    palette = chunk(b"PLTE", bytes(768)) if color == 3 else b""
    return (
        b"\x89PNG\r\n\x1a\n"
        + head
        + b"".join(before)
        + palette
        + chunk(b"IDAT", body)
        + chunk(b"IEND", b"")
    )


def png_claiming(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and holds one pixel."""
    data = bytearray(png(1, 1, 8, 2))
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    return bytes(data)


def jpeg_claiming(width: int, height: int) -> bytes:
    """Return a small JPEG whose frame header claims another size."""
    data = bytearray(saved(colors(), "JPEG"))
    frame = data.index(b"\xff\xc0")
    data[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def webp_claiming(width: int, height: int) -> bytes:
    """Return 34 bytes of lossless WebP that claim a size."""
    bits = (width - 1) | (height - 1) << 14
    body = b"\x2f" + struct.pack("<I", bits) + bytes.fromhex("07501114fdcf01a2ff01")[:9]
    return webp((b"VP8L", body))


def webp(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return a WebP container with these chunks."""
    body = b"".join(
        name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
        for name, data in chunks
    )
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def segment(marker: int, body: bytes) -> bytes:
    """Return one segment of a JPEG."""
    return struct.pack(">BBH", 0xFF, marker, 2 + len(body)) + body


def jpeg_with(*segments: bytes, **options: Any) -> bytes:
    """Return a small JPEG with more segments after its start."""
    data = saved(colors(), "JPEG", **options)
    return data[:2] + b"".join(segments) + data[2:]


def jpeg_of_many_scans(scans: int, side_px: int) -> bytes:
    """Return a progressive JPEG that repeats a scan.

    Each scan makes the decoder pass over the whole picture once more.
    """
    data = saved(Image.new("RGB", (side_px, side_px), "gray"), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * scans + b"\xff\xd9"


def colors() -> Image.Image:
    """Return a picture of 64 x 48 px in three colors."""
    picture = Image.new("RGB", (64, 48), (200, 30, 30))
    picture.paste((30, 30, 200), (32, 0, 64, 48))
    picture.paste((30, 200, 30), (0, 0, 64, 12))
    return picture


def noise(seed: int, side_px: int = 48) -> Image.Image:
    """Return a picture of many values, so that damage to its bytes matters."""
    return Image.frombytes(
        "RGB", (side_px, side_px), random.Random(seed).randbytes(3 * side_px**2)
    ).resize((64, 64))


def _profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def encodings() -> dict[str, bytes]:
    """Return good files of every encoding, small enough to truncate at every byte."""
    picture, second = colors(), colors().rotate(180)
    alpha = picture.convert("RGBA")
    alpha.putalpha(Image.linear_gradient("L").resize(alpha.size))
    exif = Image.Exif()
    exif[0x0112] = 6
    # A thumbnail has an end marker of its own inside a segment.
    thumbnail = b"Exif\0\0" + saved(picture.resize((16, 12)), "JPEG")
    jpegs = {
        "baseline": {},
        "progressive": {"progressive": True},
        "restarts": {"restart_marker_blocks": 2},
        "restarts, progressive": {"restart_marker_rows": 1, "progressive": True},
        "4:4:4": {"subsampling": 0},
        "4:2:2": {"subsampling": 1},
        "thumbnail": {"exif": thumbnail},
        "comment with an end marker": {"comment": b"\xff\xd9"},
        "profile": {"icc_profile": _profile()},
        "optimized": {"optimize": True},
    }
    found = {f"JPEG {name}": saved(picture, "JPEG", **options) for name, options in jpegs.items()}
    found |= {f"JPEG {mode}": saved(picture.convert(mode), "JPEG") for mode in ("L", "CMYK")}
    found["JPEG progressive CMYK"] = saved(picture.convert("CMYK"), "JPEG", progressive=True)
    webps: dict[str, dict[str, Any]] = {
        "lossy": {},
        "lossless": {"lossless": True},
        "EXIF": {"exif": exif},
        "profile": {"icc_profile": _profile()},
        "animated": {"save_all": True, "append_images": [second]},
        "animated lossless": {"save_all": True, "append_images": [second], "lossless": True},
    }
    found |= {f"WebP {name}": saved(picture, "WEBP", **options) for name, options in webps.items()}
    found |= {
        f"WebP alpha {lossless}": saved(alpha, "WEBP", lossless=lossless)
        for lossless in (False, True)
    }
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        source = Image.new("I;16", picture.size, 3000) if mode == "I;16" else alpha.convert(mode)
        found[f"PNG {mode}"] = saved(source, "PNG")
    found["PNG animated"] = saved(picture, "PNG", save_all=True, append_images=[second])
    found |= {
        f"PNG {depth} bit, type {color}": png(40, 40, depth, color)
        for depth, color in ((16, 6), (16, 2), (2, 3))
    }
    found["PNG interlaced"] = interlaced()
    for path in sorted(HEIC.glob("small-*.heic")):  # nothing that the project uses can write them
        found[path.stem.replace("small-", "HEIC ")] = path.read_bytes()
    more: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "AVIF": (picture, "AVIF", {}),
        "AVIF alpha": (alpha, "AVIF", {}),
        "AVIF animated": (picture, "AVIF", {"save_all": True, "append_images": [second]}),
        "TIFF LZW": (picture, "TIFF", {"compression": "tiff_lzw"}),
        "TIFF deflate": (alpha, "TIFF", {"compression": "tiff_deflate"}),
        "TIFF JPEG": (picture, "TIFF", {"compression": "jpeg"}),
        "TIFF CMYK": (picture.convert("CMYK"), "TIFF", {"compression": "tiff_lzw"}),
        "TIFF 16 bit": (Image.new("I;16", picture.size, 30_000), "TIFF", {"compression": "zstd"}),
        "GIF": (picture, "GIF", {}),
        "GIF alpha": (alpha, "GIF", {}),
        "GIF animated": (picture, "GIF", {"save_all": True, "append_images": [second]}),
    }
    return found | {name: saved(*parts[:2], **parts[2]) for name, parts in more.items()}


def needed_bytes(data: bytes) -> int:
    """Return how many bytes one of `encodings` needs. A GIF needs those of its first picture."""
    if not data.startswith(b"GIF"):
        return len(data)
    with Image.open(io.BytesIO(data)) as image:
        frames: int = image.n_frames  # type: ignore[attr-defined]
    return len(data) - 1 if frames == 1 else data.rindex(b"\0!\xf9\x04") + 1


def interlaced() -> bytes:
    """Return a gray PNG of 40 x 40 px in the seven passes of Adam7, which Pillow cannot write."""
    passes = ((5, 5), (5, 5), (10, 5), (10, 10), (20, 10), (20, 20), (40, 20))
    rows = b"".join((b"\0" + bytes([77]) * columns) * count for columns, count in passes)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 40, 40, 8, 0, 0, 0, 1))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def canaries() -> dict[str, bytes]:
    """Return good files with a canary in every place that can hold metadata."""
    text, profile = CANARY.decode(), _profile()[:-20] + CANARY + b"\0" * 9
    exif = Image.Exif()
    exif[0x010E] = exif[0x013B] = text
    xmp = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'>" + CANARY + b"</x:xmpmeta>"
    both = {"exif": exif, "icc_profile": profile}
    code = b"<?php " + CANARY + b" ?><script>" + CANARY + b"</script>"
    plain = png(64, 48, 8, 2, chunk(b"tEXt", b"Comment\0" + CANARY))
    compressed = zlib.compress(CANARY)
    more = (
        chunk(b"tEXt", b"Comment\0" + CANARY),
        chunk(b"zTXt", b"Title\0\0" + compressed),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        chunk(b"iTXt", b"Author\0\1\0\0\0" + compressed),
        chunk(b"eXIf", exif.tobytes()),
        chunk(b"iCCP", b"icc\0\0" + zlib.compress(profile)),
        chunk(b"caNa", CANARY),
        chunk(b"tIME", b"\x07\xea\1\1\1\1\1"),
    )
    jpeg_segments = (
        segment(0xFE, code),
        segment(0xE5, CANARY),
        segment(0xED, b"Photoshop 3.0\0" + CANARY),
    )
    return {
        "JPEG": jpeg_with(*jpeg_segments, xmp=xmp, **both) + code,
        "JPEG, a second picture after the end": saved(colors(), "JPEG") + jpeg_with(*jpeg_segments),
        "PNG": png(64, 48, 8, 2, *more) + code,
        "PNG tEXt": plain + code,
        "WebP": saved(colors(), "WEBP", xmp=xmp, **both) + code,
        "WebP lossless": saved(colors(), "WEBP", lossless=True, xmp=xmp, **both) + code,
        "HEIC": (HEIC / "small-exif.heic").read_bytes() + code,
        "AVIF": saved(colors(), "AVIF", xmp=xmp, **both) + code,
        "TIFF": saved(colors(), "TIFF", description=text, artist=text, icc_profile=profile) + code,
        "GIF": saved(colors(), "GIF", comment=CANARY) + code,
    }


def pinned(heavy: bool = True) -> Iterator[File]:
    """Yield all files. The `heavy` ones take seconds to create or to decode."""
    yield from _oversize()
    yield from _stuffed()
    yield from _harmless()
    yield from _cut_and_odd()
    yield from _other_formats()
    yield from _attacks_on_the_decoder()
    if heavy:
        yield from _heavy()


def _oversize() -> Iterator[File]:
    yield File("I1 PNG of 20,000 px, 1 bit", png(20_000, 20_000, 1, 0), TOO_LARGE)
    for side in (2**31 - 1, 65_536, 12_001):
        yield File(f"I1 PNG claiming {side}", png_claiming(side, side), TOO_LARGE)
    yield File("I1 PNG claiming 2^32-1", png_claiming(2**32 - 1, 2**32 - 1), TOO_LARGE)
    yield File("I1 JPEG claiming 65,535", jpeg_claiming(65_535, 65_535), TOO_LARGE)
    for side in (16_383, 7_000):
        yield File(f"I2 WebP claiming {side}", webp_claiming(side, side), TOO_LARGE)
    yield File("I3 more than 20 MB", b"\xff\xd8\xff" + bytes(20_000_000), TOO_MANY_BYTES)


def _stuffed() -> Iterator[File]:
    bomb = zlib.compress(bytes(200_000_000), 9)
    yield File("I4 zTXt of 200 MB", png(40, 40, 8, 2, chunk(b"zTXt", b"Comment\0\0" + bomb)), BAD)
    yield File(
        "I4 iTXt of 200 MB", png(40, 40, 8, 2, chunk(b"iTXt", b"Comment\0\1\0\0\0" + bomb)), BAD
    )
    yield File("I4 iCCP of 200 MB", png(40, 40, 8, 2, chunk(b"iCCP", b"icc\0\0" + bomb)), BAD)
    yield File("I4 100,000 tEXt", png(40, 40, 8, 2, chunk(b"tEXt", b"a\0b") * 100_000), BAD)
    yield File(
        "I4 1.5 MB of tEXt", png(40, 40, 8, 2, chunk(b"tEXt", b"a\0" + bytes(50_000)) * 30), BAD
    )
    yield File(
        "I4 1.5 million empty chunks", png(40, 40, 8, 2, chunk(b"caNa", b"") * 1_500_000), BAD
    )
    yield File("I4 4.9 million empty segments", jpeg_with(segment(0xE0, b"") * 4_900_000), BAD)
    yield File("I4 2.4 million empty chunks of WebP", webp(*[(b"XXXX", b"")] * 2_400_000), BAD)
    yield File("I4 1,000 scans", jpeg_of_many_scans(1000, 64), BAD)


def _harmless() -> Iterator[File]:
    trailers = {
        "HTML": b"<script>alert(1)</script>",
        "ZIP": b"PK\x05\x06" + bytes(18),
        "PDF": b"%PDF-1.4\n%%EOF",
    }
    for kind in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "GIF"):
        for what, trailer in trailers.items():
            yield File(f"I5 {kind} + {what}", saved(colors(), kind) + trailer, OK)
    yield File(
        "I5 PHP in a comment", jpeg_with(segment(0xFE, b"<?php system('id') ?>")), OK, "x.php.jpg"
    )
    for name, data in canaries().items():
        yield File(f"I5 canaries in {name}", data, OK)
    for name, data in encodings().items():
        yield File(f"I8 {name}", data, OK)
    phone = saved(colors(), "MPO", save_all=True, append_images=[colors().rotate(180)])
    yield File("I9 MPO", phone, OK)
    yield File("I9 padding after the end", saved(colors(), "JPEG") + bytes(4096), OK)
    yield File("I9 junk between segments", jpeg_with(segment(0xE1, b""), b"\0\0\xff\0junk"), OK)
    many = {"save_all": True, "append_images": [colors()] * 300, "duration": 10}
    yield File("I9 300 frames of WebP", saved(colors(), "WEBP", **many), OK)
    yield File(
        "I9 claims 2^31 frames",
        png(40, 40, 8, 2, chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
        OK,
    )
    for orientation in range(9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for kind in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF"):
            yield File(
                f"I10 {kind} orientation {orientation}", saved(colors(), kind, exif=exif), OK
            )
    for name, broken in {
        "garbage": b"garbage",
        "a loop": b"II*\0\x08\0\0\0\1\0\x69\x87\4\0\1\0\0\0\x08\0\0\0",
    }.items():
        yield File(f"I10 EXIF is {name}", saved(colors(), "JPEG", exif=b"Exif\0\0" + broken), OK)
    profiles = {
        "text": b"no profile",
        "cut": _profile()[:200],
        "400 KB": _profile() + bytes(400_000),
    }
    profiles["LAB"] = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for name, profile in profiles.items():
        for kind in ("JPEG", "PNG", "WEBP", "AVIF", "TIFF"):
            yield File(
                f"I11 {kind}, profile: {name}", saved(colors(), kind, icc_profile=profile), OK
            )


def _cut_and_odd() -> Iterator[File]:
    for name, data in encodings().items():
        for cut in (1, 2, 3, 5, 13, len(data) // 2, len(data) - 20):
            expected = BAD if len(data) - cut < needed_bytes(data) else OK
            yield File(f"I6 {name}, {cut} bytes cut", data[:-cut], expected)
    yield File("I6 PNG of one row", png(700, 700, 8, 2, rows=1), BAD)
    damaged = bytearray(saved(colors(), "PNG"))
    damaged[damaged.index(b"IDAT") + 20] ^= 1
    yield File("I6 PNG with a wrong checksum", bytes(damaged), BAD)
    for width, height in ((1, 1), (2, 1), (31, 400), (193, 11_000)):
        yield File(f"I7 {width} x {height}", png(width, height, 8, 0), BAD)
    for width, height in ((1, 60_000), (60_000, 1)):
        yield File(f"I7 {width} x {height}", png(width, height, 8, 0), TOO_LARGE)


def _other_formats() -> Iterator[File]:
    for kind in ("BMP", "ICO", "PPM", "TGA", "EPS", "PDF"):
        yield File(f"I12 {kind}", saved(colors(), kind), OTHER)
    texts = {
        "PostScript": b"%!PS\n(%pipe%id) (r) file",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://127.0.0.1:1/"/></svg>',
        "MVG": b"push graphic-context\nfill 'url(https://127.0.0.1/\"|id\")'",
        "XML": b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;</a>',
        "WMF": b"\xd7\xcd\xc6\x9a" + bytes(60),
        "HTML": b"<html><script>alert(1)</script>",
        "one byte": b"\xff",
    }
    for name, data in texts.items():
        yield File(f"I13 {name}", data, OTHER, label="image/png")
    yield File("I13 nothing", b"", BAD, label="image/png")
    for filename in ("../../etc/passwd", "x.jpg%00.php", "con", "x" * 3000, "\u202egpj.exe"):
        yield File(
            f"I13 called {filename[:20]!r}", saved(colors(), "PNG"), OK, filename, "text/html"
        )


def _attacks_on_the_decoder() -> Iterator[File]:
    """Yield files with words on which the code injected by hostile_pictures.py acts."""
    for word in ("TAKE OVER", "CRASH", "EAT"):
        yield File(f"I15 {word}", jpeg_with(segment(0xFE, word.encode())), BAD)


def _heavy() -> Iterator[File]:
    yield File(
        "I3 CMYK progressive of 39 MP",
        saved(Image.new("CMYK", (6300, 6300)), "JPEG", progressive=True),
        OK,
    )
    yield File("I3 16-bit RGBA of 39 MP", png(6300, 6300, 16, 6), OK)
    plain = Image.new("RGB", (6300, 6300), "teal")
    yield File("I3 HEIC of 39 MP", (HEIC / "large.heic").read_bytes(), OK)
    yield File("I3 AVIF of 39 MP", saved(plain, "AVIF", speed=10), OK)
    yield File("I3 TIFF of 39 MP", saved(plain, "TIFF", compression="tiff_lzw"), OK)
    yield File("I3 GIF of 39 MP", saved(plain.convert("P"), "GIF"), OK)
    yield File(
        "I3 lossless WebP of 25 MP",
        saved(Image.new("RGB", (5000, 5000)), "WEBP", lossless=True),
        OK,
    )
    yield File("I3 90 scans of 39 MP", jpeg_of_many_scans(90, 6300), OK)
    yield File("I15 LOOP", jpeg_with(segment(0xFE, b"LOOP")), BAD)


def mutant(random_: random.Random, sources: list[bytes]) -> bytes:
    """Return a good file with one kind of damage.

    Flipped bits, an end or a middle cut out, the end of another file, overwritten bytes, or blocks
    in another order.
    """
    data = bytearray(random_.choice(sources))
    way = random_.randrange(6)
    if way == 0:
        for _ in range(random_.choice((1, 1, 2, 8, 64))):
            data[random_.randrange(len(data))] ^= 1 << random_.randrange(8)
    elif way == 1:
        del data[random_.randrange(len(data)) :]
    elif way == 2:
        start = random_.randrange(len(data))
        del data[start : start + random_.choice((1, 2, 4, 64, 512))]
    elif way == 3:
        other, at = random_.choice(sources), random_.randrange(len(data))
        data = data[:at] + other[random_.randrange(len(other)) :]
    elif way == 4:
        at, length = random_.randrange(len(data)), random_.choice((1, 2, 4, 8))
        data[at : at + length] = random_.choice((b"\0", b"\xff", b"\x7f", b"\x80")) * length
    else:
        first, second = sorted(random_.sample(range(8, len(data)), 2))
        data = data[:8] + data[second:] + data[first:second] + data[8:first]
    return bytes(data)
