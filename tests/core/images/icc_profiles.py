"""Small ICC profiles, made without a library."""

import struct
from collections.abc import Callable
from itertools import product

from PIL import Image, ImageCms

_D50 = struct.pack(">3i", 63190, 65536, 54061)


def _build(space: bytes, kind: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {b"wtpt": b"XYZ \0\0\0\0" + _D50, **tags}
    directory, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        offset = 128 + 4 + 12 * len(tags) + len(body)
        directory += name + struct.pack(">II", offset, len(data))
        body += data + b"\0" * (-len(data) % 4)
    size = 128 + len(directory) + len(body)
    head = struct.pack(">I4xI4s4s4s12x4s28x", size, 0x02400000, kind, space, connection, b"acsp")
    return (head + _D50).ljust(128, b"\0") + directory + body


def gray(gamma: float) -> bytes:
    """Return a profile whose light is the sample to the power `gamma`."""
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(gamma * 256))
    return _build(b"GRAY", b"mntr", b"XYZ ", {b"kTRC": curve + b"\0\0"})


def exchanged_srgb() -> bytes:
    """Return sRGB with red and blue exchanged."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return srgb.replace(b"rXYZ", b"????").replace(b"bXYZ", b"rXYZ").replace(b"????", b"bXYZ")


def cmyk(mix: Callable[[int, int, int, int], tuple[int, int, int]]) -> bytes:
    """Return a profile with the sRGB colors of `mix` for each combination of full inks."""
    to_lab = ImageCms.buildTransform(
        ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB"
    )
    nodes = b""
    for inks in product((0, 1), repeat=4):
        pixel = ImageCms.applyTransform(Image.new("RGB", (1, 1), mix(*inks)), to_lab)
        assert pixel is not None
        lightness, a, b = pixel.tobytes()
        nodes += struct.pack(">3H", lightness * 256, (a ^ 128) * 256, (b ^ 128) * 256)
    ramp, identity = struct.pack(">2H", 0, 65535), (65536, 0, 0, 0, 65536, 0, 0, 0, 65536)
    head = struct.pack(">4B9i2H", 4, 3, 2, 0, *identity, 2, 2)
    table = b"mft2\0\0\0\0" + head + ramp * 4 + nodes + ramp * 3
    return _build(b"CMYK", b"prtr", b"Lab ", {b"A2B0": table})
