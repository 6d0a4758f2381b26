"""A short run; one without the owners; and that the checker sees what is wrong."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

HERE = Path(__file__).parent


@pytest.fixture
def strangers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The campaign as a module."""
    monkeypatch.syspath_prepend(str(HERE))
    return importlib.import_module("strangers")


def _play(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        str(HERE / "strangers.py"),
        "--count",
        "20",
        "--history",
        str(folder / "history"),
    ]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def test_a_stranger_sees_nothing_of_anothers(tmp_path: Path) -> None:
    played = _play(tmp_path)

    assert played.returncode == 0, played.stdout + played.stderr


@pytest.mark.reliability
def test_without_owners_it_fails(tmp_path: Path, strangers: ModuleType) -> None:
    played = _play(tmp_path, "--without", "owners")
    found = "\n".join(strangers.violations(tmp_path / "history"))

    assert played.returncode == 1
    told = (
        "GET /v1/jobs/{job_id} queued",
        "HEAD /v1/images/{digest} preview",
        "queued: changed by a stranger",
    )
    for wrong in told:
        assert wrong in found, wrong


ANSWER = {"status": 404, "headers": [["content-type", "application/problem+json"]], "body": "{}"}
SOUND: dict[str, dict[str, Any]] = {
    "pair": {"name": "GET a", "foreign": ANSWER, "unknown": ANSWER, "leaks": []},
    "list": {"name": "a", "foreign": 0, "leaks": []},
    "cursor": {"next": "a", "expected": "a"},
    "reuse": {"works": True},
    "timing": {"name": "a", "foreign_ms": 1.0, "unknown_ms": 1.2, "t": -2.0},
    "guesses": {"count": 9, "hits": 0},
    "owned": {"name": "a", "before": ANSWER, "after": ANSWER},
    "file": {"name": "a", "secret": False},
}


def _history(path: Path, entries: dict[str, dict[str, Any]]) -> Path:
    path.write_text("\n".join(json.dumps({kind: entry}) for kind, entry in entries.items()))
    return path


@pytest.mark.parametrize(
    ("kind", "wrong"),
    [
        ("pair", {"foreign": ANSWER | {"status": 403}}),
        ("pair", {"foreign": ANSWER | {"body": "{ }"}}),
        ("pair", {"unknown": ANSWER | {"headers": []}}),
        ("pair", {"leaks": ["job_x"]}),
        ("list", {"foreign": 1}),
        ("cursor", {"next": "b"}),
        ("reuse", {"works": False}),
        ("timing", {"t": -9.0}),
        ("guesses", {"hits": 1}),
        ("owned", {"after": ANSWER | {"status": 404, "body": ""}}),
        ("file", {"secret": True}),
    ],
)
def test_the_checker_rejects_a_bad_history(
    strangers: Any, tmp_path: Path, kind: str, wrong: dict[str, Any]
) -> None:
    assert strangers.violations(_history(tmp_path / "good", SOUND)) == []
    assert (
        len(strangers.violations(_history(tmp_path / "bad", SOUND | {kind: SOUND[kind] | wrong})))
        == 1
    )


@pytest.mark.parametrize("kind", ["pair", "list", "timing", "guesses", "owned", "file"])
def test_the_checker_rejects_a_history_that_tells_too_little(
    strangers: Any, tmp_path: Path, kind: str
) -> None:
    told = {name: entry for name, entry in SOUND.items() if name != kind}
    assert strangers.violations(_history(tmp_path / "short", told)) == [
        f"the history tells nothing of {kind}"
    ]
