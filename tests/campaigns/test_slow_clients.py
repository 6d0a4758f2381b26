"""A hundred slow clients for some seconds; and that the checker sees what is wrong."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Play = Callable[..., Any]

KINDS = ("silent", "head", "body", "read", "result")
SOUND = [
    *({"slow": kind, "seconds": 15.0, "ended": "cut"} for kind in KINDS),
    {"honest": "poll", "ms": 10.0, "status": 200},
    {"honest": "upload", "ms": 10.0, "status": 201},
    {"honest": "download", "ms": 10.0, "status": 200},
    {
        "server": {
            "before": {"files": 10, "bytes": 1},
            "after": {"files": 10, "bytes": 1},
            "answers": True,
        }
    },
    {"given": {"patience": 15.0, "count": 5, "seconds": 60}},
]


@pytest.mark.reliability
def test_the_slow_are_cut_and_the_honest_are_served(play: Play) -> None:
    played = play("slow_clients", "--count", "100", "--seconds", "6", "--patience", "2")

    assert played.returncode == 0, played.stdout + played.stderr


@pytest.mark.reliability
def test_uvicorns_own_protocol_fails(play: Play) -> None:
    played = play(
        "slow_clients",
        "--count",
        "20",
        "--seconds",
        "6",
        "--patience",
        "2",
        "--without",
        "protocol",
    )

    assert played.returncode == 1
    assert all(f"{kind}: none was cut" in played.stdout for kind in KINDS)


@pytest.mark.parametrize(
    "wrong",
    [
        {"slow": "head", "seconds": 20.0, "ended": "cut"},
        {"slow": "result", "seconds": 30.0, "ended": "open"},
        {"slow": "silent", "seconds": 0.0, "ended": "refused"},
        {"honest": "poll", "ms": 600.0, "status": 200},
        {"honest": "poll", "ms": 1.0, "status": 503},
        {"honest": "upload", "ms": 1.0, "status": 0},
        {"server": {"before": {"files": 10}, "after": {"files": 90}, "answers": True}},
        {"server": {"before": {"files": 10}, "after": {"files": 10}, "answers": False}},
    ],
)
def test_the_checker_rejects_a_bad_history(
    campaign: Any, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    (good := tmp_path / "good").write_text("\n".join(json.dumps(entry) for entry in SOUND))
    (bad := tmp_path / "bad").write_text("\n".join(json.dumps(entry) for entry in [*SOUND, wrong]))

    assert campaign("slow_clients").violations(good) == []
    assert campaign("slow_clients").violations(bad)
