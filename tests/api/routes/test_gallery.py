"""The pictures that the page hangs to begin with."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from core.images import codec

GALLERY = Path(__file__).parents[3] / "api" / "web" / "gallery"
HUNG: list[dict[str, Any]] = json.loads((GALLERY / "index.json").read_text())


def test_what_hangs_is_in_the_index_and_nothing_else_is_there() -> None:
    named = {f"{one['name']}{small}.jpg" for one in HUNG for small in ("", "-small")}

    assert named == {path.name for path in GALLERY.glob("*.jpg")}
    kinds = Counter(one["kind"] for one in HUNG)
    assert set(kinds) == {"photo", "painting"}
    assert kinds["painting"] >= 8


@pytest.mark.parametrize("one", HUNG, ids=[one["name"] for one in HUNG])
def test_each_is_served_small_and_whole_to_anybody(client: TestClient, one: dict[str, Any]) -> None:
    large, small = (
        client.get(f"/web/gallery/{one['name']}{part}.jpg").content for part in ("", "-small")
    )

    assert (codec.decode(large).width, codec.decode(small).size) == (640, (256, 192))
    assert (len(large) <= 100_000, len(small) <= 25_000) == (True, True)
    assert one["title"]
    assert one["words"]
