"""A short run of the campaign, and its checker."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from history import History

pytestmark = pytest.mark.e2e

END = {
    "status": "succeeded",
    "version": 9,
    "attempt": 1,
    "completed_at": "t",
    "outputs": [],
    "error": None,
}
GET = {"method": "GET", "path": "/v1/jobs/a", "status": 200, "seconds": 0.1, "retry_after": None}
OVER = {"kind": "full", "torn": []}
RECOVERED = {"kind": "full", "after": 0.5, "died": []}
REFUSED = {"kind": "full", "upload": 503, "ready": 503}


def _can_mount() -> bool:
    """Return whether this system allows a private mount namespace."""
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    try:
        command = ["unshare", *user, "--mount", "mount", "-t", "tmpfs", "impasto", "/mnt"]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.reliability
@pytest.mark.skipif(not _can_mount(), reason="needs a mount namespace")
def test_a_service_survives_the_faults_of_its_disk(
    play: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = play("full_disk", "--seed", "1", "--count", "5")

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.reliability
@pytest.mark.skipif(not _can_mount(), reason="needs a mount namespace")
def test_impasto_up_continues_by_itself_when_a_full_disk_has_room_again() -> None:
    command = [sys.executable, str(Path(__file__).with_name("up_disk.py"))]
    done, control = (
        subprocess.run([*command, *more], capture_output=True, text=True, check=False, timeout=200)
        for more in ([], ["--without", "room"])
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert (control.returncode, "does not stay up" in control.stderr) == (1, True)


def _history(tmp_path: Path, **changes: dict[str, Any]) -> Path:
    """Write the history of one job and one fault, correct except for the changes."""
    history = History(tmp_path / "history.jsonl")
    end = {**END, "pixels": "p", **changes.get("final", {})}
    history.record("reference", parameters=0, pixels="p")
    history.record("accepted", job="a", key="k", parameters=0)
    history.record("begun", kind="full")
    history.record("answer", **{**GET, **changes.get("meanwhile", {})})
    history.record("refused", **{**REFUSED, **changes.get("refused", {})})
    history.record("over", **{**OVER, **changes.get("over", {})})
    history.record("recovered", **{**RECOVERED, **changes.get("recovered", {})})
    history.record("answer", **{**GET, **changes.get("answer", {})})
    history.record("final", job="a", **end)
    history.record("files", **{"torn": [], "parts": [], **changes.get("files", {})})
    history.record("records", count=2)
    history.record("left", files=[])
    return history.file


@pytest.mark.parametrize(
    ("event", "change", "violation"),
    [
        ("final", {}, ""),
        ("answer", {"status": 503, "retry_after": "2"}, ""),
        ("meanwhile", {"method": "POST", "status": 503, "retry_after": "2"}, ""),
        ("meanwhile", {"status": 503, "retry_after": "2"}, "although it writes nothing"),
        ("answer", {"status": 503}, "without Retry-After"),
        ("answer", {"status": 500}, "answered 500"),
        ("answer", {"status": 404}, "answered 404"),
        ("answer", {"seconds": 11.0}, "hung"),
        ("refused", {"upload": 201}, "an upload was answered 201"),
        ("refused", {"ready": 200}, "/readyz 200"),
        ("over", {"torn": ["ab"]}, "torn"),
        ("files", {"torn": ["ab"]}, "torn"),
        ("files", {"parts": ["tmp1"]}, "pending and left"),
        ("recovered", {"after": 11.0}, "recovered after 11.0 s"),
        ("recovered", {"died": ["api"]}, "api died"),
        ("final", {"status": "failed", "error": {"code": "worker_lost"}}, "ended as failed"),
    ],
)
def test_the_checker_finds_each_violation(
    tmp_path: Path,
    campaign: Callable[[str], ModuleType],
    event: str,
    change: dict[str, Any],
    violation: str,
) -> None:
    found = campaign("full_disk").violations(_history(tmp_path, **{event: change}))

    assert [violation in line for line in found] == [True] * bool(violation)
