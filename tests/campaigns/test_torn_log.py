"""A short run of the campaign, and its judge."""

from pathlib import Path
from typing import Any

import pytest
import torn_log
from history import History

pytestmark = pytest.mark.e2e


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "history.jsonl")


def test_what_is_left_of_a_torn_log_is_whole(tmp_path: Path, history: History) -> None:
    torn_log.campaign(tmp_path / "torn", history, seed=1, count=5, seconds=0)

    assert torn_log.violations(history.file) == []


@pytest.mark.reliability
def test_steps_that_nothing_holds_together_are_found_torn(tmp_path: Path, history: History) -> None:
    torn_log.campaign(tmp_path / "torn", history, seed=1, count=25, seconds=0, without="atomic")

    assert torn_log.violations(history.file)


@pytest.mark.reliability
@pytest.mark.timeout(900)  # it starts three times
def test_a_service_goes_on_from_a_torn_log_and_from_a_backup(
    tmp_path: Path, history: History
) -> None:
    torn_log.campaign(tmp_path / "torn", history, seed=1, count=0, seconds=4)

    assert torn_log.violations(history.file) == []
    assert any(
        history.file.read_text().count(f'"name": "{name}"') > 3 for name in ("torn", "backup")
    )


TEAR = {"way": "up", "bytes": 100, "started": True, "half": [], "jobs": ["a"], "kept": True}
FLIP = {
    "way": "up",
    "at": 9,
    "started": False,
    "says": True,
    "listed": True,
    "repairable": True,
    "repaired": True,
}
AGAIN = {"name": "torn", "job": "s", "status": "succeeded", "error": None, "pixels": "p"}


def _tell(told: History, changes: dict[str, Any]) -> None:
    told.tell("lived", job="a", forgotten=False, bytes=90)
    told.tell("lived", job="b", forgotten=False, bytes=110)
    told.tell("lived", job="c", forgotten=True, bytes=80)
    told.tell("tear", **{**TEAR, **changes.get("tear", {})})
    told.tell("flip", **{**FLIP, "half": [], "left": 1, **changes.get("flip", {})})
    told.tell("reference", parameters=0, pixels="p")
    told.tell("accepted", job="s", parameters=0, at=1)
    told.tell("size", bytes=50, at=2)
    told.tell("backup", at=2)
    told.tell("accepted", job="t", parameters=0, at=3)
    told.tell("left", bytes=60)
    told.tell("again", **{**AGAIN, **changes.get("again", {})})
    told.tell("again", **{**AGAIN, "name": "backup"})
    for name in changes.get("names", ("torn", "backup")):
        told.tell("left behind", name=name, files=changes.get("files", []))
    if changes.get("ends", True):
        told.tell("end", service=True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, []),
        ({"tear": {"started": False}}, ["does not start"]),
        ({"tear": {"half": ["x is not in y"]}}, ["x is not in y"]),
        ({"tear": {"jobs": []}}, ["1 jobs of before are lost"]),
        ({"tear": {"kept": False}}, ["written afterwards is lost"]),
        ({"flip": {"says": False}}, ["not told why"]),
        ({"flip": {"repaired": False}}, ["cannot be repaired"]),
        ({"flip": {"repaired": False, "repairable": False}}, []),
        ({"flip": {"started": True, "listed": False}}, ["tells of no job"]),
        ({"again": {"job": "t"}}, ["torn: s is lost"]),
        ({"again": {"status": "failed"}}, ["ended as failed"]),
        ({"again": {"pixels": "q"}}, ["with q"]),
        ({"files": ["blobs/aa/b"]}, ["torn: left behind", "backup: left behind"]),
        ({"names": ["torn"]}, ["backup: did not come up"]),
        ({"ends": False}, ["did not come to its end"]),
    ],
)
def test_the_judge_finds_what_must_not_be(
    history: History, changes: dict[str, Any], words: list[str]
) -> None:
    _tell(history, changes)
    found = torn_log.violations(history.file)

    assert len(found) == len(words)
    assert all(word in line for word, line in zip(words, found, strict=True))
