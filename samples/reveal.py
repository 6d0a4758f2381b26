"""Paints what the page shows before a user's first job, with Impasto itself, into the gallery.

Every sample photo in every sample style, the first photo with each preset, and one image with all
thumbnails. The paintings are kept in out/reveal/; a second run paints only what is missing there.
"""

import io
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from draw import GALLERY, GALLERY_ENTRIES
from PIL import Image

from core.style.presets import PRESETS

PAINTED = Path(__file__).parents[1] / "out" / "reveal"
HERO_SIZE, SIZE, PRESET_SIZE = 512, 384, 160  # long side, in px
THUMBNAIL = (112, 84)
# Between two thumbnails, in px. It repeats their edges, so that no browser that scales the image
# mixes neighbors.
MARGIN = 2
MAX_BYTES = {"WEBP": 20_000, "AVIF": 16_000}
_ENCODERS = {"WEBP": {"method": 6}, "AVIF": {"speed": 0}}
_PRESET_PHOTO, _PRESET_STYLE = "pears", "strokes"


def main() -> None:
    """Paint and export everything."""
    PAINTED.mkdir(parents=True, exist_ok=True)
    presets = []
    for name, photo, style, options in _list_paintings():
        file = PAINTED / f"{name}.png"
        if not file.exists():
            pictures = [str(GALLERY / f"{picture}.jpg") for picture in (photo, style)]
            command = [sys.executable, "-m", "cli", "stylize", *pictures, "-o", str(file), *options]
            subprocess.run(command, check=True)
        painting = Image.open(file).convert("RGB")
        if name.startswith("preset-"):
            presets.append(painting)
        else:
            export(name, painting, "WEBP")
    samples = []
    for name, kind, *_ in GALLERY_ENTRIES:
        picture = Image.open(GALLERY / f"{name}.jpg")
        samples.append(picture)
        if kind == "photo":
            photo = picture.resize((HERO_SIZE, HERO_SIZE * 3 // 4), Image.Resampling.LANCZOS)
            export(f"{name}-photo", photo, "AVIF")
    export("thumbnails", join_thumbnails([*samples, *presets]), "AVIF")


def _list_paintings() -> Iterator[tuple[str, str, str, list[str]]]:
    """Yield the name of each painting, its photo, its style and its options."""
    names = {
        kind: [name for name, of_kind, *_ in GALLERY_ENTRIES if of_kind == kind]
        for kind in ("photo", "painting")
    }
    hero = (names["photo"][0], names["painting"][0])
    yield "-".join(hero), *hero, ["--size", str(HERO_SIZE)]
    size = ["--size", str(PRESET_SIZE)]
    yield "preset-standard", _PRESET_PHOTO, _PRESET_STYLE, size
    for preset in PRESETS:
        options = ["--preset", preset, *size]
        yield f"preset-{preset}", _PRESET_PHOTO, _PRESET_STYLE, options
    for photo in names["photo"]:
        for style in names["painting"]:
            if (photo, style) != hero:
                yield f"{photo}-{style}", photo, style, ["--size", str(SIZE), "--quality", "draft"]


def join_thumbnails(pictures: Sequence[Image.Image]) -> Image.Image:
    """Return one image with the thumbnails of all pictures, one below the other."""
    width, height = THUMBNAIL
    step = height + 2 * MARGIN
    joined = Image.new("RGB", (width, step * len(pictures)))
    for row, picture in enumerate(pictures):
        thumbnail = picture.convert("RGB").resize(THUMBNAIL, Image.Resampling.LANCZOS)
        for offset in sorted(range(2 * MARGIN + 1), key=lambda at: abs(at - MARGIN), reverse=True):
            joined.paste(thumbnail, (0, row * step + offset))
    return joined


def export(name: str, picture: Image.Image, kind: str) -> None:
    """Save a picture for the page, with the highest quality that keeps it within the limit."""
    for quality in range(90, 10, -4):
        file = io.BytesIO()
        picture.save(file, kind, quality=quality, **_ENCODERS[kind])
        if file.tell() <= MAX_BYTES[kind]:
            break
    (GALLERY / f"{name}.{kind.lower()}").write_bytes(file.getvalue())


if __name__ == "__main__":
    main()
