"""The watchdog ends a thread that hangs, and tolerates one that is slow."""

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
def _watch(*, busy_waits: bool) -> Iterator[tuple[HangWatchdog, Ends, threading.Event]]:
    ends, ended = Ends(), threading.Event()

    def end(reason: str) -> None:
        ends.append(reason)
        ended.set()

    with HangWatchdog(lambda: busy_waits, end) as dog:
        yield dog, ends, ended


def _compute(seconds: float) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        sum(range(1000))


def test_a_thread_without_steps_and_cpu_time_hangs_and_the_reason_names_the_place() -> None:
    with _watch(busy_waits=False) as (dog, ends, ended):
        dog.report_step()
        began = time.monotonic()
        assert ended.wait(20)
        assert time.monotonic() - began > 0.25

    assert " test_a_thread_without_steps_and_cpu_time_hangs" in ends[0]


@pytest.mark.parametrize("phase", ["host", "device"])
def test_a_phase_without_iterations_has_a_longer_timeout(phase: Literal["host", "device"]) -> None:
    with _watch(busy_waits=True) as (dog, ends, ended):
        dog.report_step()
        dog.begin_phase(phase)
        assert not ended.wait(0.4)
        assert ended.wait(20)

    assert len(ends) == 1


def test_a_thread_that_uses_cpu_time_is_only_slow() -> None:
    with _watch(busy_waits=False) as (dog, ends, _):
        dog.report_step()
        _compute(1.5)

    assert ends == []


def test_cpu_time_does_not_count_while_the_device_busy_waits() -> None:
    with _watch(busy_waits=True) as (dog, ends, _):
        dog.report_step()
        _compute(1.5)

    assert len(ends) == 1


def test_an_iteration_may_take_many_times_as_long_as_the_slowest_so_far() -> None:
    with _watch(busy_waits=True) as (dog, ends, ended):
        dog.begin_phase("device")
        time.sleep(0.2)
        dog.report_step()
        assert not ended.wait(1.5)

    assert ends == []


def test_the_time_of_a_frozen_process_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    shift, usual = [0.0], time.monotonic
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: usual() + shift[0])
    with _watch(busy_waits=True) as (dog, ends, ended):
        dog.report_step()
        shift[0] = 1000
        assert not ended.wait(0.15)
        dog.report_step()

    assert ends == []


def test_a_reset_timer_prevents_the_end() -> None:
    with _watch(busy_waits=True) as (dog, ends, _):
        dog.report_step()
        for _ in range(10):
            dog.reset_timer()
            time.sleep(0.1)

    assert ends == []
