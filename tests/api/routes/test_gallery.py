"""The sample pictures of the page."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from core.images import codec

GALLERY = Path(__file__).parents[3] / "api" / "web" / "gallery"
INDEX: list[dict[str, Any]] = json.loads((GALLERY / "index.json").read_text())


def test_the_index_lists_exactly_the_files_of_the_gallery() -> None:
    named = {f"{one['name']}{small}.jpg" for one in INDEX for small in ("", "-small")}

    assert named == {path.name for path in GALLERY.glob("*.jpg")}
    kinds = Counter(one["kind"] for one in INDEX)
    assert set(kinds) == {"photo", "painting"}
    assert kinds["painting"] >= 8


@pytest.mark.parametrize("one", INDEX, ids=[one["name"] for one in INDEX])
def test_each_picture_is_served_in_both_sizes(client: TestClient, one: dict[str, Any]) -> None:
    large, small = (
        client.get(f"/web/gallery/{one['name']}{part}.jpg").content for part in ("", "-small")
    )

    assert (codec.decode(large).width, codec.decode(small).size) == (640, (256, 192))
    assert (len(large) <= 100_000, len(small) <= 25_000) == (True, True)
    assert one["title"]
    assert one["words"]
