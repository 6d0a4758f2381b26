"""Short runs of the campaign, and tests of its checker."""

from pathlib import Path
from typing import Any

import pytest
import torn_log
from history import History

pytestmark = pytest.mark.e2e


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "history.jsonl")


def test_a_truncated_log_recovers_to_a_consistent_store(tmp_path: Path, history: History) -> None:
    torn_log.campaign(tmp_path / "torn", history, seed=1, count=5, seconds=0)

    assert torn_log.violations(history.file) == []


@pytest.mark.reliability
def test_without_transactions_a_truncated_log_is_inconsistent(
    tmp_path: Path, history: History
) -> None:
    torn_log.campaign(tmp_path / "torn", history, seed=1, count=25, seconds=0, without="atomic")

    assert torn_log.violations(history.file)


@pytest.mark.reliability
@pytest.mark.timeout(900)  # three services start
def test_a_service_recovers_from_a_torn_log_and_from_a_backup(
    tmp_path: Path, history: History
) -> None:
    torn_log.campaign(tmp_path / "torn", history, seed=1, count=0, seconds=4)

    assert torn_log.violations(history.file) == []
    assert any(
        history.file.read_text().count(f'"name": "{name}"') > 3 for name in ("torn", "backup")
    )


TEAR = {"way": "up", "bytes": 100, "started": True, "problems": [], "jobs": ["a"], "kept": True}
FLIP = {
    "way": "up",
    "at": 9,
    "started": False,
    "says": True,
    "listed": True,
    "repairable": True,
    "repaired": True,
}
RECOVERED = {"name": "torn", "job": "s", "status": "succeeded", "error": None, "pixels": "p"}


def _write(history: History, changes: dict[str, Any]) -> None:
    history.record("written", job="a", deleted=False, bytes=90)
    history.record("written", job="b", deleted=False, bytes=110)
    history.record("written", job="c", deleted=True, bytes=80)
    history.record("tear", **{**TEAR, **changes.get("tear", {})})
    history.record("flip", **{**FLIP, "problems": [], "left": 1, **changes.get("flip", {})})
    history.record("reference", parameters=0, pixels="p")
    history.record("accepted", job="s", parameters=0, at=1)
    history.record("size", bytes=50, at=2)
    history.record("backup", at=2)
    history.record("accepted", job="t", parameters=0, at=3)
    history.record("left", bytes=60)
    history.record("recovered", **{**RECOVERED, **changes.get("recovered", {})})
    history.record("recovered", **{**RECOVERED, "name": "backup"})
    for name in changes.get("names", ("torn", "backup")):
        history.record("left behind", name=name, files=changes.get("files", []))
    if changes.get("ends", True):
        history.record("end", service=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"tear": {"started": False}}, ["does not start"]),
        ({"tear": {"problems": ["x is not in y"]}}, ["x is not in y"]),
        ({"tear": {"jobs": []}}, ["1 earlier jobs are lost"]),
        ({"tear": {"kept": False}}, ["a later job is lost"]),
        ({"flip": {"says": False}}, ["refused without a reason"]),
        ({"flip": {"repaired": False}}, ["documented repair fails"]),
        ({"flip": {"repaired": False, "repairable": False}}, []),
        ({"flip": {"started": True, "listed": False}}, ["lists no jobs"]),
        ({"recovered": {"job": "t"}}, ["torn: s is lost"]),
        ({"recovered": {"status": "failed"}}, ["ended as failed"]),
        ({"recovered": {"pixels": "q"}}, ["with q"]),
        ({"files": ["blobs/aa/b"]}, ["torn: left behind", "backup: left behind"]),
        ({"names": ["torn"]}, ["backup: the service did not start"]),
        ({"ends": False}, ["did not finish"]),
    ],
)
def test_the_checker_finds_each_violation(
    history: History, changes: dict[str, Any], words: list[str]
) -> None:
    _write(history, changes)
    found = torn_log.violations(history.file)

    assert len(found) == len(words)
    assert all(word in line for word, line in zip(words, found, strict=True))
