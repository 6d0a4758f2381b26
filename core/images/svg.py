"""Recognize an SVG by its beginning. It is refused: this module only names it."""

import codecs
import re
import zlib

_GZIP = b"\x1f\x8b"
_UNPACKED_BYTES = 65_536
_UTF_16 = {
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
    b"<\0": "utf-16-le",
    b"\0<": "utf-16-be",
}
_SPACE = re.compile(rb"\s*+(\xef\xbb\xbf\s*+)?")  # and a byte order mark
_ROOT = re.compile(rb"<(\w+:)?svg[\s/>]", re.IGNORECASE)
_DOCTYPE = re.compile(rb"<!doctype\s+(\w+:)?svg\b", re.IGNORECASE)


def is_svg(data: bytes) -> bool:
    """Return whether a file begins as an SVG, also one in UTF-16 or compressed (.svgz).

    data: the first bytes of the file. Takes linear time.
    """
    if data[:2] == _GZIP:
        try:
            data = zlib.decompressobj(wbits=31).decompress(data, max_length=_UNPACKED_BYTES)
        except zlib.error:
            return False
    encoding = _UTF_16.get(data[:2])
    if encoding is not None:
        data = data.decode(encoding, "replace").encode()
    at = 0
    while True:
        space = _SPACE.match(data, at)
        at = space.end() if space else at
        if data.startswith(b"<?", at):
            at = data.find(b"?>", at) + 2
        elif data.startswith(b"<!--", at):
            at = data.find(b"-->", at + 4) + 3
        else:
            return bool(_ROOT.match(data, at) or _DOCTYPE.match(data, at))
        if at < 4:  # its end was not found
            return False
