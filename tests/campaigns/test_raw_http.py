"""The raw set, with little patience; and that the checker sees what is wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Play = Callable[..., Any]

SOUND = {
    "name": "a", "statuses": [400], "expected": [400], "code": "bad_request", "expected_code": "bad_request",
    "kind": "application/problem+json", "seconds": 0.1, "echo": False, "forbidden": None,
}  # fmt: skip


def test_every_answer_is_one_of_those_that_are_expected(play: Play) -> None:
    played = play("raw_http", "--patience", "2")

    assert played.returncode == 0, played.stdout + played.stderr


@pytest.mark.reliability
@pytest.mark.parametrize(
    ("guard", "wrong"), [("guard", "host elsewhere.example"), ("validation", "query limit=NaN")]
)
def test_without_a_guard_it_fails(play: Play, guard: str, wrong: str) -> None:
    played = play("raw_http", "--patience", "2", "--without", guard)

    assert played.returncode == 1
    assert wrong in played.stdout


@pytest.mark.parametrize(
    "wrong",
    [
        {"statuses": [500], "expected": [500]},
        {"statuses": [200]},
        {"statuses": []},
        {"statuses": [400, -1]},
        {"code": "other"},
        {"kind": "text/plain"},
        {"seconds": 60.0},
        {"echo": True},
        {"forbidden": "access-control-allow-origin"},
    ],
)
def test_the_checker_rejects_a_bad_answer(
    campaign: Any, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    (good := tmp_path / "good").write_text(json.dumps({"case": SOUND}))
    (bad := tmp_path / "bad").write_text(json.dumps({"case": SOUND | wrong}))

    assert campaign("raw_http").violations(good) == []
    assert campaign("raw_http").violations(bad)


@pytest.mark.parametrize(
    "line",
    ["no json", json.dumps({"a": "b" * 5000}), '{"a": "zanzibar"}', '{"a": "hunter2"}', '"ä"'],
)
def test_the_checker_rejects_a_bad_log_and_a_file_that_is_left(
    campaign: Any, tmp_path: Path, line: str
) -> None:
    (bad := tmp_path / "bad").write_text(
        json.dumps({"log": line}) + "\n" + json.dumps({"leftovers": ["data/x"]})
    )

    assert len(campaign("raw_http").violations(bad)) >= 2
