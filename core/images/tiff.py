"""Check that the directory of a TIFF's first picture is complete, without decoding it.

Pillow ignores a directory that is cut at its end. The decoder refuses pixels that are cut.
"""

import struct

_BIG_TIFF = 43


def is_complete(data: bytes) -> bool:
    """Return whether the first directory is complete."""
    order = "<" if data[:2] == b"II" else ">"
    try:
        (version,) = struct.unpack_from(f"{order}H", data, 2)
        if version == _BIG_TIFF:
            (start,) = struct.unpack_from(f"{order}Q", data, 8)
            (count,) = struct.unpack_from(f"{order}Q", data, start)
            end = start + 8 + 20 * count + 8
        else:
            (start,) = struct.unpack_from(f"{order}I", data, 4)
            (count,) = struct.unpack_from(f"{order}H", data, start)
            end = start + 2 + 12 * count + 4
    except struct.error:
        return False
    return bool(end <= len(data))
