"""The sample pictures of the page."""

import json
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from core.images import codec
from core.style.presets import PRESETS

GALLERY = Path(__file__).parents[3] / "api" / "web" / "gallery"
INDEX: list[dict[str, Any]] = json.loads((GALLERY / "index.json").read_text())


NAMES = {
    kind: [one["name"] for one in INDEX if one["kind"] == kind] for kind in ("photo", "painting")
}


def test_the_index_lists_exactly_the_files_of_the_gallery() -> None:
    """Every picture has a thumbnail, every photo a painting in every style, every preset one."""
    names = [*NAMES["photo"], *NAMES["painting"]]
    assert {path.name for path in GALLERY.glob("*.jpg")} == {f"{name}.jpg" for name in names}
    presets = ["standard", *PRESETS]
    assert {path.stem for path in GALLERY.glob("*.webp")} == {
        *(f"{name}-thumb" for name in names),
        *(f"{photo}-photo" for photo in NAMES["photo"]),
        *(f"{photo}-{style}" for photo in NAMES["photo"] for style in NAMES["painting"]),
        *(f"preset-{preset}" for preset in presets),
    }
    assert len(NAMES["painting"]) >= 8


@pytest.mark.parametrize("one", INDEX, ids=[one["name"] for one in INDEX])
def test_each_picture_is_served_with_its_thumbnail(client: TestClient, one: dict[str, Any]) -> None:
    large, small = (
        client.get(f"/web/gallery/{one['name']}{part}").content for part in (".jpg", "-thumb.webp")
    )

    assert codec.decode(large).size == (one["width"], one["height"])
    assert codec.decode(small).size == (144, 108)
    assert (len(large) <= 100_000, len(small) <= 4_000) == (True, True)
    assert one["title"]
    assert one["words"]


@pytest.mark.parametrize("path", sorted(GALLERY.glob("*.webp")), ids=lambda path: str(path.stem))
def test_what_the_first_visit_shows_is_small(path: Path) -> None:
    assert path.stat().st_size <= 20_000
