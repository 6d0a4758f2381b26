"""Short simulations, their controls, and the parts that judge them."""

from dataclasses import replace
from typing import Any

import bars
import pytest
import simulate
from autoscaler import Autoscaler, read_spec
from ideal_queue import jain, start_times
from job_model import Job, Model, ViolationError, WorkerKind
from scenario import Scenario
from script_variants import RULES, build_library
from simulated_service import simulate as run
from store_server import EPOCH_MS

ANY = WorkerKind(("",), 8192, 1)


def test_two_thousand_jobs_on_failing_workers_meet_the_bars() -> None:
    outcome, violations = simulate.check(Scenario(seed=1))
    counts = outcome.model.counts

    assert violations == []
    assert sum(counts[name] for name in ("succeeded", "failed", "canceled", "expired")) == 2000
    assert counts["lost attempts"] > 20
    assert counts["late results"] > 0
    assert len(outcome.faults) == 8


def test_a_seed_gives_one_trace() -> None:
    small = Scenario(seed=1, jobs=200)
    traces = [run(scenario).trace for scenario in (small, small, replace(small, seed=2))]

    assert traces[0] == traces[1] != traces[2]


def test_the_functions_read_no_clock_but_the_simulated_one() -> None:
    with pytest.raises(ValueError, match="0 times"):
        build_library((("no such text", ""),))
    with pytest.raises(ValueError, match="clock"):
        build_library((("local LEGAL = {", "local TIME = 'TIME'\nlocal LEGAL = {"),))


# Those that seconds show, and the seed; `simulate.py controls` removes all.
QUICK = {
    "fencing of results": 1,
    "fencing of runs": 1,
    "sizes of workers": 1,
    "limit of an owner": 2,
    "turns of pools": 1,
    "contact before reaping": 1,
    "retries of workers": 1,
}


@pytest.mark.reliability
@pytest.mark.parametrize(("rule", "seed"), QUICK.items())
def test_a_simulation_without_a_rule_finds_a_violation(rule: str, seed: int) -> None:
    assert simulate.check(simulate.control(rule, seed))[1]


@pytest.mark.parametrize("rule", RULES)
def test_what_a_control_removes_is_in_the_functions(rule: str) -> None:
    assert build_library(RULES[rule]).prefix != build_library().prefix


# ---------------------------------------------------------------------- the judges


def _job(number: int, owner: int, created_at: int = 0, **facts: Any) -> Job:
    job = Job(number, b"job_%026d" % number, owner, "normal", 512, "", 1000)
    job.created_at, job.held_ms = created_at, 1000
    for name, value in facts.items():
        setattr(job, name, value)
    return job


def test_in_the_ideal_queue_owners_take_turns_and_classes_come_first() -> None:
    jobs = [_job(number, owner=1) for number in range(4)]
    jobs += [_job(4, owner=2, created_at=500), _job(5, owner=1, created_at=500, priority="high")]

    assert start_times(jobs, [(0, 0, ANY)]) == {0: 0, 5: 1000, 1: 2000, 4: 3000, 2: 4000, 3: 5000}


def test_in_the_ideal_queue_a_lost_worker_takes_no_job_and_a_withdrawn_job_no_worker() -> None:
    jobs = [_job(0, 1), _job(1, 1, withdrawn_at=500), _job(2, 1), _job(3, 1, size=9000)]
    capacity = [(0, 0, ANY), (900, 0, None), (7000, 0, ANY)]

    assert start_times(jobs, capacity) == {0: 0, 2: 7000}


def test_in_the_ideal_queue_a_worker_waits_for_the_messages_between_two_jobs() -> None:
    jobs = [_job(number, owner=1) for number in range(3)]

    assert start_times(jobs, [(0, 0, ANY)], handover_ms=100) == {0: 0, 1: 1100, 2: 2200}


def test_in_the_ideal_queue_a_worker_of_two_pools_serves_the_owner_that_waits_longest() -> None:
    pools = ["", "", "", "a", "a"]
    jobs = [_job(number, owner=1) for number in range(5)]
    for job, pool in zip(jobs, pools, strict=True):
        job.pool = pool

    kind = WorkerKind(("", "a"), 8192, 1)
    assert start_times(jobs, [(0, 0, kind)]) == {0: 0, 1: 1000, 3: 2000, 2: 3000, 4: 4000}


def test_the_fair_wait_of_a_job_counts_the_own_jobs_that_still_wait_before_it() -> None:
    minute = 60_000
    jobs = [
        _job(0, 1, EPOCH_MS, started_at=EPOCH_MS + 5 * minute),
        _job(1, 1, EPOCH_MS + 4 * minute, started_at=EPOCH_MS + 6 * minute),
        _job(2, 1, EPOCH_MS + 8 * minute, started_at=EPOCH_MS + 8 * minute),
    ]
    ideal = {0: EPOCH_MS + minute, 1: EPOCH_MS + 4 * minute, 2: EPOCH_MS + 8 * minute}

    assert [*map(bars.find_fair_wait(jobs, ideal), jobs)] == [minute, minute, 0]


def test_jains_index_is_one_for_equal_shares() -> None:
    assert jain([2.0, 2.0, 2.0]) == 1
    assert jain([1.0, 0.0, 0.0, 0.0]) == 0.25


def test_the_model_refuses_what_the_store_must_not_do() -> None:
    model, job = Model(), _job(1, 1)
    job.created_at = None
    model.created(0, job, job.id)
    model.claimed(10, b"a", b"w", ANY, job.id)

    with pytest.raises(ViolationError, match="not queued"):
        model.claimed(20, b"b", b"w", ANY, job.id)
    with pytest.raises(ViolationError, match="stale token"):
        model.renewed(20, job, b"b", b"ok")
    with pytest.raises(ViolationError, match="holder"):
        model.finished(20, job, b"a", "succeeded", b"stale")
    with pytest.raises(ViolationError, match="reaper"):
        model.reaped(9999, (0, 0))


def test_a_large_fleet_doubles_in_half_a_minute_and_shrinks_by_a_tenth() -> None:
    """In steps of a few workers, a thousand would take two hours to start and a day to end."""
    scaler, workers, grown = Autoscaler(read_spec(), 1, 1000), 100, []
    for step in range(12):
        workers = scaler.decide(15.0 * step, workers, {"impasto_queue_work_seconds": 1e6})
        grown.append(workers)
    shrunk = []
    for step in range(12, 110):
        workers = scaler.decide(15.0 * step, workers, {"impasto_jobs_running": 10.0})
        shrunk.append(workers)

    assert grown[:7] == [200, 200, 200, 400, 400, 400, 800]
    assert grown[-1] == 1000
    assert shrunk[:5] == [900, 900, 810, 810, 729]
    assert shrunk[-1] == 10
