"""A short run of the campaign, and tests of its checker."""

from pathlib import Path
from typing import Any

import poison
import pytest
from history import History

pytestmark = pytest.mark.e2e


@pytest.mark.reliability
@pytest.mark.timeout(900)  # each kill restarts a process with torch
def test_sound_jobs_end_among_jobs_that_kill_their_workers(tmp_path: Path) -> None:
    history = History(tmp_path / "history.jsonl")
    poison.campaign(tmp_path / "fleet", history, seed=1, jobs=6, poison=2, seconds=3, factor=1000)

    assert poison.violations(history.file) == []


SOUND = {
    "poison": "",
    "parameters": 0,
    "status": "succeeded",
    "attempt": 1,
    "error": None,
    "pixels": "p",
    "seconds": 1,
}
KILL = {
    "poison": "kill",
    "parameters": 0,
    "status": "failed",
    "attempt": 3,
    "error": {"code": "worker_lost"},
    "pixels": None,
}


def _history(tmp_path: Path, *poisoned: dict[str, Any], serving: bool = True) -> Path:
    """The history of one job in the calm round and these in the poisoned round."""
    history = History(tmp_path / "history.jsonl")
    history.record("begin", factor=5)
    history.record("reference", parameters=0, pixels="p")
    for number, facts in enumerate([SOUND, *poisoned]):
        name = "poisoned" if number else "calm"
        history.record(
            "accepted",
            job=str(number),
            round=name,
            poison=facts["poison"],
            parameters=facts["parameters"],
        )
        if facts["status"]:
            end = {name: facts[name] for name in ("status", "attempt", "error", "pixels")}
            done = (
                f"2026-01-01T00:00:{facts.get('seconds', 9):02}Z"
                if facts["status"] != "queued"
                else None
            )
            history.record(
                "final",
                job=str(number),
                created_at="2026-01-01T00:00:00Z",
                completed_at=done,
                **end,
            )
    history.record("end", serving=serving)
    return history.file


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"status": ""}, "lost"),
        ({"status": "queued"}, "never ended"),
        ({"attempt": 2}, "at attempt 2"),
        ({"pixels": "q"}, "with q"),
        ({"seconds": 12}, "12.00 s, not 1.00"),
        ({**KILL}, ""),
        ({**KILL, "attempt": 2}, "at attempt 2"),
        ({**KILL, "attempt": 4}, "at attempt 4"),
        ({**KILL, "poison": "late", "attempt": 5}, ""),
        ({**KILL, "poison": "late", "attempt": 50}, "at attempt 50"),
        ({**KILL, "error": {"code": "internal"}}, "internal"),
        ({**KILL, "status": "succeeded"}, "ended as succeeded"),
    ],
)
def test_the_checker_finds_each_violation(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    found = poison.violations(_history(tmp_path, SOUND, {**SOUND, **changes}))

    if changes.get("seconds"):
        found = poison.violations(_history(tmp_path, {**SOUND, **changes}))
    assert [True] * bool(words) == [words in line for line in found]


def test_the_checker_requires_a_running_service_at_the_end(tmp_path: Path) -> None:
    assert len(poison.violations(_history(tmp_path, SOUND, serving=False))) == 1
