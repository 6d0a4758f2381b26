"""The format of a network is measured once for each card, and stored."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from core import errors
from core.neural.transfer import planner
from core.neural.transfer.formats import fastest_format, load_fastest
from core.neural.transfer.planner import Throughput
from core.neural.vgg import Format, Network
from core.neural.weights.cache import WeightsCache

FLOAT32, FLOAT32_PLAIN, HALF, HALF_PLAIN = CANDIDATES = [
    Format(dtype, layout)
    for dtype in (torch.float32, torch.float16)
    for layout in (torch.channels_last, torch.contiguous_format)
]


@pytest.mark.parametrize(
    ("card", "milliseconds", "expected"),
    [
        ("Maxwell: half precision is slow, and so are channels last", (90, 60, 70, 65), 1),
        ("Pascal: half precision is very slow", (60, 55, 900, 900), 0),
        ("Volta: tensor cores read channels last", (60, 55, 15, 30), 2),
        ("no difference beyond noise", (60, 57, 56, 55), 0),
        ("half precision, but not channels last", (60, 57, 30, 20), 3),
    ],
)
def test_a_format_is_chosen_if_it_is_clearly_faster(
    card: str, milliseconds: tuple[int, ...], expected: int
) -> None:
    throughputs = {
        number_format: Throughput(0.001, one / 1000 / 2**20)
        for number_format, one in zip(CANDIDATES, milliseconds, strict=True)
    }

    assert fastest_format(throughputs) == CANDIDATES[expected], card


def test_a_card_is_measured_once_and_each_card_by_itself(
    make_tiny_network: Callable[..., Network], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the measurement, not by the name: a new card with the same name has the same speed."""
    measured: list[Format] = []
    made: list[Format] = []
    card = {"name": "Titan Xp"}

    def measure(network: Network) -> Throughput:
        measured.append(Format(network.dtype, network.layout))
        is_slow = card["name"] == "Titan Xp" and network.dtype == torch.float16
        return Throughput(0.5 if is_slow else 0.1 * network.dtype.itemsize, 0.0)

    def make(number_format: Format) -> Network:
        made.append(number_format)
        network = make_tiny_network("vgg16", number_format.dtype)
        network.layout = number_format.layout
        return network

    monkeypatch.setattr(planner, "measure_throughput", measure)
    monkeypatch.setattr(planner, "device_name", lambda _: card["name"])
    file = tmp_path / "throughput.json"

    def load() -> Network:
        return load_fastest(make, torch.device("cpu"), "vgg16", CANDIDATES, file)

    for _ in range(2):
        assert load().dtype == torch.float32
    assert measured == CANDIDATES
    card["name"] = "Titan V"
    for _ in range(2):
        assert load().dtype == torch.float16
    assert measured == CANDIDATES * 2
    # Only the first load of each card makes all of them.
    assert made == [*CANDIDATES, FLOAT32, FLOAT32, *CANDIDATES, HALF, HALF]


def test_the_network_of_a_card_is_loaded_in_the_measured_format(
    weights: WeightsCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the CPU there is nothing to measure."""
    seconds = dict(zip(CANDIDATES, (4, 1, 3, 2), strict=True))
    monkeypatch.setattr("core.neural.weights.cache.formats", lambda *_: CANDIDATES)
    monkeypatch.setattr(
        planner,
        "measure_throughput",
        lambda network: Throughput(seconds[Format(network.dtype, network.layout)], 0),
    )
    (tmp_path / "vgg19.safetensors").symlink_to(weights.path("vgg19"))
    cache = WeightsCache(tmp_path)
    network = cache.load("vgg19", "cpu")

    assert (network.dtype, network.layout) == (torch.float32, torch.contiguous_format)
    assert cache.throughput_file.is_file()

    monkeypatch.undo()
    monkeypatch.setattr(
        planner, "measure_throughput", lambda _: pytest.fail("a CPU is not measured")
    )
    assert cache.load("vgg19", "cpu", "float32").layout == torch.channels_last


def test_a_device_that_does_not_exist_is_a_bad_setting(weights: WeightsCache) -> None:
    for name in ("gpu", "cuda:9"):
        with pytest.raises(errors.BadSettings):
            weights.load("vgg19", name)
