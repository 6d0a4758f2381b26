"""Plans: what fits, what does not fit, and the error messages."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

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


def test_with_enough_memory_every_scale_is_whole_with_all_pairs(tiny_vgg16: Network) -> None:
    plan = _plan(tiny_vgg16, 500 * GB, size=4096)

    assert {
        (planned.route.tile_px, planned.route.history, planned.route.history_on_host)
        for planned in plan.scales
    } == {(None, 10, False)}
    assert plan.scales[-1].scale.size == (4096, 3072)


def test_a_plan_never_takes_more_than_the_usable_memory(tiny_vgg16: Network) -> None:
    for gigabytes in (1, 2, 4, 8, 16):
        for size in (256, 512, 1024, 2048):
            try:
                plan = _plan(tiny_vgg16, gigabytes * GB, size=size)
            except errors.OutOfMemory:
                continue
            assert plan.memory_bytes <= planner.USABLE * gigabytes * GB


def test_with_less_memory_tiles_are_smaller_and_a_run_takes_longer(tiny_vgg16: Network) -> None:
    plans = [_plan(tiny_vgg16, gigabytes * GB, size=2048) for gigabytes in (64, 4, 2)]
    tiles = [plan.scales[-1].route.tile_px for plan in plans]

    assert tiles[0] is None
    assert (tiles[1] or 0) > (tiles[2] or 0) > 0
    assert plans[0].seconds < plans[1].seconds < plans[2].seconds
    assert plans[0].memory_bytes > plans[1].memory_bytes > plans[2].memory_bytes


def test_a_size_that_does_not_fit_is_refused_with_one_that_does(tiny_vgg16: Network) -> None:
    with pytest.raises(errors.OutOfMemory, match=r"size 8192 .* size \d+ fits") as refused:
        _plan(tiny_vgg16, 2 * GB, size=8192)
    fitting = int(refused.value.message.split()[-2])

    assert fitting > 512
    assert _plan(tiny_vgg16, 2 * GB, size=fitting).memory_bytes < 2 * GB


def test_if_no_size_fits_the_error_says_so(tiny_vgg16: Network) -> None:
    with pytest.raises(errors.OutOfMemory, match="no size fits"):
        _plan(tiny_vgg16, GB // 1000, size=64)


def test_a_smaller_route_takes_at_most_half_the_memory(tiny_vgg16: Network) -> None:
    spec = parse_spec({"size": 1024}).for_pictures()
    roomy = Planner(tiny_vgg16, NOMINAL_THROUGHPUT, 64 * GB)
    planned = roomy.plan((4, 3), [(900, 900)], spec).scales[-1]
    smaller = roomy.shrink(planned, [(900, 900)], spec)

    assert smaller is not None
    assert smaller.memory_bytes <= planned.memory_bytes / 2


def test_seconds_follow_from_throughput_pixels_and_iterations(tiny_vgg16: Network) -> None:
    spec = parse_spec({"size": 512, "scales": 1, "iterations": 98}).for_pictures()
    seconds = [
        Planner(tiny_vgg16, Throughput(fixed, pixel), 64 * GB)
        .plan((512, 512), [(512, 512)], spec)
        .seconds
        for fixed, pixel in ((1, 0), (0, 1e-6))
    ]

    assert seconds == [
        pytest.approx(100),
        pytest.approx(100 * 528 * 528 * 1e-6),
    ]  # a margin of 8 px


def test_shallow_content_targets_take_memory_in_a_whole_picture_and_time_in_tiles(
    tiny_vgg16: Network,
) -> None:
    """Of relu2_1, beside relu4_2; the same for VGG-16 of any width."""
    pixels, network = 1040 * 784, tiny_vgg16  # with a margin of 8 px

    def planned(gigabytes: float, **parameters: Any) -> tuple[int | None, float, float]:
        spec = parse_spec({"size": 1024, "scales": 1, "iterations": 8, **parameters})
        plan = Planner(network, Throughput(0, 1e-6), int(gigabytes * GB)).plan(
            (1024, 768), [(64, 64)], spec.for_pictures()
        )
        return plan.scales[0].route.tile_px, plan.memory_bytes, plan.seconds

    both, deep = planned(64), planned(64, content_layers="relu4_2")
    target_bytes = network.filters("relu2_1") / 4 * network.dtype.itemsize
    assert both[0] is None
    assert both[1] - deep[1] == pytest.approx(pixels * target_bytes, abs=2)
    assert both[2] == deep[2]

    enough = deep[1] / planner.USABLE / GB - 0.01
    both, deep = planned(enough), planned(enough, content_layers="relu4_2")
    assert both[0] == deep[0] == 512
    # Four tiles, with the margin 528 and 512 x 400 and 384 px; each reads 16 px more inside.
    read = (528 + 512 + 2 * 16) * (400 + 384 + 2 * 16)
    assert both[2] - deep[2] == pytest.approx(10 * 1e-6 * read * network.relative_cost(["relu2_1"]))
    # The largest reads 80 px more at two sides, VGG-16's halo in steps of 16.
    assert both[1] - deep[1] == pytest.approx((528 + 80) * (400 + 80) * target_bytes, abs=2)


def test_throughput_is_measured_once_and_stored(
    tiny_vgg16: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([Throughput(0.1, 1e-6)])
    monkeypatch.setattr(planner, "measure_throughput", lambda _: next(measured))
    file = tmp_path / "new" / "throughput.json"

    assert load_throughput(tiny_vgg16, file) == Throughput(0.1, 1e-6)
    assert load_throughput(tiny_vgg16, file) == Throughput(0.1, 1e-6)


def test_throughputs_of_several_networks_are_stored_in_one_file(
    tiny_vgg16: Network, make_tiny_network: Callable[..., Network], tmp_path: Path, monkeypatch: Any
) -> None:
    other = make_tiny_network("vgg16", torch.bfloat16)
    measured = iter([Throughput(0.1, 1e-6), Throughput(0.2, 2e-6)])
    monkeypatch.setattr(planner, "measure_throughput", lambda _: next(measured))
    throughputs = [
        load_throughput(network, tmp_path / "throughput.json")
        for network in (tiny_vgg16, other, tiny_vgg16, other)
    ]

    assert throughputs[2:] == throughputs[:2]
    assert throughputs[1] != throughputs[0]
    assert [path.name for path in tmp_path.iterdir()] == ["throughput.json"]


def test_throughput_is_measured_if_the_file_cannot_be_written(
    tiny_vgg16: Network, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr(planner, "measure_throughput", lambda _: Throughput(0.1, 1e-6))
    (tmp_path / "file").touch()

    assert load_throughput(tiny_vgg16, tmp_path / "file" / "throughput.json") == Throughput(
        0.1, 1e-6
    )


def test_masks_count_in_the_planned_memory(tiny_vgg16: Network) -> None:
    spec = parse_spec({"size": 1024}).for_pictures(2, 2)
    few, many = (
        Planner(tiny_vgg16, NOMINAL_THROUGHPUT, 64 * GB).plan((4, 3), [(64, 64)] * 2, spec, masks)
        for masks in (0, 2)
    )

    assert many.memory_bytes - few.memory_bytes >= 2 * 4 * 1024 * 768


def test_regions_count_in_the_planned_memory(tiny_vgg16: Network) -> None:
    def plan(masks: int, regions: str) -> Plan:
        spec = parse_spec({"size": 1024, "regions": regions}).for_pictures(2, masks)
        return Planner(tiny_vgg16, NOMINAL_THROUGHPUT, 64 * GB).plan(
            (4, 3), [(64, 64)] * 2, spec, masks
        )

    def more(masks: int) -> int:
        return plan(masks, "auto").memory_bytes - plan(masks, "none").memory_bytes

    guide = 4 * 1024 * 768
    assert more(0) >= 4 * guide
    assert more(2) >= 8 * guide  # each mask in each region, less the masks, and the regions
    assert plan(0, "auto").seconds > 1.2 * plan(0, "none").seconds


def test_with_less_memory_tiles_shrink_before_pairs_are_dropped(tiny_vgg16: Network) -> None:
    """Fewer pairs give another picture; tiles do not."""
    pairs = {
        _plan(tiny_vgg16, int(gigabytes * GB), size=2048).scales[-1].route.history
        for gigabytes in (64, 8, 4, 3, 2.2)
    }

    assert pairs == {10}


@pytest.mark.parametrize("text", ["", "[]", "{]", '{"x": 1}'])
def test_throughput_is_measured_again_if_the_file_is_damaged(
    tiny_vgg16: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(planner, "measure_throughput", lambda _: Throughput(0.1, 1e-6))
    (tmp_path / "throughput.json").write_text(text)

    assert load_throughput(tiny_vgg16, tmp_path / "throughput.json") == Throughput(0.1, 1e-6)


def test_throughput_follows_from_the_seconds_at_two_sizes(
    tiny_vgg16: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    def time_evaluation(_: Network, side: int) -> tuple[int, float, float]:
        seconds = 0.02 + 1e-6 * side * side
        return side * side, seconds, 4 * seconds

    monkeypatch.setattr(planner, "_time_evaluation", time_evaluation)
    throughput = planner.measure_throughput(tiny_vgg16)

    assert throughput.fixed_seconds == pytest.approx(0.02)
    assert throughput.pixel_seconds == pytest.approx(1e-6)
    assert throughput.new_size_seconds == pytest.approx(0.02 + 1e-6 * 320 * 320)


def test_the_seconds_of_an_evaluation_are_measured(tiny_vgg16: Network) -> None:
    pixels, seconds, first_seconds = planner._time_evaluation(tiny_vgg16, 64)

    assert pixels == 80 * 80  # with the margin
    assert seconds > 0
    assert first_seconds > 0


def test_the_host_reports_a_plausible_amount_of_free_memory(tiny_vgg16: Network) -> None:
    assert GB / 10 < free_memory(tiny_vgg16.device) < 10_000 * GB
