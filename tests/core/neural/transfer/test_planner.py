"""Plans: what fits, what does not fit, and the error messages."""

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from core import errors
from core.neural.transfer import planner
from core.neural.transfer.margin import Margin
from core.neural.transfer.optimize import LBFGS
from core.neural.transfer.planner import (
    NOMINAL_THROUGHPUT,
    Plan,
    Planner,
    Throughput,
    free_memory,
    load_throughput,
)
from core.neural.transfer.tiling import make_tiles
from core.neural.vgg import Network
from core.neural.weights.cache import random_parameters
from core.style.spec import StyleSpec, parse_spec

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


# ---------------------------------------------------------------------- cards, without a card


@pytest.fixture(scope="module")
def make_card_network() -> Callable[..., Network]:
    """Make a VGG-19 of full width without numbers, which the planner believes to be on a card."""

    def make(kind: str, dtype: torch.dtype) -> Network:
        network = Network(
            "vgg19", random_parameters("vgg19"), name="", sha256="", device="meta", dtype=dtype
        )
        network.device = torch.device(kind)
        return network

    return make


def _plan_on_card(
    network: Network,
    gigabytes: float,
    throughput: Throughput = NOMINAL_THROUGHPUT,
    **parameters: Any,
) -> Plan:
    spec = parse_spec(parameters).for_pictures()
    return Planner(network, throughput, int(gigabytes * GB)).plan((4, 3), [(1200, 900)], spec)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("size", [2048, 4096, 8192])
def test_a_card_of_12_gb_runs_every_size(
    make_card_network: Callable[..., Network],
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    size: int,
) -> None:
    """A Titan X has 11.9 GB, of which the driver takes some 0.4."""
    monkeypatch.setattr(planner, "_host_limits", lambda: [64 * GB])
    last = _plan_on_card(make_card_network("cuda", dtype), 11.5, size=size).scales[-1]

    assert last.memory_bytes <= planner.USABLE * 11.5 * GB
    if size == 2048:
        assert (last.route.tile_px, last.route.history_on_host) == (None, False)
    if size == 8192:
        assert (last.route.history, last.route.history_on_host) == (10, True)


@pytest.mark.parametrize(("kind", "limit"), [("cuda", 2**31), ("mps", 2**32 // 4)])
def test_no_tile_has_more_elements_than_the_kernels_can_index(
    make_card_network: Callable[..., Network],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    limit: int,
) -> None:
    """However much memory there is: relu1 has 64 responses per pixel."""
    monkeypatch.setattr(planner, "_host_limits", lambda: [1000 * GB])
    network = make_card_network(kind, torch.float32)
    for size in (2048, 4096, 6016, 8192):
        last = _plan_on_card(network, 1000, size=size).scales[-1]
        margin = Margin.of_image(last.scale.height, last.scale.width, StyleSpec())
        halo = network.halo(["relu5_1"])
        tiles = make_tiles(margin, last.route.tile_px, halo)
        assert 64 * max(tile.read_px for tile in tiles) < limit
        if kind == "mps" and not last.route.history_on_host:
            assert 2 * last.route.history * 12 * math.prod(margin.padded) < 2**32


def test_a_cpu_with_12_gb_paints_8192_px_with_rounded_pairs(
    make_card_network: Callable[..., Network],
) -> None:
    """And 4096 px with all pairs as they are."""
    network = make_card_network("cpu", torch.bfloat16)
    small, large = (_plan(network, 12 * GB, size=size).scales[-1] for size in (4096, 8192))

    assert (small.route.history, small.route.half_pairs) == (10, False)
    assert large.route.half_pairs
    assert large.scale.size == (8192, 6144)


def test_curvature_pairs_on_the_host_need_its_memory(
    make_card_network: Callable[..., Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, host = make_card_network("cuda", torch.float16), [64 * GB]
    monkeypatch.setattr(planner, "_host_limits", lambda: host)
    pairs = 2 * 10 * 12 * 8192 * 6144

    assert _plan_on_card(network, 12, size=8192).scales[-1].route.history_on_host
    host[:] = [int(pairs / planner.USABLE) - 1000]
    fewer = _plan_on_card(network, 20, size=8192).scales[-1].route
    assert (fewer.history, fewer.history_on_host, fewer.half_pairs) == (10, False, True)
    with pytest.raises(errors.OutOfMemory, match=r"size \d+ fits"):
        _plan_on_card(network, 10, size=8192)


def test_without_any_route_left_no_smaller_one_is_found(
    make_card_network: Callable[..., Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even rounded pairs of 8192 px fit into no buffer, and meanwhile the host is full."""
    host = [64 * GB]
    monkeypatch.setattr(planner, "_MAX_BUFFER_BYTES", 2**31)
    monkeypatch.setattr(planner, "_host_limits", lambda: host)
    network, spec = make_card_network("mps", torch.float32), parse_spec({"size": 8192})
    one = Planner(network, NOMINAL_THROUGHPUT, 100 * GB)
    planned = one.plan((4, 3), [(64, 64)], spec.for_pictures()).scales[-1]
    host[:] = [GB]

    assert one.shrink(planned, [(64, 64)], spec.for_pictures()) is None


def test_curvature_pairs_on_the_host_need_time(
    make_card_network: Callable[..., Network], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "_host_limits", lambda: [64 * GB])
    network = make_card_network("cuda", torch.float16)
    quick, slow = (
        _plan_on_card(network, 12, Throughput(0, 1e-8, 0, seconds), size=8192).scales[-1]
        for seconds in (0, 1e-7)
    )

    assert quick.route.history_on_host
    assert quick.route == slow.route
    more = slow.iteration_seconds - quick.iteration_seconds
    assert more == pytest.approx(1e-7 * 8208 * 6160)  # with the margin


def test_the_time_of_pairs_on_the_host_is_measured() -> None:
    assert 0 < planner._measure_host_pairs(torch.device("cpu"), 32) < 1e-3


def test_what_cudnn_takes_beyond_the_formula_is_measured_and_planned(
    make_card_network: Callable[..., Network],
    make_tiny_network: Callable[..., Network],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tiny = make_tiny_network("vgg16")
    layers = {"relu1_1", "relu2_1", "relu3_1", "relu4_1", "relu4_2", "relu5_1"}
    peak = 80 * 80 * (tiny.gradient_bytes(layers) + 300)  # with the margin
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 1000)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: peak + 1000)
    assert planner._measure_scratch(tiny, 64) == 0  # a CPU has no such counter
    image, objective = planner._make_evaluation(tiny, 64)
    monkeypatch.setattr(planner, "_make_evaluation", lambda *_: (image, objective))
    monkeypatch.setattr(tiny, "device", torch.device("cuda"))
    assert planner._measure_scratch(tiny, 64) == pytest.approx(300, abs=40)

    network = make_card_network("cuda", torch.float16)
    usual, more = (
        _plan_on_card(network, 40, Throughput(0, 1e-8, 0, 0, scratch), size=2048, scales=1)
        for scratch in (0, 500)
    )
    assert more.memory_bytes - usual.memory_bytes == pytest.approx(
        500 * 2064 * 1552 - 250_000_000, abs=10
    )


class CountOperations(TorchDispatchMode):
    """Counts the operations that reach a device."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.counts[str(function)] += 1
        return function(*args, **(kwargs or {}))


def test_an_iteration_never_waits_for_the_card_and_has_a_budget_of_operations() -> None:
    """On meta tensors, which have no values to wait for. Views and conversions count, too."""
    network = Network(
        "vgg19",
        random_parameters("vgg19"),
        name="",
        sha256="",
        device="meta",
        dtype=torch.float16,
    )
    image, objective = planner._make_evaluation(network, 64)
    iterates = LBFGS(objective.value_and_gradient, image)
    with CountOperations() as counter:
        next(iterates)

    assert "aten._local_scalar_dense.default" not in counter.counts
    assert counter.counts.total() <= 1600
