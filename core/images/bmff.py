"""Check that a HEIC or AVIF file (ISO/IEC 14496-12) is complete; read its nclx. Decodes nothing."""

import struct
from collections.abc import Iterator

_AVIF_BRANDS = (b"avif", b"avis")
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_MAX_BOXES = 10_000


def is_avif(data: bytes) -> bool:
    """Return whether the first bytes of a file claim that it is AVIF."""
    return any(brand in _AVIF_BRANDS for brand in _read_brands(data))


def is_heic(data: bytes) -> bool:
    """Return whether the first bytes of a file claim that it is HEIC or another HEIF."""
    return any(brand in _HEIC_BRANDS for brand in _read_brands(data))


def is_complete(data: bytes) -> bool:
    """Return whether all boxes are complete, and one describes the pictures."""
    names = []
    for name, start, end in _read_boxes(data):
        if not start <= end <= len(data):
            return False
        names.append(name)
    return b"meta" in names or b"moov" in names


def read_code_points(data: bytes) -> tuple[int, int] | None:
    """Return the color primaries and the transfer of ITU-T H.273 that the file names."""
    at = data.find(b"colrnclx")
    if at < 0 or at + 12 > len(data):
        return None
    primaries, transfer = struct.unpack_from(">HH", data, at + 8)
    return primaries, transfer


def _read_brands(data: bytes) -> list[bytes]:
    if data[4:8] != b"ftyp":
        return []
    end = min(int.from_bytes(data[:4]), len(data))
    return [data[8:12], *(data[at : at + 4] for at in range(16, end, 4))]


def _read_boxes(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield (name, start of body, claimed end) of each box, up to bytes that are no box."""
    at = 0
    for _ in range(_MAX_BOXES):
        size, name = int.from_bytes(data[at : at + 4]), data[at + 4 : at + 8]
        if not (len(name) == 4 and name.isalnum() and size):
            return
        body = at + 8
        if size == 1:
            size, body = int.from_bytes(data[body : body + 8]), body + 8
        yield name, body, at + size
        at += max(size, 8)
