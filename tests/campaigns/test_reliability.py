"""Short runs of the campaigns on jobs, and their judges."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import acknowledged
import faults
import floods
import forged
import kills
import lost_wakeups
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
def test_nothing_is_lost_when_everything_is_killed(tmp_path: Path, history: History) -> None:
    kills.campaign(tmp_path / "fleet", history, seed=1, kills=8, jobs=12)

    assert kills.violations(history.file) == []
    assert sum(kills.figures(history.file)["kills"].values()) == 8


def test_what_was_acknowledged_is_there_after_the_stores_death(
    tmp_path: Path, history: History
) -> None:
    acknowledged.campaign(tmp_path, history, seed=1, kills=3)

    assert acknowledged.violations(history.file) == []


def test_a_store_that_writes_nothing_down_is_found_out(tmp_path: Path, history: History) -> None:
    acknowledged.campaign(tmp_path, history, seed=1, kills=1, without="aof")

    assert acknowledged.violations(history.file)


def test_nobody_listens_to_zombies(tmp_path: Path, history: History) -> None:
    zombies.campaign(tmp_path, history, seed=1, trials=4, lease_seconds=2)

    assert zombies.violations(history.file) == []


@pytest.mark.reliability
def test_without_fencing_zombies_are_heard(tmp_path: Path, history: History) -> None:
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
def test_the_network_may_fail(tmp_path: Path, history: History) -> None:
    faults.campaign(tmp_path / "fleet", history, seed=1, faults=5)

    assert faults.violations(history.file) == []


def _seconds_of_a_crowd(folder: Path, history: History, changed: str = "") -> list[float]:
    """That its answers take, where the store says nothing."""
    proxy = Proxy(1)
    fleet = Fleet(folder, workers=0, tiny=True, through=proxy.port, changed=changed)
    proxy.target = fleet.store_port
    with proxy, fleet:
        proxy.suffer("swallow")
        faults.crowd(fleet, history, 240)
    answers = list(events(history.file, "answer"))
    assert [answer["status"] for answer in answers] == [503] * 240
    return [answer["seconds"] for answer in answers]


def test_a_crowd_does_not_wait_for_a_store_that_says_nothing(
    tmp_path: Path, history: History
) -> None:
    assert max(_seconds_of_a_crowd(tmp_path, history)) < 4


@pytest.mark.reliability
def test_without_the_breaker_a_crowd_waits(tmp_path: Path, history: History) -> None:
    assert max(_seconds_of_a_crowd(tmp_path, history, faults.CONTROLS["breaker"])) > 4


@pytest.mark.reliability
def test_what_nobody_of_ours_sent_harms_nobody(tmp_path: Path, history: History) -> None:
    forged.campaign(tmp_path / "fleet", history, seed=1, count=24)

    assert forged.violations(history.file) == []


def test_what_is_repeated_is_taken_once(history: History) -> None:
    repeats.campaign(history, seed=1, posts=150, keys=6)

    assert repeats.violations(history.file) == []


def test_without_its_key_it_is_taken_often(history: History) -> None:
    repeats.campaign(history, seed=1, posts=60, keys=6, without="keys")

    assert repeats.violations(history.file)


@pytest.mark.reliability
def test_what_is_under_way_is_finished_before_a_restart(tmp_path: Path, history: History) -> None:
    rolling.campaign(tmp_path / "fleet", history, seed=1, restarts=4)

    assert rolling.violations(history.file) == []


@pytest.mark.reliability
def test_without_grace_it_is_cut_off(tmp_path: Path, history: History) -> None:
    rolling.campaign(tmp_path / "fleet", history, seed=1, restarts=1, without="grace")

    assert rolling.violations(history.file)


@pytest.mark.reliability
def test_a_flood_of_one_callers_jobs_delays_no_others(tmp_path: Path, history: History) -> None:
    floods.campaign(tmp_path / "fleet", history, seed=1, seconds=8)

    assert [
        found
        for found in floods.violations(history.file)
        if found != "the flooder was never asked to wait"
    ] == []


# The painter of a job with this seed dies of it, whenever.
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
def test_a_job_that_kills_its_painters_ends_after_three_and_lets_the_others_go_first(
    tmp_path: Path, weights: Any
) -> None:
    fleet = Fleet(tmp_path / "fleet", workers=1, tiny=True, changed=POISON)
    with fleet, kills.Caller(fleet.url) as caller:
        poison = caller.submit({**kills.PARAMETERS[0], "seed": "666"}, "poison")
        others = [caller.submit(kills.PARAMETERS[0], f"other-{number}") for number in range(3)]
        ends = [kills._followed(caller, job_id) for job_id in (poison, *others)]

    assert [(end["status"], end["attempt"]) for end in ends] == [("failed", 3)] + [
        ("succeeded", 1)
    ] * 3
    assert ends[0]["error"]["code"] == "worker_lost"
    assert all(end["completed_at"] < ends[0]["completed_at"] for end in ends[1:])


# ---------------------------------------------------------------------- the judges


def _kills(history: History, **changes: Any) -> None:
    """A history in order, but for the changes to the job's end."""
    end = {
        "status": "succeeded",
        "version": 9,
        "attempt": 1,
        "completed_at": "t",
        "outputs": [],
        "error": None,
        "pixels": "p",
    }
    history.tell("reference", parameters=0, pixels="p")
    history.tell("accepted", job="a", key="k", parameters=0)
    history.tell("ended", job="a", **end)
    if changes.pop("final", True):
        history.tell("final", job="a", **{**end, **changes})
    history.tell("records", count=2)
    history.tell("left", files=[])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"final": False}, "lost"),
        ({"status": "running"}, "never ended"),
        ({"pixels": "q"}, "wrong bytes"),
        ({"version": 10}, "changed after its end"),
        ({"status": "canceled"}, "ended as canceled"),
        ({"status": "failed", "error": {"code": "internal"}}, "ended as failed"),
    ],
)
def test_the_judge_of_kills(history: History, changes: dict[str, Any], words: str | None) -> None:
    _kills(history, **changes)
    found = kills.violations(history.file)

    assert any(words in line for line in found) if words else not found


@pytest.mark.parametrize(
    "spoil",
    [
        lambda told: told.tell("accepted", job="b", key="k", parameters=0),
        lambda told: told.tell("left", files=["blobs/aa/x"]),
        lambda told: told.file.write_text(""),
    ],
)
def test_the_judge_of_kills_sees_doubles_leftovers_and_an_early_end(
    history: History, spoil: Callable[[History], None]
) -> None:
    _kills(history)
    spoil(history)

    assert kills.violations(history.file)


def test_the_judge_of_faults_sees_hangs_and_errors(history: History) -> None:
    _kills(history)
    assert faults.violations(history.file) == []
    history.tell("answer", method="GET", status=200, seconds=11.0)
    history.tell("answer", method="GET", status=500, seconds=0.1)

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
    history.tell("trial", **good)
    history.tell("end")
    assert orphans.violations(history.file) == []
    history.tell("trial", **{**good, "resumed": 4.0})
    history.tell("trial", **{**good, "resumed_at": 1, "lost": 2.5})

    assert len(orphans.violations(history.file)) == 2


def test_the_judge_of_zombies_sees_who_was_heard_and_what_changed(history: History) -> None:
    good = {
        "job": "a",
        "status": "running",
        "answers": {"keep": "stale"},
        "lease": "stale",
        "changed": False,
    }
    history.tell("trial", **good)
    history.tell("end")
    assert zombies.violations(history.file) == []
    for change in ({"answers": {"keep": "ok"}}, {"lease": "ok"}, {"changed": True}):
        history.tell("trial", **{**good, **change})

    assert len(zombies.violations(history.file)) == 3


def test_the_judge_of_lost_wakeups_finds_each_violation(history: History) -> None:
    history.tell("emptied", messages=0)
    history.tell("woken", after=11.0)
    history.tell("end", ended=1, jobs=2)

    assert len(lost_wakeups.violations(history.file)) == 3


def test_percentiles() -> None:
    values = [float(number) for number in range(1, 101)]

    assert (percentile(values, 0.5), percentile(values, 0.99), percentile(values, 1)) == (
        50,
        99,
        100,
    )


def test_the_judge_of_forged_messages_hears_of_each(history: History) -> None:
    history.tell("died", after="deep", alive=[])
    history.tell("job", id="job_a", status="queued")
    history.tell("end", left=3, canary=True)

    assert len(forged.violations(history.file)) == 4


def test_the_judge_of_restarts_sees_what_is_slow_or_lost(history: History) -> None:
    history.tell("api", answers=["HTTP/1.1 201 Created", ""], seconds=1)
    history.tell("worker", job="a", seconds=11, status="queued", attempt=0, reached=9, again_at=3)
    history.tell("worker", job="b", seconds=1, status="running", attempt=1, reached=9, again_at=9)

    assert len(rolling.violations(history.file)) == 5


def test_the_judge_of_floods_counts_who_went_before(history: History) -> None:
    for second in range(5):
        history.tell("started", at_time=f"2026-01-01T00:00:0{second}")
    for began in ("2026-01-01T00:00:03", "2026-01-01T00:00:09"):
        facts = {"created_at": "2026-01-01T00:00:00", "started_at": began}
        history.tell("honest", when="during", status=202, ended="succeeded", **facts)
    history.tell("honest", when="during", status=429)
    history.tell("flood", status=500, wait=None)
    history.tell("flood", status=429, wait=2)
    history.tell("end", store_mib=7)

    assert floods.overtaken(history.file) == [2, 4]
    assert len(floods.violations(history.file)) == 3
