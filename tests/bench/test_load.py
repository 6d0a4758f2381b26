"""The measurements under load: what they fill a store with, what they count, and short runs."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bench import load
from bench.chart import draw_lines
from bench.load import Answers
from bench.store import LANE, Records
from core.jobs.models import Status
from core.redis_client import PREFIX

OWNERS = ["anna", "ben", "carl"]


@pytest.fixture
def records(valkey: Any) -> Iterator[Records]:
    records = Records(valkey.url)
    records.add(OWNERS, ended=30, queued=12)
    yield records
    records.close()


def test_the_store_takes_the_records_for_its_own(records: Records) -> None:
    for owner in OWNERS:
        jobs, _ = records.store.list_page(limit=100, owner=owner)
        statuses = Counter(job.status for job in jobs if job.owner == owner)
        kept = Counter({Status.SUCCEEDED: 10, Status.QUEUED: 4})
        if owner == "anna":  # has the two templates as well
            kept += Counter({Status.SUCCEEDED: 1, Status.QUEUED: 1})
        assert statuses == kept
    ended = next(job for job in records.store.list_page(limit=100, owner="ben")[0] if job.outputs)
    records.store.delete(ended.id, "ben")
    assert len(records.store.list_page(limit=100, owner="ben")[0]) == 13


def test_workers_take_the_queued_records_in_turns(records: Records) -> None:
    claimed = [records.store.claim(f"token-{number}", "worker") for number in range(7)]
    owners = [job.owner for job in claimed if job is not None]

    in_lane = records._redis.zcard(f"{PREFIX}lane:{LANE}") + len(owners)
    assert len(owners) == in_lane == 7  # 6 of the 12, and the template; the others have a pool
    assert {*owners} == {*OWNERS}


ANSWERS = Answers(
    seconds=2.0,
    requests=[
        (0.1, 202),
        (1.9, 202),
        (2.1, 202),
        (0.01, 503),
        (0.02, 429),
        (3.0, 0),
        (1.0, 422),
    ],
    polls=[(0.004, 200), (0.006, 200)],
    cpu={"API": 1.0, "clients": 0.5},
)


def test_late_answers_are_no_goodput() -> None:
    assert (ANSWERS.offered, ANSWERS.accepted, ANSWERS.goodput) == (3.5, 1.5, 1.0)
    assert ANSWERS.row("x") == (
        "| x | 3.5 | 1.0 | 1.0 | 28.57% | 1, 1 | 1900, 2100 | 10, 20 | 4, 6 | 1.0, 0.5 |"
    )


def test_the_warm_up_is_left_out() -> None:
    rows = [("request", float(at), 0.5, 202) for at in range(8)]
    selected = load._select(rows, 8.0, {})

    assert (selected.seconds, len(selected.requests)) == (6.0, 6)


def test_the_chart_has_a_line_for_each_name() -> None:
    svg = draw_lines({"p50": {"get": [1, 10], "list": [2, 100]}}, ["0", "<9"], "jobs")

    assert svg.count("<polyline") == 2
    assert "&lt;9" in svg
    heights = [float(pair.split(",")[1]) for pair in svg.split('points="')[1].split('"')[0].split()]
    assert heights[0] > heights[1], "larger values are higher"


def _run(*arguments: str) -> list[str]:
    ran = CliRunner(catch_exceptions=False).invoke(load.main, arguments)
    assert ran.exit_code == 0, ran.output
    return ran.stdout.splitlines()


@pytest.mark.e2e
def test_growth_measures_each_call_at_each_number_of_jobs(tmp_path: Path) -> None:
    plot = tmp_path / "growth.svg"
    lines = _run("growth", "--counts", "30", "--queued", "20", "--rounds", "1", "--plot", str(plot))

    assert lines[0] == "| p50, p99 ms | 30 |"
    calls = [line.split(" | ")[0].strip("| ") for line in lines[2:12]]
    assert calls == [
        *("upload", "submit", "status, queued", "status, ended", "list", "events", "result"),
        *("cancel", "delete", "claim and release"),
    ]
    costs = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in lines[15:]}
    assert [*costs] == calls
    assert float(costs["submit"][1]) > float(costs["claim and release"][1])  # API, CPU ms
    assert int(costs["result"][-1].strip("| ")) > 100_000
    assert plot.read_text().count("<polyline") == 2 * len(calls)


@pytest.mark.e2e
def test_overload_compares_the_service_with_one_that_refuses_nothing() -> None:
    lines = _run("overload", "--seconds", "2", "--rounds", "1", "--clients", "2", "--side", "64")

    names = [line.split(" | ")[0].strip("| ") for line in lines[2:5]]
    assert names == ["1: 2 clients, no admission control", "1: 5 x", "1: 5 x, no admission control"]
    clients = [line.strip("| ").rpartition(", ")[2] for line in lines[2:5]]
    assert all(float(seconds) > 0 for seconds in clients), "each phase has clients"
    assert [line.split(":")[0] for line in lines[6:]] == [
        "goodput by capacity",
        "goodput by capacity, no admission control",
    ]
