"""Draws the sample pictures: harbor.jpg and strokes.jpg beside this file, and the gallery of the page.

It knows their names, titles, sizes and how many bytes they may have. It does not know how any is drawn (each has
a module of its name, and noise.py is under all), nor networks or style transfer.
"""

import io
import json
import sys
from importlib import import_module
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
GALLERY = HERE.parent / "api" / "web" / "gallery"
SIZE, SMALL, MOST_BYTES = (640, 480), (256, 192), 95_000

SAMPLES = {"harbor": (1024, 768), "strokes": (900, 700)}

# Name, kind, title, and what is to be seen, for who does not see it.
HUNG = (
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
    """Draws those that are named, or all; the seeds are fixed, so they are always the same pictures."""
    for name in sys.argv[1:] or [name for name, *_ in HUNG]:
        hang(name, drawn(name))
    keys = ("name", "kind", "title", "words")
    lines = ",\n".join(json.dumps(dict(zip(keys, one, strict=True))) for one in HUNG)
    (GALLERY / "index.json").write_text(f"[\n{lines}\n]\n")


def drawn(name: str) -> Image.Image:
    """The picture in its first size; a sample is kept in it."""
    picture: Image.Image = import_module(name).picture(*SAMPLES.get(name, SIZE))
    if name in SAMPLES:
        picture.save(HERE / f"{name}.jpg", quality=88)
    return picture


def hang(name: str, picture: Image.Image) -> None:
    """The picture and its small copy for the page, as good as the bytes allow."""
    shape = (SIZE[0], round(SIZE[0] * picture.height / picture.width))
    picture = picture.resize(shape, Image.Resampling.LANCZOS)
    for quality in range(88, 30, -3):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality, optimize=True)
        if file.tell() <= MOST_BYTES:
            break
    (GALLERY / f"{name}.jpg").write_bytes(file.getvalue())
    picture.resize(SMALL, Image.Resampling.LANCZOS).save(
        GALLERY / f"{name}-small.jpg", quality=80, optimize=True
    )


if __name__ == "__main__":
    main()
