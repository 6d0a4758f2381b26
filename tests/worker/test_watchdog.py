"""Who hangs and who is only slow."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import pytest

from worker import watchdog
from worker.watchdog import HangWatchdog


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(watchdog, "STEP_SECONDS", 0.3)
    monkeypatch.setattr(watchdog, "PHASE_SECONDS", 0.6)


Ends = list[str]


@contextmanager
def _beating(*, spins: bool) -> Iterator[tuple[HangWatchdog, Ends, threading.Event]]:
    ends, ended = Ends(), threading.Event()

    def end(why: str) -> None:
        ends.append(why)
        ended.set()

    with HangWatchdog(lambda: spins, end) as beating:
        yield beating, ends, ended


def _compute(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(1000))


def test_who_ends_no_step_and_does_not_compute_hangs_and_where_is_told() -> None:
    with _beating(spins=False) as (beating, ends, ended):
        beating.report_step()
        began = time.monotonic()
        assert ended.wait(20)
        assert time.monotonic() - began > 0.25

    assert " test_who_ends_no_step_and_does_not_compute_hangs" in ends[0]


@pytest.mark.parametrize("on", ["host", "device"])
def test_what_has_no_iterations_may_take_longer(on: Literal["host", "device"]) -> None:
    with _beating(spins=True) as (beating, ends, ended):
        beating.report_step()
        beating.begin_phase(on)
        assert not ended.wait(0.4)
        assert ended.wait(20)

    assert len(ends) == 1


def test_who_computes_is_slow_and_no_more() -> None:
    with _beating(spins=False) as (beating, ends, _):
        beating.report_step()
        _compute(1.5)

    assert ends == []


def test_who_waits_for_a_card_computes_though_it_hangs() -> None:
    with _beating(spins=True) as (beating, ends, _):
        beating.report_step()
        _compute(1.5)

    assert len(ends) == 1


def test_an_iteration_may_take_many_times_as_long_as_the_slowest_so_far() -> None:
    with _beating(spins=True) as (beating, ends, ended):
        beating.begin_phase("device")
        time.sleep(0.2)
        beating.report_step()
        assert not ended.wait(1.5)

    assert ends == []


def test_a_process_that_was_frozen_is_not_blamed_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    shift, usual = [0.0], time.monotonic
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: usual() + shift[0])
    with _beating(spins=True) as (beating, ends, ended):
        beating.report_step()
        shift[0] = 1000
        assert not ended.wait(0.15)
        beating.report_step()

    assert ends == []


def test_what_is_known_to_be_away_is_waited_for() -> None:
    with _beating(spins=True) as (beating, ends, _):
        beating.report_step()
        for _ in range(10):
            beating.reset_timer()
            time.sleep(0.1)

    assert ends == []
