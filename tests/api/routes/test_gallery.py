"""The sample pictures of the page."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageStat
from starlette.testclient import TestClient

from core.images import codec
from core.style.presets import PRESETS

GALLERY = Path(__file__).parents[3] / "api" / "web" / "gallery"
INDEX: list[dict[str, Any]] = json.loads((GALLERY / "index.json").read_text())


NAMES = {
    kind: [one["name"] for one in INDEX if one["kind"] == kind] for kind in ("photo", "painting")
}


def test_the_index_lists_exactly_the_files_of_the_gallery() -> None:
    """Every photo has a painting in every style."""
    names = [*NAMES["photo"], *NAMES["painting"]]
    assert {path.name for path in GALLERY.glob("*.jpg")} == {f"{name}.jpg" for name in names}
    paintings = [f"{photo}-{style}" for photo in NAMES["photo"] for style in NAMES["painting"]]
    assert {path.stem for path in GALLERY.glob("*.webp")} == {
        *paintings,
        *(f"{name}-large" for name in paintings),
        *(f"{photo}-photo-large" for photo in NAMES["photo"]),
    }
    assert {path.stem for path in GALLERY.glob("*.avif")} == {
        "thumbnails",
        *(f"{photo}-photo" for photo in NAMES["photo"]),
    }
    assert len(NAMES["painting"]) >= 8


@pytest.mark.parametrize("one", INDEX, ids=[one["name"] for one in INDEX])
def test_each_picture_is_served(client: TestClient, one: dict[str, Any]) -> None:
    large = client.get(f"/web/gallery/{one['name']}.jpg").content

    assert codec.decode(large).size == (one["width"], one["height"])
    assert len(large) <= 100_000
    assert hashlib.sha256(large).hexdigest().startswith(one["digest"])
    assert one["title"]
    assert one["words"]


def test_one_image_has_a_thumbnail_of_each_picture_in_order_and_of_each_preset() -> None:
    """The page finds them by their place: samples/reveal.py, api/web/thumbnail.js."""
    joined = Image.open(GALLERY / "thumbnails.avif").convert("RGB")
    rows = len(INDEX) + len(["standard", *PRESETS])

    assert joined.size == (112, 88 * rows)
    for row, one in enumerate(INDEX):
        picture = Image.open(GALLERY / f"{one['name']}.jpg").resize((112, 84))
        shown = joined.crop((0, 88 * row + 2, 112, 88 * row + 86))
        difference = ImageStat.Stat(ImageChops.difference(picture, shown)).mean
        assert max(difference) < 20, one["name"]


@pytest.mark.parametrize(
    "path",
    sorted([*GALLERY.glob("*.webp"), *GALLERY.glob("*.avif")]),
    ids=lambda path: str(path.stem),
)
def test_what_the_first_visit_shows_is_small(path: Path) -> None:
    """A large file follows where the screen has more pixels: its side is twice as long at least."""
    if path.stem.endswith("-large"):
        small = next(GALLERY.glob(path.stem.removesuffix("-large") + ".*"))
        with Image.open(path) as large, Image.open(small) as first:
            assert large.width >= 2 * first.width
    assert path.stat().st_size <= (300_000 if path.stem.endswith("-large") else 20_000)
