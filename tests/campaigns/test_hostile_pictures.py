"""A short run of the campaign, and its checker."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import hostile_pictures
import pytest


def test_every_hostile_picture_gets_its_expected_answer(tmp_path: Path) -> None:
    script, history = Path(hostile_pictures.__file__), tmp_path / "history.jsonl"
    done = subprocess.run(
        [sys.executable, script, "--short", "--count", "200", "--history", history],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert len(history.read_text().splitlines()) > 500


def _entry(**changed: Any) -> dict[str, Any]:
    entry = {
        "kind": "pinned",
        "name": "x",
        "pinned": [422, "bad_image"],
        "status": 422,
        "code": "bad_image",
    }
    return entry | {"seconds": 0.1, "retry_after": None} | changed


GOOD = {"pinned": [201, ""], "status": 201, "code": "", "digests": ["a"]}


@pytest.mark.parametrize(
    ("violation", "entry", "end"),
    [
        ("", _entry(), {}),
        ("", _entry(**GOOD, decodes=True), {"blobs": ["a"]}),
        ("not (422", _entry(status=201, code=""), {}),
        ("not (422", _entry(status=500, code="internal"), {}),
        ("not (0", _entry(kind="mutant", pinned=[0, ""], status=503, code="unavailable"), {}),
        ("does not decode again", _entry(**GOOD, decodes=False), {"blobs": ["a"]}),
        ("after 22.0 s", _entry(seconds=22.0), {}),
        ("is missing", _entry(**GOOD, decodes=True), {}),
        ("no answer named", _entry(), {"blobs": ["a"]}),
        ("a pending file was left", _entry(), {"parts": ["tmp1"]}),
        ("grew by 17 MiB", _entry(), {"peak_kb": 18 * 1024}),
        ("wrote a file", _entry(), {"escaped": True}),
        ("the API is dead", _entry(), {"alive": False}),
        ("the log says", _entry(), {"log": ["Traceback"]}),
        ("bystander waited", _entry(kind="bystander", status=200, seconds=1.5), {}),
    ],
)
def test_the_checker_finds_each_violation(
    tmp_path: Path, violation: str, entry: dict[str, Any], end: dict[str, Any]
) -> None:
    begin = {"kind": "begin", "count": int(entry["kind"] == "mutant"), "peak_kb": 1024}
    last = {
        "kind": "end",
        "alive": True,
        "peak_kb": 1024,
        "parts": [],
        "blobs": [],
        "escaped": False,
        "log": [],
    } | end
    history = tmp_path / "history.jsonl"
    history.write_text("".join(json.dumps(line) + "\n" for line in (begin, entry, last)))

    found = hostile_pictures.violations(history)

    assert [violation in line for line in found] == [True] * bool(violation)
