"""A short run of the campaign, and its judge."""

import os
import subprocess
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


def _mounts() -> bool:
    """Whether this system lets us mount what only we see."""
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    try:
        command = ["unshare", *user, "--mount", "mount", "-t", "tmpfs", "impasto", "/mnt"]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.reliability
@pytest.mark.skipif(not _mounts(), reason="needs a mount namespace")
def test_a_service_outlives_the_faults_of_its_disk(
    play: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = play("full_disk", "--seed", "1", "--count", "5")

    assert done.returncode == 0, done.stdout + done.stderr


def _history(tmp_path: Path, **changes: dict[str, Any]) -> Path:
    """Of one job and one fault, in order but for the changes."""
    told = History(tmp_path / "history.jsonl")
    end = {**END, "pixels": "p", **changes.get("final", {})}
    told.record("reference", parameters=0, pixels="p")
    told.record("accepted", job="a", key="k", parameters=0)
    told.record("begun", kind="full")
    told.record("answer", **{**GET, **changes.get("meanwhile", {})})
    told.record("refused", **{**REFUSED, **changes.get("refused", {})})
    told.record("over", **{**OVER, **changes.get("over", {})})
    told.record("recovered", **{**RECOVERED, **changes.get("recovered", {})})
    told.record("answer", **{**GET, **changes.get("answer", {})})
    told.record("final", job="a", **end)
    told.record("files", **{"torn": [], "parts": [], **changes.get("files", {})})
    told.record("records", count=2)
    told.record("left", files=[])
    return told.file


@pytest.mark.parametrize(
    ("event", "change", "words"),
    [
        ("final", {}, ""),
        ("answer", {"status": 503, "retry_after": "2"}, ""),
        ("meanwhile", {"method": "POST", "status": 503, "retry_after": "2"}, ""),
        ("meanwhile", {"status": 503, "retry_after": "2"}, "though nothing is to be written"),
        ("answer", {"status": 503}, "without Retry-After"),
        ("answer", {"status": 500}, "answered 500"),
        ("answer", {"status": 404}, "answered 404"),
        ("answer", {"seconds": 11.0}, "hung"),
        ("refused", {"upload": 201}, "an upload was answered 201"),
        ("refused", {"ready": 200}, "/readyz 200"),
        ("over", {"torn": ["ab"]}, "torn"),
        ("files", {"torn": ["ab"]}, "torn"),
        ("files", {"parts": ["tmp1"]}, "begun and left"),
        ("recovered", {"after": 11.0}, "well again after 11.0 s"),
        ("recovered", {"died": ["api"]}, "api died"),
        ("final", {"status": "failed", "error": {"code": "worker_lost"}}, "ended as failed"),
    ],
)
def test_the_judge_finds_what_must_not_be(
    tmp_path: Path,
    campaign: Callable[[str], ModuleType],
    event: str,
    change: dict[str, Any],
    words: str,
) -> None:
    found = campaign("full_disk").violations(_history(tmp_path, **{event: change}))

    assert [True] * bool(words) == [words in line for line in found]
