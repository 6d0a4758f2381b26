"""Short runs of the campaign, and tests of its checker."""

from pathlib import Path
from typing import Any

import failover
import pytest
from history import History

pytestmark = [pytest.mark.e2e, pytest.mark.reliability]


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "history.jsonl")


def test_no_accepted_job_is_lost_in_a_failover(tmp_path: Path, history: History) -> None:
    failover.campaign(tmp_path, history, seed=1, failovers=1, kinds=("lag",), workers=1)

    assert failover.violations(history.file) == []
    assert len(failover.figures(history.file)["lag"]["accepted"]) == 1


def test_jobs_that_no_replica_has_are_lost_in_a_failover(tmp_path: Path, history: History) -> None:
    """min-replicas-to-write does not help."""
    control: dict[str, Any] = {"without": "replicas", "min_replicas": True}
    # Two, because perhaps no job is accepted in the second before one of them.
    failover.campaign(tmp_path, history, seed=1, failovers=2, kinds=("lag",), workers=1, **control)

    assert any("is lost" in violation for violation in failover.violations(history.file))


@pytest.mark.parametrize(
    ("status", "count"), [("succeeded", 0), ("lost", 1), ("queued", 1), ("failed", 1)]
)
def test_the_checker_reports_what_did_not_succeed(
    history: History, status: str, count: int
) -> None:
    history.record("end", job="job_a", status=status)
    assert failover.violations(history.file)[count:] == ["the campaign did not finish"]
    history.record("done")

    found = failover.violations(history.file)
    assert len(found) == count
