"""Draws the sample pictures: harbor.jpg and strokes.jpg beside this file, and the page's gallery.

This module has their names, titles, sizes and byte limits. Each picture is drawn by the module of
its name; all of them use noise.py.
"""

import hashlib
import io
import json
import sys
from importlib import import_module
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
GALLERY = HERE.parent / "api" / "web" / "gallery"
SIZE, MAX_BYTES = (640, 480), 95_000

SAMPLES = {"harbor": (1024, 768), "strokes": (900, 700)}

# Name, kind, title, and the description for screen readers.
GALLERY_ENTRIES = (
    ("harbor", "photo", "Harbor", "A small harbor town at evening"),
    ("pears", "photo", "Pears", "Three pears and a bowl on a wooden table"),
    ("strokes", "painting", "Brush strokes", "A night sky in thick swirling brush strokes"),
    ("watercolor", "painting", "Watercolor", "Red poppies in a meadow, in watercolor"),
    (
        "woodcut",
        "painting",
        "Woodcut",
        "A snowy mountain over waves like scales, printed from wood",
    ),
    ("points", "painting", "Points", "Poplars by a river, in dots of color"),
    ("ink", "painting", "Ink", "Mountains in mist behind bamboo, in black ink"),
    (
        "glass",
        "painting",
        "Stained glass",
        "Sunrise over hills and flowers, in colored glass and lead",
    ),
    ("mosaic", "painting", "Mosaic", "A sail before the sun, laid in small stones"),
    ("marbling", "painting", "Marbling", "Swirls of blue, red and gold ink on paper"),
)


def main() -> None:
    """Draw the named pictures, or all. The seeds are fixed, so the pictures never change."""
    for name in sys.argv[1:] or [name for name, *_ in GALLERY_ENTRIES]:
        export_to_gallery(name, draw_picture(name))
    lines = ",\n".join(json.dumps(_describe(*entry)) for entry in GALLERY_ENTRIES)
    (GALLERY / "index.json").write_text(f"[\n{lines}\n]\n")


def _describe(name: str, kind: str, title: str, words: str) -> dict[str, str | int]:
    file = GALLERY / f"{name}.jpg"
    width, height = Image.open(file).size
    return {
        "name": name,
        "kind": kind,
        "title": title,
        "words": words,
        "width": width,
        "height": height,
        # Of the upload: the page names a job's pictures by it.
        "digest": hashlib.sha256(file.read_bytes()).hexdigest()[:12],
    }


def draw_picture(name: str) -> Image.Image:
    """Draw a picture in its full size; also save it beside this file if it is a sample."""
    picture: Image.Image = import_module(name).picture(*SAMPLES.get(name, SIZE))
    if name in SAMPLES:
        picture.save(HERE / f"{name}.jpg", quality=88)
    return picture


def export_to_gallery(name: str, picture: Image.Image) -> None:
    """Save the picture for the page; reveal.py makes its thumbnail.

    The JPEG quality is the highest that keeps the file within MAX_BYTES.
    """
    shape = (SIZE[0], round(SIZE[0] * picture.height / picture.width))
    picture = picture.resize(shape, Image.Resampling.LANCZOS)
    for quality in range(88, 30, -3):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() <= MAX_BYTES:
            break
    (GALLERY / f"{name}.jpg").write_bytes(file.getvalue())


if __name__ == "__main__":
    main()
