"""The contract with few examples, and tests of the checker."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Play = Callable[..., Any]

SOUND = {"operation": "GET /v1/jobs", "status": 200, "seconds": 0.1, "broken": []}
END = {"exit": 0, "log": 0}


@pytest.mark.reliability
def test_every_response_conforms_to_the_document(play: Play) -> None:
    result = play("contract", "--count", "2")

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.reliability
def test_with_fastapis_own_error_handler_there_are_violations(play: Play) -> None:
    result = play("contract", "--count", "2", "--without", "validation")

    assert result.returncode == 1
    assert "content_type_conformance" in result.stdout


@pytest.mark.parametrize(
    "wrong", [{"status": 500}, {"status": None}, {"broken": ["response_schema_conformance: x"]}]
)
def test_the_checker_rejects_a_bad_response(
    campaign: Any, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    (good := tmp_path / "good").write_text(json.dumps(SOUND) + "\n" + json.dumps(END))
    (bad := tmp_path / "bad").write_text(json.dumps(SOUND | wrong) + "\n" + json.dumps(END))

    assert campaign("contract").violations(good) == []
    assert campaign("contract").violations(bad)


@pytest.mark.parametrize(
    "end", [{"exit": 2, "log": 0}, {"exit": 1, "log": 0}, {"exit": 0, "log": 1}]
)
def test_the_checker_rejects_a_bad_end(campaign: Any, tmp_path: Path, end: dict[str, int]) -> None:
    (bad := tmp_path / "bad").write_text(json.dumps(SOUND) + "\n" + json.dumps(end))

    assert campaign("contract").violations(bad)
