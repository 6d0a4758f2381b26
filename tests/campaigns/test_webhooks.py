"""A short run of the webhook campaign, its controls, and tests of its checker."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("webhooks.py")
violations = runpy.run_path(str(SCRIPT))["violations"]


def _run(count: int, *options: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(SCRIPT), "--count", str(count), "--seed", "3", *options]
    return subprocess.run(
        command, cwd=SCRIPT.parents[2], capture_output=True, text=True, check=False
    )


def test_every_webhook_arrives_or_fails_after_the_last_try() -> None:
    ran = _run(24)

    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.reliability
@pytest.mark.parametrize(
    ("guard", "violation"),
    [("guard", "a canary was reached"), ("lease", "sent twice at the same time")],
)
def test_without_a_guard_the_campaign_finds_a_violation(guard: str, violation: str) -> None:
    ran = _run(120, "--without", guard)  # two deliveries must meet

    assert ran.returncode == 1, ran.stdout + ran.stderr
    assert violation in ran.stdout


def _history(**changes: Any) -> list[dict[str, Any]]:
    """One job with one webhook. `changes` are named EVENT_FIELD."""
    events: dict[str, dict[str, Any]] = {
        "ended": {
            "job": "j",
            "host": "good-1.example.org",
            "seconds": 0.01,
            "record": {"status": "canceled"},
        },
        "post": {"job": "j", "id": "m", "answer": "ok", "verified": True, "from": 1.0, "to": 2.0},
        "last": {"job": "j", "end": "delivered", "tries": 1, "record": {"status": "canceled"}},
    }
    for name, value in changes.items():
        event, _, field = name.partition("_")
        events[event][field] = value
    return [json.loads(json.dumps({"event": event, **values})) for event, values in events.items()]


def test_the_checker_accepts_a_valid_history() -> None:
    assert violations(_history()) == []
    assert violations(_history(post_answer="fail", last_end="given_up", last_tries=8)) == []


@pytest.mark.parametrize(
    "history",
    [
        [],
        _history()[:2],
        _history()[1:],
        [*_history(), {"event": "canary", "peer": "x"}],
        [*_history(), {**_history()[1], "from": 1.5, "to": 3}],
        [*_history(), {**_history()[1], "from": 5, "to": 6, "id": "other"}],
        _history(post_verified=False),
        _history(post_answer="fail"),
        _history(last_end=None),
        _history(last_end="gone"),
        _history(last_end="given_up", last_tries=7),
        _history(last_record={"status": "queued"}),
        _history(ended_seconds=3),
        _history(ended_host="private-1.example.org"),
    ],
)
def test_the_checker_rejects_an_invalid_history(history: list[dict[str, Any]]) -> None:
    assert violations(history)
