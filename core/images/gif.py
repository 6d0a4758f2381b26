"""Check that a GIF file is complete and bounds its metadata, without decoding it."""

_MAX_BLOCKS = 200_000
_MAX_EXTENSION_BYTES = 1 << 20  # before the first picture; Pillow copies each block once more
_EXTENSION, _PICTURE, _TRAILER = 0x21, 0x2C, 0x3B


def is_complete(data: bytes) -> bool:
    """Return whether all blocks are complete and the trailer follows at least one picture."""
    if len(data) < 13:
        return False
    at, pictures, extension_bytes = 13 + _color_table_bytes(data[10]), 0, 0
    for _ in range(_MAX_BLOCKS):
        if at >= len(data):
            return False
        kind, start = data[at], at
        if kind == _TRAILER:
            return pictures > 0
        if kind == _PICTURE and at + 10 < len(data):
            at = _skip_blocks(data, at + 11 + _color_table_bytes(data[at + 9]))
            pictures += 1
        elif kind == _EXTENSION:
            at = _skip_blocks(data, at + 2)
            extension_bytes += (at - start) * (pictures == 0)
        else:
            return False
        if extension_bytes > _MAX_EXTENSION_BYTES:
            return False
    return False


def _color_table_bytes(flags: int) -> int:
    return 3 * 2 ** ((flags & 7) + 1) if flags & 0x80 else 0


def _skip_blocks(data: bytes, at: int) -> int:
    """Return where the blocks that begin at `at` end, beyond the data if they are incomplete."""
    while at < len(data) and data[at]:
        at += data[at] + 1
    return at + 1
