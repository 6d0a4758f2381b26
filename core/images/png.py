"""Check that a PNG file is complete and bounds its metadata; read one text. Needs no Pillow.

Pillow accepts files that are truncated near their end or that hold only some of their rows. It
fills the rest with black.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by the header's color type
# The seven passes of an interlaced file: x and y of the first pixel, and the steps in x and y.
_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
_INFLATE_CHUNK_BYTES = 1 << 20

_METADATA = (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf")
MAX_METADATA_BYTES = 1 << 20
_MAX_CHUNKS = 50_000
_HEADER_CHUNKS = (b"IHDR", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"cICP")


def has_bounded_metadata(data: bytes) -> bool:
    """Return whether texts, EXIF and profile take at most a mebibyte, in at most 50,000 chunks.

    Check this before a library parses the file: it copies each chunk, one by one.
    """
    metadata_bytes = 0
    for count, (name, _, length) in enumerate(_chunks(data)):
        if name in _METADATA:
            metadata_bytes += length
        if metadata_bytes > MAX_METADATA_BYTES or count > _MAX_CHUNKS:
            return False
    return True


def is_complete(data: bytes) -> bool:
    """Return whether all critical chunks are intact, all rows are there, and IEND closes the file.

    Bytes after IEND are ignored. The cost is that of inflating the pixels that the header promises.
    """
    inflater, missing = zlib.decompressobj(), None
    try:
        for name, body in _critical_chunks(data):
            if name == b"IHDR":
                missing = _expected_pixel_bytes(body)
            elif name == b"IDAT" and missing is not None and missing > 0:
                missing -= _count_inflated_bytes(inflater, body, missing)
            elif name == b"IEND":
                return missing is not None and missing <= 0
    except (zlib.error, struct.error, KeyError, ValueError):
        return False
    return False


class Header(NamedTuple):
    """How the samples of a file are to be read. Bodies of chunks are None without the chunk."""

    depth: int  # bits of a sample
    color_type: int
    transparent: bytes | None  # tRNS
    gamma: bytes | None  # gAMA
    chromaticities: bytes | None  # cHRM
    srgb: bytes | None  # sRGB
    code_points: bytes | None  # cICP


def read_header(data: bytes) -> Header:
    """Return what precedes the pixels. Raises struct.error for a file without IHDR."""
    chunks: dict[bytes, bytes] = {}
    for name, start, length in _chunks(data):
        if name == b"IDAT":
            break
        chunks.setdefault(name, data[start : start + length] if name in _HEADER_CHUNKS else b"")
    depth, color_type = struct.unpack_from(">8xBB", chunks.get(b"IHDR", b""))
    names = (b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"cICP")
    return Header(depth, color_type, *map(chunks.get, names))


def read_text(file: BinaryIO, keyword: str) -> str | None:
    """Return the text of an uncompressed iTXt chunk, as Pillow writes it; None if there is none.

    Reads only the chunks' headers and that text, however large the file is. Raises ValueError if
    the text is damaged.
    """
    if file.read(8) != _SIGNATURE:
        return None
    for _ in range(_MAX_CHUNKS):
        head = file.read(8)
        if len(head) < 8 or head[4:] == b"IEND":
            return None
        length = int.from_bytes(head[:4])
        if head[4:] == b"iTXt" and length <= MAX_METADATA_BYTES:
            body, checksum = file.read(length), file.read(4)
            name, _, rest = body.partition(b"\0")
            if name == keyword.encode("latin-1"):
                if rest[:2] != b"\0\0" or zlib.crc32(head[4:] + body).to_bytes(4) != checksum:
                    raise ValueError(name)
                return rest[2:].split(b"\0", 2)[-1].decode("utf-8")
        else:
            file.seek(length + 4, io.SEEK_CUR)
    return None


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, start of body, claimed length) of each chunk, up to IEND or the file's end."""
    at, name = 8, b""
    while at + 8 <= len(data) and name != b"IEND":
        length, name = struct.unpack_from(">I4s", data, at)
        yield name, at + 8, length
        at += 12 + length


def _critical_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (name, body) of each chunk that a decoder must understand.

    Raises ValueError if one is truncated or its checksum is wrong.
    """
    for name, start, length in _chunks(data):
        if name[:1].isupper():  # PNG marks critical chunks by a capital first letter
            body = data[start : start + length]
            (checksum,) = struct.unpack_from(">I", data, start + length)
            if zlib.crc32(name + body) != checksum:
                raise ValueError(name)
            yield name, body


def _count_inflated_bytes(inflater: "zlib._Decompress", body: bytes, enough: int) -> int:
    """Count the bytes that a chunk inflates to, up to `enough`. Holds at most a mebibyte."""
    count = 0
    while body and count < enough:
        count += len(inflater.decompress(body, _INFLATE_CHUNK_BYTES))
        body = inflater.unconsumed_tail
    return count


def _expected_pixel_bytes(header: bytes) -> int:
    """Return the bytes of all rows, each with its filter byte, that an IHDR chunk promises."""
    width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * _CHANNELS[color]
    total = 0
    for x, y, x_step, y_step in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - x) // x_step), -(-(height - y) // y_step)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total
