"""Short runs of the campaigns on jobs, and tests of their checkers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import acknowledged
import faults
import floods
import forged
import kills
import lost_wakeups
import mixed_versions
import orphans
import pytest
import repeats
import rolling
import zombies
from fleet import Fleet
from history import History, events, percentile
from proxy import Proxy

pytestmark = pytest.mark.e2e


@pytest.fixture
def history(tmp_path: Path, weights: Any) -> History:
    return History(tmp_path / "history.jsonl")


@pytest.mark.reliability
def test_no_job_is_lost_when_all_processes_are_killed(tmp_path: Path, history: History) -> None:
    kills.campaign(tmp_path / "fleet", history, seed=1, kills=8, jobs=12)

    assert kills.violations(history.file) == []
    assert sum(kills.figures(history.file)["kills"].values()) == 8


def test_no_acknowledged_submission_is_lost_when_the_store_is_killed(
    tmp_path: Path, history: History
) -> None:
    acknowledged.campaign(tmp_path, history, seed=1, kills=3)

    assert acknowledged.violations(history.file) == []


def test_without_an_append_only_file_submissions_are_lost(tmp_path: Path, history: History) -> None:
    acknowledged.campaign(tmp_path, history, seed=1, kills=1, without="aof")

    assert acknowledged.violations(history.file)


def test_the_store_refuses_workers_that_lost_their_lease(tmp_path: Path, history: History) -> None:
    zombies.campaign(tmp_path, history, seed=1, trials=4, lease_seconds=2)

    assert zombies.violations(history.file) == []


@pytest.mark.reliability
def test_without_fencing_the_store_accepts_workers_that_lost_their_lease(
    tmp_path: Path, history: History
) -> None:
    zombies.campaign(tmp_path, history, seed=1, trials=3, lease_seconds=2, without="fencing")

    assert zombies.violations(history.file)


@pytest.mark.reliability
def test_a_job_resumes_soon_after_its_process_died(tmp_path: Path, history: History) -> None:
    orphans.campaign(tmp_path / "fleet", history, seed=2, trials=2)

    assert orphans.violations(history.file) == []


@pytest.mark.reliability
def test_an_idle_worker_is_woken_again_after_lost_messages(
    tmp_path: Path, history: History
) -> None:
    lost_wakeups.campaign(tmp_path / "fleet", history, jobs=8)

    assert lost_wakeups.violations(history.file) == []


@pytest.mark.reliability
def test_without_the_reaper_lost_messages_leave_jobs_queued(
    tmp_path: Path, history: History
) -> None:
    lost_wakeups.campaign(tmp_path / "fleet", history, jobs=2, without="reaper", timeout_seconds=30)

    assert lost_wakeups.violations(history.file)


@pytest.mark.reliability
def test_no_job_is_lost_when_the_network_fails(tmp_path: Path, history: History) -> None:
    faults.campaign(tmp_path / "fleet", history, seed=1, faults=5)

    assert faults.violations(history.file) == []


def _response_seconds_of_a_crowd(folder: Path, history: History, changed: str = "") -> list[float]:
    """The durations of 240 simultaneous requests while the store is silent."""
    proxy = Proxy(1)
    fleet = Fleet(folder, workers=0, tiny=True, through=proxy.port, changed=changed)
    proxy.target = fleet.store_port
    with proxy, fleet:
        proxy.inject("swallow")
        faults.crowd(fleet, history, 240)
    answers = list(events(history.file, "answer"))
    assert [answer["status"] for answer in answers] == [503] * 240
    return [answer["seconds"] for answer in answers]


def test_many_requests_fail_fast_while_the_store_is_silent(
    tmp_path: Path, history: History
) -> None:
    assert max(_response_seconds_of_a_crowd(tmp_path, history)) < 4


@pytest.mark.reliability
def test_without_the_circuit_breaker_many_requests_are_slow(
    tmp_path: Path, history: History
) -> None:
    seconds = _response_seconds_of_a_crowd(tmp_path, history, faults.CONTROLS["breaker"])

    assert max(seconds) > 4


@pytest.mark.reliability
def test_forged_messages_do_no_harm(tmp_path: Path, history: History) -> None:
    forged.campaign(tmp_path / "fleet", history, seed=1, count=24)

    assert forged.violations(history.file) == []


def test_a_repeated_submission_makes_one_job(history: History) -> None:
    repeats.campaign(history, seed=1, posts=150, keys=6)

    assert repeats.violations(history.file) == []


def test_without_idempotency_keys_a_repeated_submission_makes_many_jobs(history: History) -> None:
    repeats.campaign(history, seed=1, posts=60, keys=6, without="keys")

    assert repeats.violations(history.file)


@pytest.mark.reliability
def test_open_requests_are_answered_before_a_restart(tmp_path: Path, history: History) -> None:
    rolling.campaign(tmp_path / "fleet", history, seed=1, restarts=4)

    assert rolling.violations(history.file) == []


@pytest.mark.reliability
def test_without_a_graceful_shutdown_open_requests_are_cut_off(
    tmp_path: Path, history: History
) -> None:
    rolling.campaign(tmp_path / "fleet", history, seed=1, restarts=1, without="grace")

    assert rolling.violations(history.file)


@pytest.fixture
def earlier_commit() -> str:
    commit = mixed_versions.find_earlier_commit()
    if commit is None:
        pytest.skip("this clone has no commit before this version")
    return commit


@pytest.mark.reliability
def test_an_update_and_a_rollback_lose_and_double_no_job(
    tmp_path: Path, history: History, earlier_commit: str
) -> None:
    mixed_versions.campaign(tmp_path, history, seed=1, commit=earlier_commit)

    assert mixed_versions.violations(history.file) == []
    assert len([*events(history.file, "step")]) == len(mixed_versions.STEPS)


@pytest.mark.reliability
def test_a_flood_of_one_callers_jobs_delays_no_others(tmp_path: Path, history: History) -> None:
    floods.campaign(tmp_path / "fleet", history, seed=1, seconds=8)

    assert [
        found
        for found in floods.violations(history.file)
        if found != "the flooder was never rate limited"
    ] == []


# A job with this seed kills its worker.
POISON = """
import os, signal, sys
import core.style.spec as s
stock = s.parse_spec
def deadly(parameters):
    spec = stock(parameters)
    if spec.seed == 666 and 'torch' in sys.modules:
        os.kill(os.getpid(), signal.SIGSEGV)
    return spec
s.parse_spec = deadly
"""


@pytest.mark.reliability
def test_a_job_that_kills_its_workers_fails_after_three_attempts_and_yields_to_others(
    tmp_path: Path, weights: Any
) -> None:
    fleet = Fleet(tmp_path / "fleet", workers=1, tiny=True, changed=POISON)
    with fleet, kills.Caller(fleet.url) as caller:
        poison = caller.submit({**kills.PARAMETERS[0], "seed": "666"}, "poison")
        others = [caller.submit(kills.PARAMETERS[0], f"other-{number}") for number in range(3)]
        ends = [kills.wait_until_ended(caller, job_id) for job_id in (poison, *others)]

    assert [(end["status"], end["attempt"]) for end in ends] == [("failed", 3)] + [
        ("succeeded", 1)
    ] * 3
    assert ends[0]["error"]["code"] == "worker_lost"
    assert all(end["completed_at"] < ends[0]["completed_at"] for end in ends[1:])


# ---------------------------------------------------------------------- the checkers


def _kills(history: History, **changes: Any) -> None:
    """Write a history without violations, except for these changes to the final state."""
    end = {
        "status": "succeeded",
        "version": 9,
        "attempt": 1,
        "completed_at": "t",
        "outputs": [],
        "error": None,
        "pixels": "p",
    }
    history.record("reference", parameters=0, pixels="p")
    history.record("accepted", job="a", key="k", parameters=0)
    history.record("ended", job="a", **end)
    if changes.pop("final", True):
        history.record("final", job="a", **{**end, **changes})
    history.record("records", count=2)
    history.record("left", files=[])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"final": False}, "lost"),
        ({"status": "running"}, "never ended"),
        ({"pixels": "q"}, "wrong pixels"),
        ({"version": 10}, "changed after its end"),
        ({"status": "canceled"}, "ended as canceled"),
        ({"status": "failed", "error": {"code": "internal"}}, "ended as failed"),
    ],
)
def test_the_checker_of_kills_finds_each_violation(
    history: History, changes: dict[str, Any], words: str | None
) -> None:
    _kills(history, **changes)
    found = kills.violations(history.file)

    assert any(words in line for line in found) if words else not found


@pytest.mark.parametrize(
    "add_violation",
    [
        lambda history: history.record("accepted", job="b", key="k", parameters=0),
        lambda history: history.record("left", files=["blobs/aa/x"]),
        lambda history: history.file.write_text(""),
    ],
)
def test_the_checker_of_kills_finds_duplicates_leftovers_and_an_early_end(
    history: History, add_violation: Callable[[History], None]
) -> None:
    _kills(history)
    add_violation(history)

    assert kills.violations(history.file)


def test_the_checker_of_faults_finds_hangs_and_errors(history: History) -> None:
    _kills(history)
    assert faults.violations(history.file) == []
    history.record("answer", method="GET", status=200, seconds=11.0)
    history.record("answer", method="GET", status=500, seconds=0.1)

    assert len(faults.violations(history.file)) == 2


def test_the_judge_of_orphans_finds_slow_recoveries_and_lost_work(history: History) -> None:
    good = {
        "kind": "died",
        "claimed": 0.2,
        "resumed": 1.0,
        "reached": 50,
        "resumed_at": 60,
        "lost": 0.0,
    }
    history.record("trial", **good)
    history.record("end")
    assert orphans.violations(history.file) == []
    history.record("trial", **{**good, "resumed": 4.0})
    history.record("trial", **{**good, "resumed_at": 1, "lost": 2.5})

    assert len(orphans.violations(history.file)) == 2


def test_the_checker_of_zombies_finds_accepted_calls_and_changed_jobs(history: History) -> None:
    good = {
        "job": "a",
        "status": "running",
        "answers": {"keep": "stale"},
        "lease": "stale",
        "changed": False,
    }
    history.record("trial", **good)
    history.record("end")
    assert zombies.violations(history.file) == []
    for change in ({"answers": {"keep": "ok"}}, {"lease": "ok"}, {"changed": True}):
        history.record("trial", **{**good, **change})

    assert len(zombies.violations(history.file)) == 3


def test_the_judge_of_lost_wakeups_finds_each_violation(history: History) -> None:
    history.record("emptied", messages=0)
    history.record("woken", after=11.0)
    history.record("end", ended=1, jobs=2)

    assert len(lost_wakeups.violations(history.file)) == 3


def test_percentile_is_a_value_of_the_list() -> None:
    values = [float(number) for number in range(1, 101)]

    assert (percentile(values, 0.5), percentile(values, 0.99), percentile(values, 1)) == (
        50,
        99,
        100,
    )


def test_the_checker_of_forged_messages_finds_each_violation(history: History) -> None:
    history.record("died", after="deep", alive=[])
    history.record("job", id="job_a", status="queued")
    history.record("end", left=3, canary=True)

    assert len(forged.violations(history.file)) == 4


def test_the_checker_of_restarts_finds_slow_and_lost_work(history: History) -> None:
    history.record("api", answers=["HTTP/1.1 201 Created", ""], seconds=1)
    history.record("worker", job="a", seconds=11, status="queued", attempt=0, reached=9, again_at=3)
    history.record("worker", job="b", seconds=1, status="running", attempt=1, reached=9, again_at=9)

    assert len(rolling.violations(history.file)) == 5


def test_the_checker_of_mixed_versions_finds_each_violation(history: History) -> None:
    for job in "abc":
        history.record("accepted", job=job)
    history.record("step", program="api", version="old", progressed=False)
    history.record("final", job="a", status="queued", attempt="0")
    history.record("final", job="b", status="succeeded", attempt="2")
    history.record("ended", counts={"succeeded": "4"})

    assert mixed_versions.violations(history.file) == [
        "nothing ends with api in the old version",
        "a is queued",
        "b took 2 attempts",
        "c is None",
        "3 jobs have ended as {'succeeded': '4'}",
    ]


def test_the_checker_of_floods_counts_overtaking_jobs(history: History) -> None:
    for second in range(5):
        history.record("started", at_time=f"2026-01-01T00:00:0{second}")
    for began in ("2026-01-01T00:00:03", "2026-01-01T00:00:09"):
        facts = {"created_at": "2026-01-01T00:00:00", "started_at": began}
        history.record("honest", when="during", status=202, ended="succeeded", **facts)
    history.record("honest", when="during", status=429)
    history.record("flood", status=500, wait=None)
    history.record("flood", status=429, wait=2)
    history.record("end", store_mib=7)

    assert floods.overtaken(history.file) == [2, 4]
    assert len(floods.violations(history.file)) == 3
