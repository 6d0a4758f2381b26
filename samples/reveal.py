"""Paints what the page shows before a user's first job, with Impasto itself, into the gallery.

Every sample photo in every sample style, the first photo with each preset, and thumbnails. The
paintings are kept in out/reveal/; a second run paints only what is missing there.
"""

import io
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from draw import GALLERY, GALLERY_ENTRIES
from PIL import Image

from core.style.presets import PRESETS

PAINTED = Path(__file__).parents[1] / "out" / "reveal"
HERO_SIZE, SIZE, PRESET_SIZE = 512, 384, 160  # long side, in px
THUMBNAIL, PRESET_THUMBNAIL = (144, 108), (112, 84)
MAX_BYTES, MAX_THUMBNAIL_BYTES, MAX_PRESET_BYTES = 20_000, 2_800, 1_900
_PRESET_PHOTO, _PRESET_STYLE = "pears", "strokes"


def main() -> None:
    """Paint and export everything."""
    PAINTED.mkdir(parents=True, exist_ok=True)
    for name, photo, style, options in _list_paintings():
        file = PAINTED / f"{name}.png"
        if not file.exists():
            pictures = [str(GALLERY / f"{picture}.jpg") for picture in (photo, style)]
            command = [sys.executable, "-m", "cli", "stylize", *pictures, "-o", str(file), *options]
            subprocess.run(command, check=True)
        painting = Image.open(file).convert("RGB")
        if name.startswith("preset-"):
            painting = painting.resize(PRESET_THUMBNAIL, Image.Resampling.LANCZOS)
            export_webp(name, painting, MAX_PRESET_BYTES)
        else:
            export_webp(name, painting, MAX_BYTES)
    for name, kind, *_ in GALLERY_ENTRIES:
        picture = Image.open(GALLERY / f"{name}.jpg")
        thumbnail = picture.resize(THUMBNAIL, Image.Resampling.LANCZOS)
        export_webp(f"{name}-thumb", thumbnail, MAX_THUMBNAIL_BYTES)
        if kind == "photo":
            photo = picture.resize((HERO_SIZE, HERO_SIZE * 3 // 4), Image.Resampling.LANCZOS)
            export_webp(f"{name}-photo", photo, MAX_BYTES)


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


def export_webp(name: str, picture: Image.Image, max_bytes: int) -> None:
    """Save a picture for the page, with the highest quality that keeps it within the limit."""
    for quality in range(90, 10, -4):
        file = io.BytesIO()
        picture.save(file, "WEBP", quality=quality, method=6)
        if file.tell() <= max_bytes:
            break
    (GALLERY / f"{name}.webp").write_bytes(file.getvalue())


if __name__ == "__main__":
    main()
