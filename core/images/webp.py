"""Check that a WebP file is as long as its chunks promise, without decoding it."""

import struct

_PICTURE_CHUNKS = (b"VP8 ", b"VP8L", b"ANMF")
_MAX_CHUNKS = 50_000


def is_complete(data: bytes) -> bool:
    """Return whether container and chunks are complete and one chunk holds a picture.

    Bytes after the end of the container are ignored.
    """
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
        pictures += name in _PICTURE_CHUNKS
        at += 8 + length + length % 2  # chunks are padded to an even length
        if at > end:
            return False
    return False
