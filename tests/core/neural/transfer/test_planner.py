"""Plans: what fits, what does not, and in which words."""

from pathlib import Path
from typing import Any

import pytest

from core import errors
from core.neural.transfer import planner
from core.neural.transfer.planner import (
    NOMINAL_THROUGHPUT,
    Plan,
    Planner,
    Throughput,
    free_memory,
    load_throughput,
)
from core.neural.vgg import Network
from core.style.spec import parse_spec

GB = 10**9


def _plan(network: Network, free_bytes: int, **parameters: Any) -> Plan:
    spec = parse_spec(parameters).for_pictures()
    return Planner(network, NOMINAL_THROUGHPUT, free_bytes).plan((4000, 3000), [(1200, 900)], spec)


def test_with_memory_to_spare_nothing_is_cut(vgg16: Network) -> None:
    plan = _plan(vgg16, 500 * GB, size=4096)

    assert {
        (leg.route.tile_px, leg.route.history, leg.route.history_on_host) for leg in plan.legs
    } == {(None, 10, False)}
    assert plan.legs[-1].scale.size == (4096, 3072)


def test_a_plan_never_takes_more_than_it_may(vgg16: Network) -> None:
    for gigabytes in (1, 2, 4, 8, 16):
        for size in (256, 512, 1024, 2048):
            try:
                plan = _plan(vgg16, gigabytes * GB, size=size)
            except errors.OutOfMemory:
                continue
            assert plan.memory_bytes <= planner.USABLE * gigabytes * GB


def test_less_memory_means_smaller_tiles_and_more_time(vgg16: Network) -> None:
    plans = [_plan(vgg16, gigabytes * GB, size=2048) for gigabytes in (64, 4, 2)]
    tiles = [plan.legs[-1].route.tile_px for plan in plans]

    assert tiles[0] is None
    assert (tiles[1] or 0) > (tiles[2] or 0) > 0
    assert plans[0].seconds < plans[1].seconds < plans[2].seconds
    assert plans[0].memory_bytes > plans[1].memory_bytes > plans[2].memory_bytes


def test_what_does_not_fit_is_refused_with_a_size_that_does(vgg16: Network) -> None:
    with pytest.raises(errors.OutOfMemory, match=r"size 8192 .* size \d+ fits") as refused:
        _plan(vgg16, 2 * GB, size=8192)
    fitting = int(refused.value.message.split()[-2])

    assert fitting > 512
    assert _plan(vgg16, 2 * GB, size=fitting).memory_bytes < 2 * GB


def test_where_nothing_fits_it_says_so(vgg16: Network) -> None:
    with pytest.raises(errors.OutOfMemory, match="too little memory for any size"):
        _plan(vgg16, GB // 1000, size=64)


def test_a_smaller_route_takes_half_or_less(vgg16: Network) -> None:
    spec = parse_spec({"size": 1024}).for_pictures()
    one = Planner(vgg16, NOMINAL_THROUGHPUT, 64 * GB)
    leg = one.plan((4, 3), [(900, 900)], spec).legs[-1]
    smaller = one.smaller(leg, [(900, 900)], spec)

    assert smaller is not None
    assert smaller.memory_bytes <= leg.memory_bytes / 2


def test_seconds_follow_pace_pixels_and_iterations(vgg16: Network) -> None:
    spec = parse_spec({"size": 512, "scales": 1, "iterations": 98}).for_pictures()
    seconds = [
        Planner(vgg16, Throughput(fixed, pixel), 64 * GB)
        .plan((512, 512), [(512, 512)], spec)
        .seconds
        for fixed, pixel in ((1, 0), (0, 1e-6))
    ]

    assert seconds == [pytest.approx(100), pytest.approx(100 * 512 * 512 * 1e-6)]


def test_a_pace_is_measured_once_and_kept(
    vgg16: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([Throughput(0.1, 1e-6)])
    monkeypatch.setattr(planner, "measure_throughput", lambda _: next(measured))
    file = tmp_path / "new" / "pace.json"

    assert Throughput(0.1, 1e-6) == load_throughput(vgg16, file) == load_throughput(vgg16, file)


def test_other_networks_paces_are_kept(
    vgg16: Network, random_vgg19: Network, tmp_path: Path, monkeypatch: Any
) -> None:
    measured = iter([Throughput(0.1, 1e-6), Throughput(0.2, 2e-6)])
    monkeypatch.setattr(planner, "measure_throughput", lambda _: next(measured))
    paces = [
        load_throughput(network, tmp_path / "pace.json")
        for network in (vgg16, random_vgg19, vgg16, random_vgg19)
    ]

    assert paces[2:] == paces[:2]
    assert paces[1] != paces[0]
    assert [path.name for path in tmp_path.iterdir()] == ["pace.json"]


def test_where_nothing_can_be_written_the_pace_is_measured(
    vgg16: Network, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr(planner, "measure_throughput", lambda _: Throughput(0.1, 1e-6))
    (tmp_path / "file").touch()

    assert load_throughput(vgg16, tmp_path / "file" / "pace.json") == Throughput(0.1, 1e-6)


def test_masks_are_planned_with(vgg16: Network) -> None:
    spec = parse_spec({"size": 1024}).for_pictures(2, 2)
    few, many = (
        Planner(vgg16, NOMINAL_THROUGHPUT, 64 * GB).plan((4, 3), [(64, 64)] * 2, spec, masks)
        for masks in (0, 2)
    )

    assert many.memory_bytes - few.memory_bytes >= 2 * 4 * 1024 * 768


def test_pairs_are_given_up_last(vgg16: Network) -> None:
    """Fewer make another picture; tiles do not."""
    pairs = {
        _plan(vgg16, int(gigabytes * GB), size=2048).legs[-1].route.history
        for gigabytes in (64, 8, 4, 3, 2.2)
    }

    assert pairs == {10}


@pytest.mark.parametrize("text", ["", "[]", "{]", '{"x": 1}'])
def test_a_damaged_pace_file_is_measured_again(
    vgg16: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(planner, "measure_throughput", lambda _: Throughput(0.1, 1e-6))
    (tmp_path / "pace.json").write_text(text)

    assert load_throughput(vgg16, tmp_path / "pace.json") == Throughput(0.1, 1e-6)


def test_the_pace_that_is_measured_is_above_zero(random_vgg19: Network) -> None:
    pace = planner.measure_throughput(random_vgg19)

    assert pace.fixed_seconds > 0
    assert pace.pixel_seconds > 0


def test_the_host_has_some_memory_and_not_more_than_it_has(vgg16: Network) -> None:
    assert GB / 10 < free_memory(vgg16.device) < 10_000 * GB
