"""What a worker reports of its runs and its device."""

from typing import Any

import pytest
import torch

from core.jobs.models import WorkCounts
from core.neural import device
from core.neural.transfer.stylize import RunProgress
from core.neural.vgg import Network
from worker.statistics import RunStatistics


def _progress(iteration: int, evaluations: int, speed: float = 2.0) -> RunProgress:
    return RunProgress(
        scale=1,
        scales=1,
        width=10,
        height=10,
        iteration=iteration,
        iterations=50,
        losses={},
        seconds=1.0,
        iterations_per_second=speed,
        seconds_left=1.0,
        evaluations=evaluations,
        evaluated_pixels=100 * evaluations,
    )


def _counts(iterations: int, evaluations: int) -> WorkCounts:
    pixels = 100 * evaluations
    return WorkCounts(iterations=iterations, evaluations=evaluations, evaluated_pixels=pixels)


def test_steps_are_counted_once_over_runs_and_reports() -> None:
    statistics, taken = RunStatistics(), []
    statistics.begin_run()
    statistics.count_step(_progress(1, 2))
    statistics.count_step(_progress(4, 6))
    taken.append(statistics.take())
    statistics.count_step(_progress(5, 7))
    statistics.begin_run()  # of another job
    statistics.count_step(_progress(1, 3))
    taken.append(statistics.take())
    statistics.give_back(taken[1])  # the store did not answer
    statistics.count_step(_progress(2, 4))
    taken.append(statistics.take())

    assert taken == [_counts(4, 6), _counts(2, 4), _counts(3, 5)]


def test_a_resumed_run_and_one_that_falls_back_count_what_they_do() -> None:
    statistics = RunStatistics()
    statistics.begin_run()
    statistics.count_step(_progress(31, 1))  # resumed after 30 iterations
    statistics.count_step(_progress(25, 5))  # the scale starts again by a smaller route
    statistics.count_step(_progress(26, 6))

    assert statistics.take() == _counts(2, 6)


def test_the_speed_is_that_of_the_run_and_zero_without_one(random_vgg19: Network) -> None:
    statistics = RunStatistics()
    statistics.begin_run()
    statistics.count_step(_progress(1, 1, speed=3.5))
    running = statistics.measure(random_vgg19)
    statistics.end_run()
    idle = statistics.measure(random_vgg19)

    assert (running.iterations_per_second, idle.iterations_per_second) == (3.5, 0)
    assert running.device == "cpu"
    assert 50_000_000 < running.memory_used_bytes < running.memory_total_bytes
    assert running.utilization is not None
    assert 0 <= running.utilization <= 1


def test_a_lost_card_does_not_stop_the_heartbeats(
    random_vgg19: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any) -> Any:
        raise RuntimeError("CUDA error: the device is lost")

    monkeypatch.setattr(device, "measure_memory", fail)

    assert RunStatistics().measure(random_vgg19).memory_used_bytes == 0


@pytest.mark.parametrize(
    ("visible", "index", "expected"),
    [
        (None, 1, "cuda:1"),
        ("", 0, "cuda:0"),
        ("3", 0, "cuda:3"),
        ("2, 5", 1, "cuda:5"),
        ("GPU-8932f937", 0, "GPU-8932f937"),
    ],
)
def test_cards_are_named_by_the_hosts_numbers(
    visible: str | None, index: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    assert device.device_label(torch.device("cuda", index)) == expected
    assert device.device_label(torch.device("cpu")) == "cpu"


def test_a_cards_memory_and_use_come_from_its_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    card = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (3, 10))
    monkeypatch.setattr(torch.cuda, "utilization", lambda _: 40)
    measured = device.measure_memory(card), device.measure_utilization(card)

    def fail(_: Any) -> int:
        raise ModuleNotFoundError("pynvml")

    monkeypatch.setattr(torch.cuda, "utilization", fail)

    assert measured == ((7, 10), 0.4)
    assert device.measure_utilization(card) is None


def test_the_pace_is_the_median_of_recent_runs_that_say_something() -> None:
    statistics = RunStatistics()
    assert statistics.pace == 1
    statistics.record_run(0.2, 2.0)  # mostly its start
    assert statistics.pace == 1
    for seconds in (20.0, 30.0, 400.0):
        statistics.record_run(10.0, seconds)
    assert statistics.pace == 3
    for _ in range(5):
        statistics.record_run(10.0, 12.0)
    assert statistics.pace == pytest.approx(1.2)
    for _ in range(5):
        statistics.record_run(10.0, 1000.0)
    assert statistics.pace == 8
