"""Paints what the page shows before a user's first job, with Impasto itself, into the gallery.

Every sample photo in every sample style, a sample photo with each preset, and one image with all
thumbnails. A painting has two files: a small one for the first screen, and a large one for screens
with more pixels. The paintings are kept in out/reveal/; a second run paints only what is missing.
"""

import io
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from draw import GALLERY, GALLERY_ENTRIES, HERE, SAMPLES
from PIL import Image

from core.style.presets import PRESETS

PAINTED = Path(__file__).parents[1] / "out" / "reveal"
HERO_SIZE, SIZE, PRESET_SIZE = 1536, 768, 352  # long side, in px
# The long side of the small files, by that of the painting.
SMALL_SIZES = {HERO_SIZE: 512, SIZE: 384}
THUMBNAIL = (112, 84)
# The part of the photo that shows what a preset does: one pear. Shares of its sides.
PRESET_PART = (0.28, 0.31, 0.6, 0.63)
# Between two thumbnails, in px. It repeats their edges, so that no browser that scales the image
# mixes neighbors.
MARGIN = 2
MAX_BYTES = {"WEBP": 17_500, "AVIF": 15_000}
MAX_LARGE_BYTES = {HERO_SIZE: 280_000, SIZE: 68_000}
_ENCODERS = {"WEBP": {"method": 6}, "AVIF": {"speed": 2}}
_PRESET_PHOTO, _PRESET_STYLE = "pears", "strokes"


def main() -> None:
    """Paint and export everything."""
    PAINTED.mkdir(parents=True, exist_ok=True)
    presets = []
    for name, photo, style, size, options in _list_paintings():
        file = PAINTED / f"{name}.png"
        if not file.exists():
            pictures = [str(_draw_photo(photo)), str(_find_style(style))]
            command = [sys.executable, "-m", "cli", "stylize", *pictures, "-o", str(file)]
            subprocess.run([*command, "--size", str(size), *options], check=True)
        painting = Image.open(file).convert("RGB")
        if name.startswith("preset-"):
            width, height = painting.size
            left, top, right, bottom = PRESET_PART
            box = (left * width, top * height, right * width, bottom * height)
            presets.append(painting.crop(box))
        else:
            export_sizes(name, painting, "WEBP")
    samples = []
    for name, kind, *_ in GALLERY_ENTRIES:
        samples.append(Image.open(GALLERY / f"{name}.jpg"))
        if kind == "photo":
            export_sizes(f"{name}-photo", Image.open(_draw_photo(name)), "AVIF")
    export("thumbnails", join_thumbnails([*samples, *presets]), "AVIF", MAX_BYTES["AVIF"])


def _list_paintings() -> Iterator[tuple[str, str, str, int, list[str]]]:
    """Yield the name of each painting, its photo, its style, its size and its options."""
    names = {
        kind: [name for name, of_kind, *_ in GALLERY_ENTRIES if of_kind == kind]
        for kind in ("photo", "painting")
    }
    hero = (names["photo"][0], names["painting"][0])
    yield "-".join(hero), *hero, HERO_SIZE, []
    for photo in names["photo"]:
        for style in names["painting"]:
            if (photo, style) != hero:
                yield f"{photo}-{style}", photo, style, SIZE, ["--quality", "draft"]
    yield "preset-standard", _PRESET_PHOTO, _PRESET_STYLE, PRESET_SIZE, []
    for preset in PRESETS:
        options = ["--preset", preset]
        yield f"preset-{preset}", _PRESET_PHOTO, _PRESET_STYLE, PRESET_SIZE, options


def _draw_photo(name: str) -> Path:
    """Return the file of a sample photo, larger than that of the gallery.

    Each is drawn in a process of its own: the random numbers depend on what was drawn before.
    """
    size = HERO_SIZE if name == GALLERY_ENTRIES[0][0] else SIZE
    file = PAINTED / f"{name}.png"
    if not file.exists():
        code = f"from {name} import picture; picture({size}, {size * 3 // 4}).save({str(file)!r})"
        subprocess.run([sys.executable, "-c", code], check=True, cwd=HERE)
    return file


def _find_style(name: str) -> Path:
    """Return the largest file of a sample painting."""
    return HERE / f"{name}.jpg" if name in SAMPLES else GALLERY / f"{name}.jpg"


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


def export_sizes(name: str, picture: Image.Image, kind: str) -> None:
    """Save a picture for the page: a small file, and a large one, of the whole size."""
    side = SMALL_SIZES[picture.width]
    small = picture.resize((side, side * 3 // 4), Image.Resampling.LANCZOS)
    export(name, small, kind, MAX_BYTES[kind])
    max_bytes = MAX_LARGE_BYTES[picture.width]
    if kind == "AVIF":  # a photo has less detail than brush strokes
        max_bytes //= 2
    export(f"{name}-large", picture, "WEBP", max_bytes)


def export(name: str, picture: Image.Image, kind: str, max_bytes: int) -> None:
    """Save a picture for the page, with the highest quality that keeps it within the limit."""
    lowest, highest, best = 10, 90, b""
    while lowest <= highest:
        quality, file = (lowest + highest) // 2, io.BytesIO()
        picture.save(file, kind, quality=quality, **_ENCODERS[kind])
        if file.tell() <= max_bytes:
            lowest, best = quality + 1, file.getvalue()
        else:
            highest = quality - 1
    (GALLERY / f"{name}.{kind.lower()}").write_bytes(best)


if __name__ == "__main__":
    main()
