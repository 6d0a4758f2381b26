"""The structure of a WebP file: is all there that its lengths promise? Knows no pixels and no Pillow."""

import struct

_PICTURES = (b"VP8 ", b"VP8L", b"ANMF")
_MAX_CHUNKS = 50_000


def is_complete(data: bytes) -> bool:
    """Whether the container and each of its chunks are whole and one holds a picture. What comes after is ignored."""
    end = 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        return False
    at, pictures = 12, 0
    for _ in range(_MAX_CHUNKS):
        if at >= end:
            return pictures > 0
        if at + 8 > end:
            return False
        name, length = struct.unpack_from("<4sI", data, at)
        pictures += name in _PICTURES
        at += 8 + length + length % 2
        if at > end:
            return False
    return False
