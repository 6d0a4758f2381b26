"""A short run of the campaign, and its checker."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import fat_uploads
import pytest


@pytest.mark.reliability
def test_clients_that_send_too_much_are_refused_while_they_send(tmp_path: Path) -> None:
    command = [
        sys.executable,
        fat_uploads.__file__,
        "--count",
        "12",
        "--history",
        tmp_path / "history.jsonl",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("violation", "entry", "end"),
    [
        ("", {}, {}),
        ("not 413", {"status": 503}, {}),
        ("no answer after 2", {"sent": 35_000_000}, {}),
        ("grew by 65 MiB", {}, {"peak_kb": 66 * 1024}),
        ("left on disk", {}, {"left": ["tmp1"]}),
        ("the API is dead", {}, {"alive": False}),
        ("the log says", {}, {"log": ["Traceback"]}),
    ],
)
def test_the_checker_finds_each_violation(
    tmp_path: Path, violation: str, entry: dict[str, Any], end: dict[str, Any]
) -> None:
    lines = [
        {"kind": "begin", "count": 1, "peak_kb": 1024},
        {"kind": "job", "status": 413, "sent": 1000} | entry,
        {"kind": "end", "alive": True, "peak_kb": 1024, "left": [], "log": []} | end,
    ]
    history = tmp_path / "history.jsonl"
    history.write_text("".join(json.dumps(line) + "\n" for line in lines))

    found = fat_uploads.violations(history)

    assert [violation in line for line in found] == [True] * bool(violation)
