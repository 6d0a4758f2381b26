"""A hundred slow clients for some seconds, and tests of the checker."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Play = Callable[..., Any]

KINDS = ("silent", "head", "body", "read", "result")
GOOD = [
    *({"slow": kind, "seconds": 15.0, "ended": "disconnected"} for kind in KINDS),
    {"regular": "poll", "ms": 10.0, "status": 200},
    {"regular": "upload", "ms": 10.0, "status": 201},
    {"regular": "download", "ms": 10.0, "status": 200},
    {
        "server": {
            "before": {"files": 10, "bytes": 1},
            "after": {"files": 10, "bytes": 1},
            "answers": True,
        }
    },
    {"options": {"timeout": 15.0, "count": 5, "seconds": 60}},
]


@pytest.mark.reliability
def test_slow_clients_are_disconnected_and_regular_ones_are_served(play: Play) -> None:
    result = play("slow_clients", "--count", "100", "--seconds", "6", "--timeout", "2")

    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.reliability
def test_the_campaign_fails_with_uvicorns_own_protocol(play: Play) -> None:
    result = play(
        "slow_clients",
        "--count",
        "20",
        "--seconds",
        "6",
        "--timeout",
        "2",
        "--without",
        "protocol",
    )

    assert result.returncode == 1
    assert all(f"{kind}: none was disconnected" in result.stdout for kind in KINDS)


@pytest.mark.parametrize(
    "wrong",
    [
        {"slow": "head", "seconds": 20.0, "ended": "disconnected"},
        {"slow": "result", "seconds": 30.0, "ended": "open"},
        {"slow": "silent", "seconds": 0.0, "ended": "refused"},
        {"regular": "poll", "ms": 600.0, "status": 200},
        {"regular": "poll", "ms": 1.0, "status": 503},
        {"regular": "upload", "ms": 1.0, "status": 0},
        {"server": {"before": {"files": 10}, "after": {"files": 90}, "answers": True}},
        {"server": {"before": {"files": 10}, "after": {"files": 10}, "answers": False}},
    ],
)
def test_the_checker_rejects_a_bad_history(
    campaign: Any, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    (good := tmp_path / "good").write_text("\n".join(json.dumps(entry) for entry in GOOD))
    (bad := tmp_path / "bad").write_text("\n".join(json.dumps(entry) for entry in [*GOOD, wrong]))

    assert campaign("slow_clients").violations(good) == []
    assert campaign("slow_clients").violations(bad)
