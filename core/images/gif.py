"""Check that the first picture of a GIF is complete, and bound its metadata, without decoding it.

What follows the first picture is never read, so it may be cut: many files lack the trailer.
"""

_MAX_BLOCKS = 200_000
_MAX_EXTENSION_BYTES = 1 << 20  # before the first picture; Pillow copies each block once more
_EXTENSION, _PICTURE = 0x21, 0x2C


def is_complete(data: bytes) -> bool:
    """Return whether all blocks up to the end of the first picture are complete."""
    if len(data) < 13:
        return False
    start = at = 13 + _color_table_bytes(data[10])
    for _ in range(_MAX_BLOCKS):
        if at + 10 >= len(data) or at - start > _MAX_EXTENSION_BYTES:
            return False
        if data[at] == _PICTURE:
            return _skip_blocks(data, at + 11 + _color_table_bytes(data[at + 9])) <= len(data)
        if data[at] != _EXTENSION:
            return False
        at = _skip_blocks(data, at + 2)
    return False


def _color_table_bytes(flags: int) -> int:
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _skip_blocks(data: bytes, at: int) -> int:
    """Return where the blocks that begin at `at` end, beyond the data if they are incomplete."""
    while at < len(data) and data[at]:
        at += data[at] + 1
    return at + 1
