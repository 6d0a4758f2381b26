"""The structure of a JPEG file: is it there up to its end mark? Knows no pixels and no Pillow.

Pillow accepts files that lack their end. Segments are stepped over by their lengths, because a thumbnail or a second
picture inside one has an end mark of its own; what follows the end is ignored, because cameras append things.
"""

import re

_START_OF_SCAN, _END = 0xDA, 0xD9
_ALONE = (0x01, 0xD8)  # markers without a length
# Both far beyond what any encoder writes: a decoder goes over the whole picture once for each scan.
_MAX_SEGMENTS = 10_000
_MAX_SCANS = 100
# In a scan's data 0xFF is followed by 0, by a restart mark, or by itself; between segments readers skip what is none.
_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")


def is_complete(data: bytes) -> bool:
    """Whether every segment is whole and the end mark follows at least one scan. What comes after is ignored."""
    at, scans = 2, 0
    for _ in range(_MAX_SEGMENTS):
        marker = _MARKER.search(data, at)
        if marker is None:
            return False
        (kind,), at = marker[1], marker.end()
        if kind == _END:
            return scans > 0
        if kind in _ALONE:
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        scans += kind == _START_OF_SCAN
        at += length
        if length < 2 or at > len(data) or scans > _MAX_SCANS:
            return False
    return False
