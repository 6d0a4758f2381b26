"""The plan of a run: for each scale a route that fits into memory, with its bytes and its seconds.

A route says how the gradient is computed (whole or in tiles), how many curvature pairs L-BFGS
keeps, and where. Of the routes that fit, the planner takes the fastest with all pairs. Memory is
computed from the network's shapes. Time comes from a short measurement of the device, which is
stored. Knows no pictures, only their sizes.
"""

import json
import math
import os
import statistics
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise, zip_longest
from pathlib import Path

import torch
from torch import Tensor

from core import errors
from core.neural import device as devices
from core.neural.transfer.inputs import style_size
from core.neural.transfer.margin import Margin
from core.neural.transfer.objective import (
    Losses,
    Objective,
    Region,
    measure_style,
    recomputed_layers,
    used_layers,
)
from core.neural.transfer.optimize import HISTORY, LBFGS
from core.neural.transfer.preconditioner import precondition
from core.neural.transfer.regions import MAX_REGIONS
from core.neural.transfer.tiling import make_tiles
from core.neural.vgg import Format, Network, stride
from core.style.schedule import Scale, schedule
from core.style.spec import MIN_RESULT_SIDE_PX, MIN_SIZE_PX, StyleSpec
from core.style.vgg_layers import Architecture

TILES_PX = (None, 4096, 2048, 1024, 512, 256)  # None: the whole picture

# Number of pairs, whether they lie on the host, and whether they are rounded; in order of
# preference. Rounded pairs give another picture, and fewer pairs a worse one.
HISTORIES = (
    (HISTORY, False, False),
    (HISTORY, True, False),
    (HISTORY, False, True),
    (HISTORY // 2, False, True),
)

# Share of the free memory that a plan may use. The rest is for what no formula knows (allocators,
# libraries).
USABLE = 0.85

# Bytes per pixel of a float32 image, and the number of such images at once. During an evaluation:
# the photo, two images and their gradients, and a temporary. Between two evaluations of L-BFGS also
# the step, the change, and its preconditioned form.
_VECTOR_BYTES = 3 * 4
_EVALUATION_VECTORS = {"lbfgs": 6, "adam": 10}
_STEP_VECTORS = 8

# Bytes per pixel of a guide in float32: itself, with a margin, and smaller versions.
_GUIDE_BYTES = 4 * 7 / 3

# What a region with statistics of its own adds to the time of an iteration.
_REGION_COST = 0.12

# Scratch memory of the libraries at the least, measured on a CPU (docs/benchmarks/memory.md).
_FIXED_BYTES = 250_000_000

# What the largest tensor of a route stays below. On CUDA, elements: cuDNN and the poolings index
# with 32 bits. On mps, bytes of a buffer.
_MAX_ELEMENTS = 2**31
_MAX_BUFFER_BYTES = 2**32

_MIN_MEASURED_SIDE_PX = 64

Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class Throughput:
    """The speed of a device with a network.

    fixed_seconds: of an evaluation, beside its pixels. pixel_seconds: for each pixel that is read.
    new_size_seconds: once at a new size, before the first iteration; it covers the measurement of
    photo and painting, and kernel selection. host_pixel_seconds: for each pixel of the image, if
    the curvature pairs lie on the host. scratch_pixel_bytes: what an evaluation takes beyond the
    planner's formula, for each pixel of a tile (cuDNN's workspace).
    """

    fixed_seconds: float
    pixel_seconds: float
    new_size_seconds: float = 0.0
    host_pixel_seconds: float = 0.0
    scratch_pixel_bytes: float = 0.0


# For plans whose seconds are not shown: only their proportions matter.
NOMINAL_THROUGHPUT = Throughput(0.02, 2.5e-6)


@dataclass(frozen=True)
class Route:
    """How a scale is computed.

    The tile's side in px (None: whole), the number of curvature pairs (0: Adam), where they lie,
    and whether they are rounded to bfloat16.
    """

    tile_px: int | None
    history: int
    history_on_host: bool = False
    half_pairs: bool = False

    @property
    def pair_bytes(self) -> int:
        """Bytes per pixel of the curvature pairs, wherever they lie."""
        return 2 * self.history * _VECTOR_BYTES // (2 if self.half_pairs else 1)


@dataclass(frozen=True)
class PlannedScale:
    """One scale of a run, its route, and what it costs."""

    scale: Scale
    route: Route
    memory_bytes: int
    iteration_seconds: float
    new_size_seconds: float = 0.0

    @property
    def rank(self) -> int:
        """The preference of the route's history; lower is better and counts before seconds."""
        pairs = (self.route.history, self.route.history_on_host, self.route.half_pairs)
        return HISTORIES.index(pairs) if pairs in HISTORIES else 0

    @property
    def seconds(self) -> float:
        """The seconds of the scale.

        Includes the first evaluation and the measurement of the pictures, which take about two
        iterations.
        """
        return self.iteration_seconds * (self.scale.iterations + 2) + self.new_size_seconds


@dataclass(frozen=True)
class Plan:
    """The scales of a run, coarsest first."""

    scales: tuple[PlannedScale, ...]

    @property
    def memory_bytes(self) -> int:
        """The peak, without the network itself."""
        return max(planned.memory_bytes for planned in self.scales)

    @property
    def seconds(self) -> float:
        """The seconds of the whole run."""
        return sum(planned.seconds for planned in self.scales)


class Planner:
    """Plans runs for one network on its device."""

    def __init__(
        self,
        network: Network,
        throughput: Throughput = NOMINAL_THROUGHPUT,
        free_bytes: int | None = None,
    ) -> None:
        """free_bytes: the memory that a run may take; None asks the device before each plan."""
        self._network, self._throughput, self._free_bytes = network, throughput, free_bytes

    def plan(
        self,
        content: Size,
        styles: Sequence[Size],
        spec: StyleSpec,
        masks: int = 0,
        routes: Sequence[Route] = (),
        *,
        init: Size | None = None,
        free_bytes: int | None = None,
    ) -> Plan:
        """The plan for pictures of these sizes.

        masks: their number. routes: one for each scale, preferred where they fit (from a
        checkpoint). init: the size of the initial picture. free_bytes: replaces what the device
        reports.

        Raises BadSpec (`size` is too small for the photo's shape, or the network lacks a layer),
        OutOfMemory with a size that fits.
        """
        self._network.check_layers({layer for layers in used_layers(spec) for layer in layers})
        usable = int((self.free_bytes() if free_bytes is None else free_bytes) * USABLE)
        scales = schedule(spec, *content, max(init) if init else None)
        planned = []
        for scale, route in zip_longest(scales, routes):
            if scale is None:  # more routes than scales
                break
            fastest = self._fastest(self._candidates(scale, styles, spec, masks), usable, route)
            if fastest is None:
                raise errors.OutOfMemory(
                    self._describe_fitting_size(content, styles, spec, masks, usable)
                )
            planned.append(fastest)
        return Plan(tuple(planned))

    def shrink(
        self, planned: PlannedScale, styles: Sequence[Size], spec: StyleSpec, masks: int = 0
    ) -> PlannedScale | None:
        """The same scale by the fastest route of at most half the memory, or by the smallest route.

        None if no route is smaller.
        """
        candidates = self._candidates(planned.scale, styles, spec, masks)
        # None if the host's memory, too, is taken meanwhile.
        smallest = min((candidate.memory_bytes for candidate in candidates), default=0)
        usable = max(planned.memory_bytes // 2, smallest)
        if usable >= planned.memory_bytes:
            return None
        return self._fastest(candidates, usable)

    def free_bytes(self) -> int:
        """Bytes that a run may take now."""
        if self._free_bytes is None:
            return free_memory(self._network.device)
        return self._free_bytes

    def _describe_fitting_size(
        self, content: Size, styles: Sequence[Size], spec: StyleSpec, masks: int, usable: int
    ) -> str:
        """The error message: the memory that is needed, and the largest size that has a plan."""
        needed = max(
            min(route.memory_bytes for route in self._candidates(scale, styles, spec, masks))
            for scale in schedule(spec, *content)
        )
        needed_gb = math.ceil(needed / USABLE / 1e7) / 100
        fitting, minimum = 0, -(-MIN_RESULT_SIDE_PX * max(content) // min(content))
        for size in range(max(MIN_SIZE_PX, minimum), spec.size, 32):
            last = schedule(spec.model_copy(update={"size": size}), *content)[-1]
            if self._fastest(self._candidates(last, styles, spec, masks), usable) is None:
                break
            fitting = size
        message = f"size {spec.size} needs {needed_gb:g} GB of memory, more than there is;"
        if not fitting:
            return f"{message} no size fits: free some memory, or use another device."
        return f"{message} size {fitting} fits."

    @staticmethod
    def _fastest(
        candidates: Iterable[PlannedScale], usable: int, route: Route | None = None
    ) -> PlannedScale | None:
        """The fastest candidate that fits into `usable` bytes; the one by `route`, if that fits."""
        fitting = [candidate for candidate in candidates if candidate.memory_bytes <= usable]
        return min(
            fitting,
            key=lambda candidate: (
                candidate.route != route,
                candidate.rank,
                candidate.iteration_seconds,
            ),
            default=None,
        )

    def _candidates(
        self, scale: Scale, styles: Sequence[Size], spec: StyleSpec, masks: int
    ) -> list[PlannedScale]:
        """The scale by every route, with its cost."""
        spec = scale.adapt(spec)
        cost = _ScaleCost(self._network, self._throughput, scale, styles, spec=spec, masks=masks)
        device = self._network.device
        free_host_bytes = math.inf if device.type == "cpu" else USABLE * min(_host_limits())
        return [
            cost.plan(route)
            for route in _possible_routes(spec, device, cost.largest_side)
            if cost.host_bytes(route) <= free_host_bytes and cost.is_indexable(route)
        ]


def _possible_routes(spec: StyleSpec, device: torch.device, largest_side: int) -> Iterator[Route]:
    """Every route for pictures of at most `largest_side` px, the largest tiles first."""
    histories = HISTORIES if spec.optimizer == "lbfgs" else ((0, False, False),)
    for tile_px in TILES_PX:
        if tile_px is not None and tile_px >= largest_side:
            continue  # the same as the whole picture
        for history, on_host, is_half in histories:
            if not (on_host and device.type == "cpu"):  # there the host is the device
                yield Route(tile_px, history, on_host, is_half)


class _ScaleCost:
    """The bytes and the seconds of one scale by any route."""

    def __init__(
        self,
        network: Network,
        throughput: Throughput,
        scale: Scale,
        styles: Sequence[Size],
        *,
        spec: StyleSpec,
        masks: int,
    ) -> None:
        self._network, self._throughput, self._scale = network, throughput, scale
        self._seamless = spec.seamless
        self._margin = Margin.of_image(scale.height, scale.width, spec)
        self._masks, self._parts = masks, MAX_REGIONS if spec.regions == "auto" else 1
        self._content_layers, self._style_layers = used_layers(spec)
        self._layers = {*self._content_layers, *self._style_layers}
        self._paintings: list[Margin] = []
        if self._style_layers:
            sizes = [style_size(*size, spec, scale.long_side) for size in styles]
            self._paintings = [Margin.of_painting(down, across, spec) for across, down in sizes]
        self._read_px: dict[tuple[int | None, int], list[int]] = {}  # by tile_px and halo

    @property
    def largest_side(self) -> int:
        """The longest side of the image and the paintings, in px."""
        pictures = (self._margin, *self._paintings)
        return max(max(picture.height, picture.width) for picture in pictures)

    def plan(self, route: Route) -> PlannedScale:
        """The scale by this route."""
        return PlannedScale(
            self._scale,
            route,
            self._memory_bytes(route),
            self._iteration_seconds(route),
            self._throughput.new_size_seconds,
        )

    def host_bytes(self, route: Route) -> int:
        """Bytes of the curvature pairs that lie on the host."""
        return route.pair_bytes * math.prod(self._margin.padded) if route.history_on_host else 0

    def is_indexable(self, route: Route) -> bool:
        """Whether the kernels of the device can index every tensor of the route."""
        kind = self._network.device.type
        pixels = self._tile_pixels(route.tile_px, self._layers)
        pixels = pixels + [self._style_pixels(margin, route.tile_px) for margin in self._paintings]
        elements = self._network.filters("relu1_1") * max(pixels)
        if kind == "mps":
            rows = route.pair_bytes * math.prod(self._margin.padded) - self.host_bytes(route)
            return max(elements * self._network.dtype.itemsize, rows) < _MAX_BUFFER_BYTES
        return kind == "cpu" or elements < _MAX_ELEMENTS

    def _tile_pixels(self, tile_px: int | None, layers: Collection[str]) -> list[int]:
        """The pixels that each tile of the image reads for these layers.

        Stored, because several routes have the same tiles.
        """
        halo = self._network.halo(layers)
        if (tile_px, halo) not in self._read_px:
            tiles = make_tiles(self._margin, tile_px, halo, seamless=self._seamless)
            self._read_px[tile_px, halo] = [tile.read_px for tile in tiles]
        return self._read_px[tile_px, halo]

    def _iteration_seconds(self, route: Route) -> float:
        tile_px = route.tile_px
        pixels = self._tile_pixels(tile_px, self._layers)
        # Several tiles take two passes, of which the first only goes forward.
        passes = 1 if len(pixels) == 1 else 1.5
        fixed = self._throughput.fixed_seconds * len(pixels)
        if route.history_on_host:
            fixed += self._throughput.host_pixel_seconds * math.prod(self._margin.padded)
        regions = self._parts * max(1, self._masks)  # each has statistics of its own
        cost = self._network.relative_cost(self._layers) * (1 + _REGION_COST * (regions - 1))
        work = sum(pixels) * passes * cost
        if recomputed := recomputed_layers(self._content_layers, len(pixels)):
            # Each of the two passes reads the photo; a forward pass is half an evaluation.
            photo = sum(self._tile_pixels(tile_px, recomputed))
            work += photo * self._network.relative_cost(recomputed)
        return fixed + self._throughput.pixel_seconds * work

    def _memory_bytes(self, route: Route) -> int:
        """The peak: the state, and the largest of an evaluation, a step, and a painting's
        measurement.
        """
        pixels = self._tile_pixels(route.tile_px, self._layers)
        recomputed = recomputed_layers(self._content_layers, len(pixels))
        evaluation = max(pixels) * (
            self._network.gradient_bytes(self._layers) + self._target_bytes(recomputed)
        )
        paintings = [self._style_bytes(margin, route.tile_px) for margin in self._paintings]
        image = _VECTOR_BYTES * math.prod(self._margin.padded)
        images = _EVALUATION_VECTORS["lbfgs" if route.history else "adam"]
        peak = max(images * image + max(evaluation, *paintings, 0), _STEP_VECTORS * image)
        state = self._state_bytes(route, {*self._content_layers} - recomputed)
        scratch = max(_FIXED_BYTES, self._throughput.scratch_pixel_bytes * max(pixels))
        return int(scratch + state + peak)

    def _target_bytes(self, layers: Collection[str]) -> float:
        """Content targets, in bytes per pixel."""
        item_bytes = self._network.dtype.itemsize
        return sum(
            self._network.filters(layer) / stride(layer) ** 2 * item_bytes for layer in layers
        )

    def _state_bytes(self, route: Route, kept_targets: Collection[str]) -> float:
        """What stays for a scale: pairs, targets, and guides with their smaller versions."""
        vectors: float = 0 if route.history_on_host else route.pair_bytes
        if self._masks or self._parts > 1:
            vectors += self._parts * max(1, self._masks) * _GUIDE_BYTES
            vectors += 4 * (self._masks + self._parts)  # as given
        per_pixel = vectors + self._target_bytes(kept_targets)
        return math.prod(self._margin.padded) * per_pixel

    def _style_bytes(self, painting: Margin, tile_px: int | None) -> int:
        """What it takes to measure a painting.

        Its float32 image, which is sorted to match colors or filled outside a style mask, a forward
        pass, and guides for its parts.
        """
        features_bytes = self._network.features_bytes(self._layers)
        forward = self._style_pixels(painting, tile_px) * features_bytes
        pixels = math.prod(painting.padded)
        guides = self._parts * _GUIDE_BYTES * pixels  # also of a style mask
        image = _VECTOR_BYTES * pixels
        return int(max(forward + 2 * image, 8 * image) + guides)

    def _style_pixels(self, painting: Margin, tile_px: int | None) -> int:
        """The pixels that the largest tile of a painting reads."""
        tiles = make_tiles(painting, tile_px, self._network.halo(self._layers))
        return max(tile.read_px for tile in tiles)


# ------------------------------------------------------ memory and speed of the device


def load_throughput(network: Network, file: Path) -> Throughput:
    """The throughput of the device with this network.

    It is read from the file, or measured, which takes seconds, and stored there.
    """
    number_format = Format(network.dtype, network.layout)
    key = throughput_key(network.device, network.architecture, number_format)
    stored = read_throughputs(file)
    if key in stored:
        return stored[key]
    throughput = measure_throughput(network)
    entries = {name: asdict(one) for name, one in (stored | {key: throughput}).items()}
    with suppress(OSError):  # if nothing can be written, it is measured at every start
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary = file.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(entries, indent=1))
        temporary.replace(file)
    return throughput


def throughput_key(device: torch.device, architecture: Architecture, number_format: Format) -> str:
    """The name of a throughput in its file: what it depends on."""
    threads = torch.get_num_threads()
    model = f"{architecture}, {number_format.dtype}"
    if number_format.layout != torch.channels_last:
        model += ", contiguous"
    return f"{device_name(device)}, {threads} threads, {model}, torch {torch.__version__}"


def device_name(device: torch.device) -> str:
    """The name of a card, or the kind of another device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def read_throughputs(file: Path) -> dict[str, Throughput]:
    """The throughputs of a file by their keys; none if it is missing or damaged."""
    try:
        return {key: Throughput(**one) for key, one in json.loads(file.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def measure_throughput(network: Network) -> Throughput:
    """Measure the median seconds of an evaluation at two sizes.

    The sizes are smaller if memory does not suffice.
    """
    # A card needs the same time for all small pictures, so it is measured with larger ones.
    sides = (512, 1536) if network.device.type == "cuda" else (128, 320)
    while sides[0] > _MIN_MEASURED_SIDE_PX:
        try:
            return _measure_at(network, sides)
        except (RuntimeError, MemoryError) as error:
            if not devices.is_out_of_memory(error):
                raise
        devices.release_memory(network.device)
        sides = (sides[0] // 2, sides[1] // 2)
    return _measure_at(network, sides)


def _measure_at(network: Network, sides: tuple[int, int]) -> Throughput:
    (small, small_seconds, _), (large, large_seconds, first_seconds) = (
        _time_evaluation(network, side) for side in sides
    )
    pixel_seconds = max(0.0, (large_seconds - small_seconds) / (large - small))
    fixed_seconds = max(1e-4, small_seconds - small * pixel_seconds)
    # Without the first evaluation and the two that `PlannedScale.seconds` adds for the measurement.
    new_size_seconds = max(0.0, first_seconds - 3 * large_seconds)
    if network.device.type == "cpu":
        return Throughput(fixed_seconds, pixel_seconds, new_size_seconds)
    host_pixel_seconds = _measure_host_pairs(network.device)
    scratch_pixel_bytes = _measure_scratch(network, sides[1])
    return Throughput(
        fixed_seconds, pixel_seconds, new_size_seconds, host_pixel_seconds, scratch_pixel_bytes
    )


def _measure_host_pairs(device: torch.device, side: int = 512) -> float:
    """Seconds per pixel of an iteration of L-BFGS with its pairs on the host, and nothing else."""

    def evaluate(image: Tensor) -> tuple[Losses, Tensor]:
        return Losses.of((image - 0.5).square().sum().expand(4)), image - 0.5

    image = torch.zeros(1, 3, side, side, device=device)
    host = torch.device("cpu")
    iterates = LBFGS(evaluate, image, HISTORY, host, precondition=precondition)
    ends = [time.perf_counter()]
    for _ in range(6):
        next(iterates)[1].by_name()  # by_name waits for the device
        ends.append(time.perf_counter())
    seconds = [end - before for before, end in pairwise(ends)]
    return statistics.median(seconds[1:]) / side**2


def _measure_scratch(network: Network, side: int) -> float:
    """Bytes per pixel that an evaluation takes beyond the planner's formula; 0 if unknown."""
    if network.device.type != "cuda":
        return 0.0
    image, objective = _make_evaluation(network, side)
    before = torch.cuda.memory_allocated(network.device)
    torch.cuda.reset_peak_memory_stats(network.device)
    objective.value_and_gradient(image)
    peak = torch.cuda.max_memory_allocated(network.device) - before
    layers = {layer for layers in used_layers(StyleSpec()) for layer in layers}
    return max(0.0, peak / image[0, 0].numel() - network.gradient_bytes(layers))


def _make_evaluation(network: Network, side: int) -> tuple[Tensor, Objective]:
    """An image of one size, and the default objective for it."""
    spec = StyleSpec().for_pictures()
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(
        network.device
    )
    style = measure_style(network, image.flip(1), spec)
    objective = Objective(network, spec, image, [Region(style)])
    return objective.margin.mirror(image), objective


def _time_evaluation(network: Network, side: int) -> tuple[int, float, float]:
    """Time evaluations of one size.

    Returns the number of pixels, the median seconds, and the seconds until the first one is
    complete.
    """
    start = time.perf_counter()
    image, objective = _make_evaluation(network, side)
    ends = [start]
    for _ in range(6):
        objective.value_and_gradient(image)[0].by_name()  # by_name waits for the device
        ends.append(time.perf_counter())
    seconds = [end - before for before, end in pairwise(ends)]
    return math.prod(objective.margin.padded), statistics.median(seconds[1:]), seconds[0]


def free_memory(device: torch.device) -> int:
    """Bytes that a run may take on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return min(_host_limits())


def _host_limits() -> Iterable[int]:
    """Bytes of the machine, what of them is available, and what the container may still take."""
    yield os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        yield int(lines["MemAvailable"].split()[0]) * 1024
    # A container's limit: cgroup version 2, then 1.
    cgroup = Path("/sys/fs/cgroup")
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        available = _cgroup_headroom(cgroup / limit, cgroup / usage)
        if available is not None:
            yield available


def _cgroup_headroom(limit: Path, usage: Path) -> int | None:
    """Bytes below the limit; None without one.

    The page cache does not count as used: the kernel frees it on demand.
    """
    try:
        lines = usage.with_name("memory.stat").read_text().splitlines()
        page_cache = int(dict(line.split() for line in lines).get("inactive_file", 0))
        return int(limit.read_text()) - int(usage.read_text()) + page_cache
    except (OSError, ValueError):  # no such group, or its limit is the word "max"
        return None
