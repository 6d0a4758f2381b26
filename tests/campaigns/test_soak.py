"""A short run of the campaign, and tests of its checker."""

from pathlib import Path
from typing import Any

import pytest
import soak
from history import History

pytestmark = pytest.mark.e2e

SAMPLE = {"api rss_mb": 80.0, "api fds": 20, "store_keys": 50, "files": 100, "data_mb": 1.0}


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "history.jsonl")


@pytest.mark.reliability
@pytest.mark.timeout(600)  # it starts a fleet and measures its throughput
def test_nothing_grows_in_a_short_run(tmp_path: Path, history: History) -> None:
    soak.campaign(tmp_path / "fleet", history, seed=1, minutes=0.3, load=0.7, every=0.4, loose=3)

    assert soak.violations(history.file) == []


def _write(history: History, changes: dict[str, Any], *, loose: float = 1.0) -> None:
    """Write ten samples that grow from the usual values to those of `changes`."""
    history.record("begin", loose=loose, throughput=1.0)
    for number in range(10):
        grown = {
            name: SAMPLE[name] + (value - SAMPLE[name]) * number / 9
            for name, value in changes.items()
            if name in SAMPLE
        }
        history.record("sample", **{**SAMPLE, **grown})
    history.record("arrived", active=0)
    if changes.get("job", "succeeded"):
        history.record("job", status=changes.get("job", "succeeded"))
    if "answer" in changes:
        history.record("failed", method="GET", path="/", status=changes["answer"])
    if "refused" in changes:
        history.record("refused", status=changes["refused"], text="no")
    if changes.get("ends", True):
        history.record("end")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"api rss_mb": 90}, []),
        ({"api rss_mb": 120}, ["api rss_mb grew"]),
        ({"api fds": 40}, ["api fds grew"]),
        ({"store_keys": 250}, ["store_keys grew"]),
        ({"files": 300}, ["files grew"]),
        ({"data_mb": 20.0}, ["data_mb grew"]),
        ({"job": ""}, ["1 callers arrived, 0 finished"]),
        ({"job": "failed"}, ["1 jobs ended as failed"]),
        ({"job": "queued"}, ["1 jobs ended as queued"]),
        ({"answer": 503}, []),
        ({"answer": 500}, ["answered 500"]),
        ({"refused": 422}, ["answered 422"]),
        ({"ends": False}, ["did not come to its end"]),
    ],
)
def test_the_checker_finds_each_violation(
    history: History, changes: dict[str, Any], words: list[str]
) -> None:
    _write(history, changes)
    found = soak.violations(history.file)

    assert len(found) == len(words)
    assert all(word in line for word, line in zip(words, found, strict=True))


def test_a_loose_checker_allows_more_growth(history: History) -> None:
    _write(history, {"files": 200.0}, loose=3.0)

    assert soak.violations(history.file) == []
