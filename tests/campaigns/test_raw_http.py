"""All cases, with a short client timeout, and tests of the checker."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Play = Callable[..., Any]

SOUND = {
    "name": "a",
    "statuses": [400],
    "expected": [400],
    "code": "bad_request",
    "expected_code": "bad_request",
    "kind": "application/problem+json",
    "seconds": 0.1,
    "echo": False,
    "forbidden": None,
}


def test_every_response_is_an_expected_one(play: Play) -> None:
    result = play("raw_http", "--client-timeout", "2")

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.reliability
@pytest.mark.parametrize(
    ("guard", "wrong"), [("guard", "host elsewhere.example"), ("validation", "query limit=NaN")]
)
def test_without_a_guard_there_are_violations(play: Play, guard: str, wrong: str) -> None:
    result = play("raw_http", "--client-timeout", "2", "--without", guard)

    assert result.returncode == 1
    assert wrong in result.stdout


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
def test_the_checker_rejects_a_bad_response(
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
def test_the_checker_rejects_a_bad_log_line_and_a_leftover_file(
    campaign: Any, tmp_path: Path, line: str
) -> None:
    (bad := tmp_path / "bad").write_text(
        json.dumps({"log": line}) + "\n" + json.dumps({"leftovers": ["data/x"]})
    )

    assert len(campaign("raw_http").violations(bad)) >= 2
