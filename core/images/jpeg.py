"""Check that a JPEG file is complete up to its end marker, without decoding it.

Pillow accepts files that lack their end. This parser skips segments by their lengths, because a
thumbnail or a second picture inside a segment has an end marker of its own. It ignores what follows
the end marker, because cameras append data there.
"""

import re

_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_MARKERS_WITHOUT_LENGTH = (0x01, 0xD8)
# Both limits are far beyond what any encoder writes. A decoder passes over the whole picture once
# per scan, so scans cost CPU time.
_MAX_SEGMENTS = 10_000
_MAX_SCANS = 100
# In a scan's data, 0xFF precedes 0, a restart marker, or another 0xFF. Between segments, decoders
# skip bytes that are no marker.
_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")


def is_complete(data: bytes) -> bool:
    """Return whether every segment is complete and the end marker follows at least one scan."""
    at, scans = 2, 0
    for _ in range(_MAX_SEGMENTS):
        marker = _MARKER.search(data, at)
        if marker is None:
            return False
        (kind,), at = marker[1], marker.end()
        if kind == _END_OF_IMAGE:
            return scans > 0
        if kind in _MARKERS_WITHOUT_LENGTH:
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        scans += kind == _START_OF_SCAN
        at += length
        if length < 2 or at > len(data) or scans > _MAX_SCANS:
            return False
    return False
