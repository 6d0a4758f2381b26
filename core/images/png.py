"""The structure of a PNG file: is everything there that its header promises? And its texts. No pixels, no Pillow.

Pillow accepts files that were cut near their end, or that hold a few of their rows: the rest comes out black.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# x and y of the first pixel and the steps from there, for the seven passes of an interlaced file.
_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)
_AT_ONCE_BYTES = 1 << 20

_METADATA = (b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"eXIf")
MAX_METADATA_BYTES = 1 << 20
_MAX_CHUNKS = 50_000


def is_light(data: bytes) -> bool:
    """Whether texts, EXIF and profile take no more than a mebibyte, and chunks are not without number.

    To be asked before a library reads them: it copies each, one by one.
    """
    weight = 0
    for count, (name, _, length) in enumerate(_chunks(data)):
        weight += length if name in _METADATA else 0
        if weight > MAX_METADATA_BYTES or count > _MAX_CHUNKS:
            return False
    return True


def is_complete(data: bytes) -> bool:
    """Whether every critical chunk is whole, all rows are there, and the file is closed. What follows is ignored."""
    inflater, missing = zlib.decompressobj(), None
    try:
        for name, body in _critical_chunks(data):
            if name == b"IHDR":
                missing = _pixel_bytes(body)
            elif name == b"IDAT" and missing is not None and missing > 0:
                missing -= _inflated(inflater, body, missing)
            elif name == b"IEND":
                return missing is not None and missing <= 0
    except (zlib.error, struct.error, KeyError, ValueError):
        return False
    return False


def text(file: BinaryIO, keyword: str) -> str | None:
    """The text under the keyword, in an iTXt chunk without compression, as Pillow writes it; None where there is none.

    Reads the chunks' heads and that text, whatever else the file holds. Raises ValueError where the text is damaged.
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
    """Name of each chunk, and where its body begins and how long it claims to be, up to the end of picture or file."""
    at, name = 8, b""
    while at + 8 <= len(data) and name != b"IEND":
        length, name = struct.unpack_from(">I4s", data, at)
        yield name, at + 8, length
        at += 12 + length


def _critical_chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and body of each chunk that a reader must understand. Raises ValueError where one is cut or damaged."""
    for name, start, length in _chunks(data):
        if name[:1].isupper():
            body = data[start : start + length]
            (checksum,) = struct.unpack_from(">I", data, start + length)
            if zlib.crc32(name + body) != checksum:
                raise ValueError(name)
            yield name, body


def _inflated(inflater: "zlib._Decompress", body: bytes, enough: int) -> int:
    """How many bytes come out of a chunk; counts no further than `enough`, and never holds more than a megabyte."""
    count = 0
    while body and count < enough:
        count += len(inflater.decompress(body, _AT_ONCE_BYTES))
        body = inflater.unconsumed_tail
    return count


def _pixel_bytes(header: bytes) -> int:
    """Bytes of all rows, each with its filter byte, by the header."""
    width, height, depth, color, _, _, interlaced = struct.unpack(">IIBBBBB", header)
    bits = depth * _CHANNELS[color]
    total = 0
    for x, y, across, down in _ADAM7 if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - x) // across), -(-(height - y) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + -(-columns * bits // 8))
    return total
