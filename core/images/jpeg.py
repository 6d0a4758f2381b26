"""Check that a JPEG file is complete, without decoding it, and help to find out by decoding.

Pillow accepts files that lack their end, and files that have an end marker but lack a part of a
scan. Pillow hides what libjpeg reports on the latter. But a complete scan does not depend on what
follows its data: see `fill_scans`.

This parser skips segments by their lengths, because a thumbnail or a second picture inside a
segment has an end marker of its own. It ignores what follows the end marker, because cameras append
data there.
"""

import re
import struct
from typing import NamedTuple

_START_OF_SCAN, _END_OF_IMAGE, _RESTART_INTERVAL = 0xDA, 0xD9, 0xDD
_MARKERS_WITHOUT_LENGTH = (0x01, 0xD8)
_SEQUENTIAL, _PROGRESSIVE, _ARITHMETIC = (0xC0, 0xC1, 0xC9), (0xC2, 0xCA), (0xC9, 0xCA)
# Both limits are far beyond what any encoder writes. A decoder passes over the whole picture once
# per scan, so scans cost CPU time.
_MAX_SEGMENTS = 10_000
_MAX_SCANS = 100
# In a scan's data, 0xFF precedes 0, a restart marker, or another 0xFF. Between segments, decoders
# skip bytes that are no marker.
_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")
_BLOCK = 8  # px
# Bits that stand for other coefficients than 0 in every kind of entropy-coded data.
_FILLER = b"\xdb\x6d\xb6" * 32
_TAIL_BYTES = 24  # of a scan: some blocks of every usual picture


class _Scan(NamedTuple):
    components: bytes  # their identifiers
    band: range  # of the 64 coefficients of a block
    precision: int  # bits that the coefficients still lack
    restart_interval: int  # in MCUs; 0: none
    restarts: int  # markers in its data
    start: int  # of its data, in the file
    end: int


class Structure(NamedTuple):
    """The frame and the scans of a complete file."""

    frame_type: int  # the marker of its header
    size: tuple[int, int]  # (width, height) in px
    sampling: dict[int, tuple[int, int]]  # horizontal and vertical factor of each component
    scans: list[_Scan]

    @property
    def is_arithmetic(self) -> bool:
        """Whether the scans are arithmetic-coded. Encoders may then leave out bytes at the end."""
        return self.frame_type in _ARITHMETIC


def parse(data: bytes) -> Structure | None:
    """Return the structure of a file; None if it lacks its end, a frame, or a scan."""
    at, frame, interval = 2, None, 0
    scans: list[_Scan] = []
    for _ in range(_MAX_SEGMENTS):
        marker = _MARKER.search(data, at)
        if marker is None:
            return None
        (kind,), at = marker[1], marker.end()
        if kind == _END_OF_IMAGE:
            return None if frame is None or not scans else frame._replace(scans=scans)
        if kind in _MARKERS_WITHOUT_LENGTH:
            continue
        length = int.from_bytes(data[at : at + 2], "big")
        body, at = data[at + 2 : at + length], at + length
        if length < 2 or at > len(data) or len(scans) == _MAX_SCANS:
            return None
        try:
            if kind == _RESTART_INTERVAL:
                (interval,) = struct.unpack_from(">H", body)
            elif kind in (*_SEQUENTIAL, *_PROGRESSIVE) and frame is None:
                frame = _parse_frame(kind, body)
            elif kind == _START_OF_SCAN:
                scans.append(_parse_scan(body, interval, data, at))
        except (struct.error, IndexError, ValueError):
            return None
    return None


def _parse_frame(kind: int, body: bytes) -> Structure:
    height, width, count = struct.unpack_from(">xHHB", body)
    components = (body[6 + 3 * index : 9 + 3 * index] for index in range(count))
    sampling = {name: divmod(factors, 16) for name, factors, _ in components}
    if not sampling or not all(map(all, sampling.values())):
        raise ValueError(body)
    return Structure(kind, (width, height), sampling, [])


def _parse_scan(body: bytes, interval: int, data: bytes, start: int) -> _Scan:
    count = body[0]
    first, last, precision = body[1 + 2 * count : 4 + 2 * count]
    following = _MARKER.search(data, start)
    end = len(data) if following is None else following.start()
    while end > start and data[end - 1] == 0xFF:  # any number of them may precede a marker
        end -= 1
    restarts = len(_RESTART.findall(data, start, end)) if interval else 0
    components = body[1 : 1 + 2 * count : 2]
    band = range(first, last + 1)
    return _Scan(components, band, precision & 15, interval, restarts, start, end)


def is_complete(data: bytes) -> bool:
    """Return whether the end marker follows all scans, and none lacks what can be counted.

    Each component must be there at all, and so must each interval between restart markers.
    """
    structure = parse(data)
    if structure is None:
        return False
    begun = {name for scan in structure.scans if 0 in scan.band for name in scan.components}
    if not begun.issuperset(structure.sampling):
        return False
    return all(
        scan.restarts >= _divide_up(_count_mcus(structure, scan), scan.restart_interval) - 1
        for scan in structure.scans
        if scan.restart_interval
    )


def _count_mcus(structure: Structure, scan: _Scan) -> int:
    """Return the number of MCUs of a scan: ISO/IEC 10918-1, A.2."""
    across_max = max(across for across, _ in structure.sampling.values())
    down_max = max(down for _, down in structure.sampling.values())
    across, down = across_max, down_max
    if len(scan.components) > 1:
        across = down = 1  # an MCU covers all blocks of the largest component
    else:
        across, down = structure.sampling.get(scan.components[0], (across_max, down_max))
    width, height = structure.size
    columns = _divide_up(_divide_up(width * across, across_max), _BLOCK)
    rows = _divide_up(_divide_up(height * down, down_max), _BLOCK)
    return columns * rows


def _divide_up(number: int, divisor: int) -> int:
    return -(-number // divisor)


def lacks_precision(structure: Structure) -> bool:
    """Return whether a progressive file has no scan for some of the coefficients' last bits.

    It may have been cut between two scans, or its encoder has left them out.
    """
    if structure.frame_type not in _PROGRESSIVE:
        return False
    missing = {(name, index) for name in structure.sampling for index in range(64)}
    for scan in structure.scans:
        if scan.precision == 0:
            missing -= {(name, index) for name in scan.components for index in scan.band}
    return bool(missing)


def fill_scans(data: bytes, structure: Structure) -> bytes:
    """Return the file with arbitrary bytes after the data of each scan.

    A decoder skips them after a complete scan. They change the picture if a scan lacks data.
    """
    parts, start = [], 0
    for scan in structure.scans:
        parts += [data[start : scan.end], _FILLER]
        start = scan.end
    return b"".join([*parts, data[start:]])


def replace_tails(data: bytes, structure: Structure) -> bytes | None:
    """Return the file with arbitrary bytes instead of the last ones of each scan.

    They change the picture, unless a damaged scan holds more data than the decoder takes: the codes
    after a gap stand for other numbers of blocks. None for a file of which this tells nothing.
    """
    if structure.frame_type not in _SEQUENTIAL or structure.is_arithmetic:
        return None
    parts, start = [], 0
    for scan in structure.scans:
        used = data[scan.start : scan.end].rstrip(b"\0")  # some cameras pad the data
        if len(used) < 2 * _TAIL_BYTES:
            return None
        parts += [data[start : scan.start], used[:-_TAIL_BYTES], _FILLER]
        start = scan.end
    return b"".join([*parts, data[start:]])
