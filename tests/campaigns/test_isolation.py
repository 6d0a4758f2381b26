"""A short run, a run without the owner checks, and tests of the checker."""

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
def isolation(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The campaign as a module."""
    monkeypatch.syspath_prepend(str(HERE))
    return importlib.import_module("isolation")


def _run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        str(HERE / "isolation.py"),
        "--count",
        "20",
        "--history",
        str(folder / "history"),
    ]
    return subprocess.run(
        [*command, *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def test_a_client_sees_nothing_of_another_client(tmp_path: Path) -> None:
    run = _run(tmp_path)

    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.reliability
def test_without_the_owner_checks_there_are_violations(
    tmp_path: Path, isolation: ModuleType
) -> None:
    run = _run(tmp_path, "--without", "owners")

    assert run.returncode == 1
    assert run.stderr == ""  # the campaign found violations, it did not fail itself
    found = "\n".join(isolation.violations(tmp_path / "history"))
    expected = (
        "GET /v1/jobs/{job_id} queued",
        "HEAD /v1/images/{digest} preview",
        "queued: changed by another client",
    )
    for violation in expected:
        assert violation in found, violation


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
    isolation: Any, tmp_path: Path, kind: str, wrong: dict[str, Any]
) -> None:
    assert isolation.violations(_history(tmp_path / "good", SOUND)) == []
    assert (
        len(isolation.violations(_history(tmp_path / "bad", SOUND | {kind: SOUND[kind] | wrong})))
        == 1
    )


@pytest.mark.parametrize("kind", ["pair", "list", "timing", "guesses", "owned", "file"])
def test_the_checker_rejects_an_incomplete_history(
    isolation: Any, tmp_path: Path, kind: str
) -> None:
    incomplete = {name: entry for name, entry in SOUND.items() if name != kind}
    assert isolation.violations(_history(tmp_path / "short", incomplete)) == [
        f"the history has no entry of kind {kind}"
    ]
