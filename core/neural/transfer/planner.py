"""The plan of a run, made before it: for each scale a route that fits into memory, its bytes and its seconds.

A route is how the gradient is taken (whole, or in tiles) and how many curvature pairs L-BFGS keeps, and where. Of those
that fit, the fastest with all pairs is taken. Memory is counted from the network's shapes; time from a short
measurement of the device, which is kept. Knows no pictures, only their sizes.
"""

import json
import os
import statistics
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import pairwise, zip_longest
from pathlib import Path

import torch

from core import errors
from core.neural import device as devices
from core.neural.transfer.inputs import style_size
from core.neural.transfer.objective import Objective, Region, layers_of, style_of
from core.neural.transfer.optimize import HISTORY
from core.neural.transfer.schedule import Scale, schedule
from core.neural.transfer.tiling import Tile, tiles
from core.neural.vgg import Network, stride
from core.style.spec import MIN_RESULT_SIDE_PX, StyleSpec

TILES_PX = (None, 4096, 2048, 1024, 512, 256)
# Pairs, and whether the host keeps them; in the order they are tried in. Fewer pairs make another picture: they are
# the last resort.
HISTORIES = ((HISTORY, False), (HISTORY, True), (HISTORY // 2, False))

# Of what is free, this share is planned with: the rest is for what no formula knows (allocators, libraries).
USABLE = 0.85

# An image in float32, for a pixel; and how many there are at once: photo, image, two gradients, step, change, both
# together, direction, and two in passing.
_VECTOR_BYTES = 3 * 4
_VECTORS = 11

# What libraries take beside it, for scratch: measured on a CPU (docs/log.md).
_FIXED_BYTES = 160_000_000

_LEAST_SIDE_PX = 64  # of what is measured

Size = tuple[int, int]  # width, height


@dataclass(frozen=True)
class Throughput:
    """How fast a device is with a network: seconds an evaluation takes beside its pixels, and for each seen pixel.

    And what a new size takes once, before its first iteration: looks at photo and painting, kernels made to measure.
    """

    fixed_seconds: float
    pixel_seconds: float
    new_size_seconds: float = 0.0


# A pace for plans whose seconds nobody asks for: their proportions are right.
NOMINAL_THROUGHPUT = Throughput(0.02, 2.5e-6)


@dataclass(frozen=True)
class Route:
    """The way a scale is gone."""

    tile_px: int | None
    history: int
    history_on_host: bool = False


@dataclass(frozen=True)
class PlannedScale:
    """One scale of the run, its route and what it takes."""

    scale: Scale
    route: Route
    memory_bytes: int
    iteration_seconds: float
    new_size_seconds: float = 0.0

    @property
    def rank(self) -> int:
        """Lower is better, before seconds are looked at."""
        pairs = (self.route.history, self.route.history_on_host)
        return HISTORIES.index(pairs) if pairs in HISTORIES else 0

    @property
    def seconds(self) -> float:
        """With the looks at photo and paintings and the evaluation that comes first: some two iterations' worth."""
        return self.iteration_seconds * (self.scale.iterations + 2) + self.new_size_seconds


@dataclass(frozen=True)
class Plan:
    """What a run will do and take."""

    legs: tuple[PlannedScale, ...]

    @property
    def memory_bytes(self) -> int:
        """At the most, beside the network itself."""
        return max(leg.memory_bytes for leg in self.legs)

    @property
    def seconds(self) -> float:
        """In all."""
        return sum(leg.seconds for leg in self.legs)


class Planner:
    """Plans runs for one network on its device."""

    def __init__(
        self, network: Network, pace: Throughput = NOMINAL_THROUGHPUT, free_bytes: int | None = None
    ) -> None:
        """free_bytes: what a run may take; None asks the device before each plan."""
        self._network, self._pace, self._free_bytes = network, pace, free_bytes

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
        """The plan of a run, with as many masks; by these routes, one a scale, where they fit. init: to begin with.

        free_bytes: as if that were what a run may take.

        Raises BadSpec (`size` too small for the photo's shape, a layer that the network does not have), OutOfMemory
        with a size that fits.
        """
        self._network.must_have({layer for layers in layers_of(spec) for layer in layers})
        usable = int((self.free_bytes() if free_bytes is None else free_bytes) * USABLE)
        legs = [
            self._fastest(self._legs(scale, styles, spec, masks), usable, route)
            for scale, route in zip_longest(
                schedule(spec, *content, max(init) if init else None), routes
            )
            if scale is not None
        ]
        if None in legs:
            raise errors.OutOfMemory(self._what_fits(content, styles, spec, masks, usable))
        return Plan(tuple(leg for leg in legs if leg is not None))

    def smaller(
        self, leg: PlannedScale, styles: Sequence[Size], spec: StyleSpec, masks: int = 0
    ) -> PlannedScale | None:
        """The same scale by a route of at most half the memory; else by the smallest, if that is smaller at all."""
        smallest = min(
            self._legs(leg.scale, styles, spec, masks), key=lambda other: other.memory_bytes
        )
        usable = max(leg.memory_bytes // 2, smallest.memory_bytes)
        return (
            self._fastest(self._legs(leg.scale, styles, spec, masks), usable)
            if usable < leg.memory_bytes
            else None
        )

    def free_bytes(self) -> int:
        """Bytes that a run may take now."""
        return free_memory(self._network.device) if self._free_bytes is None else self._free_bytes

    def _what_fits(
        self, content: Size, styles: Sequence[Size], spec: StyleSpec, masks: int, usable: int
    ) -> str:
        """The sentence that names the largest size with a plan."""
        fits, least = 0, -(-MIN_RESULT_SIDE_PX * max(content) // min(content))
        for size in range(max(64, least), spec.size, 32):
            last = schedule(spec.model_copy(update={"size": size}), *content)[-1]
            if self._fastest(self._legs(last, styles, spec, masks), usable) is None:
                break
            fits = size
        if not fits:
            return "This worker has too little memory for any size; free some, or use another."
        return f"size {spec.size} needs more memory than this worker has; size {fits} fits."

    @staticmethod
    def _fastest(
        legs: Iterable[PlannedScale], usable: int, route: Route | None = None
    ) -> PlannedScale | None:
        """Or the one that goes by `route`."""
        fitting = [leg for leg in legs if leg.memory_bytes <= usable]
        return min(
            fitting,
            key=lambda leg: (leg.route != route, leg.rank, leg.iteration_seconds),
            default=None,
        )

    def _legs(
        self, scale: Scale, styles: Sequence[Size], spec: StyleSpec, guides: int
    ) -> Iterator[PlannedScale]:
        """The scale by every route there is."""
        network, (content_layers, style_layers) = self._network, layers_of(spec)
        layers = {*content_layers, *style_layers}
        paintings = [style_size(*size, spec, scale) for size in styles] if style_layers else []
        largest = max(max(size) for size in (scale.size, *paintings))
        for tile_px in (side for side in TILES_PX if side is None or side < largest):
            windows = tiles(
                scale.height, scale.width, tile_px, network.halo(layers), seamless=spec.seamless
            )
            seen = [_seen(tile) for tile in windows]
            passes = 1 if len(seen) == 1 else 1.5  # the first of two goes forward only
            seconds = self._pace.fixed_seconds * len(seen)
            seconds += self._pace.pixel_seconds * sum(seen) * passes * network.work(layers)
            looks = [self._look_bytes(size, tile_px, style_layers) for size in paintings]
            for history, on_host in HISTORIES if spec.optimizer == "lbfgs" else ((0, False),):
                if on_host and network.device.type == "cpu":
                    continue
                gradient = max(seen) * network.gradient_bytes(layers)
                state = self._state_bytes(scale, content_layers, 0 if on_host else history, guides)
                memory = _FIXED_BYTES + state + max(gradient, *looks, 0)
                route = Route(tile_px, history, on_host)
                yield PlannedScale(scale, route, memory, seconds, self._pace.new_size_seconds)

    def _state_bytes(
        self, scale: Scale, content_layers: Iterable[str], history: int, guides: int
    ) -> int:
        """What is as large as the image: images, gradients, pairs, targets, guides with their smaller versions."""
        size = self._network.dtype.itemsize
        targets = sum(
            self._network.filters(layer) / stride(layer) ** 2 * size for layer in content_layers
        )
        vectors = _VECTOR_BYTES * (_VECTORS + 2 * history) + guides * 4 * 4 / 3
        return int(scale.width * scale.height * (vectors + targets))

    def _look_bytes(self, size: Size, tile_px: int | None, layers: Collection[str]) -> int:
        """A look at a painting: it is held in float32 and, to match its colors, sorted; and goes forward only."""
        width, height = size
        windows = tiles(height, width, tile_px, self._network.halo(layers))
        look = max(map(_seen, windows)) * self._network.features_bytes(layers)
        return max(look + 2 * _VECTOR_BYTES * width * height, 6 * _VECTOR_BYTES * width * height)


def _seen(tile: Tile) -> int:
    """Pixels."""
    return (tile.down.seen_end - tile.down.seen_begin) * (
        tile.across.seen_end - tile.across.seen_begin
    )


# ---------------------------------------------------------------------- what the device has, and how fast it is


def load_throughput(network: Network, file: Path) -> Throughput:
    """The device's pace with this network: from the file, or measured, which takes seconds, and kept there."""
    device, threads = device_name(network.device), torch.get_num_threads()
    key = f"{device}, {threads} threads, {network.architecture}, {network.dtype}, torch {torch.__version__}"
    paces = _kept_paces(file)
    if key in paces:
        return paces[key]
    pace = measure_throughput(network)
    with suppress(OSError):  # where nothing can be written, it is measured at every start
        file.parent.mkdir(parents=True, exist_ok=True)
        written = file.with_suffix(f".{os.getpid()}")
        written.write_text(
            json.dumps({name: asdict(one) for name, one in (paces | {key: pace}).items()}, indent=1)
        )
        written.replace(file)
    return pace


def device_name(device: torch.device) -> str:
    """A card's own name; else its kind."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)


def _kept_paces(file: Path) -> dict[str, Throughput]:
    try:
        return {key: Throughput(**one) for key, one in json.loads(file.read_text()).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def measure_throughput(network: Network) -> Throughput:
    """From the median seconds of an evaluation at two sizes: smaller ones where the memory is too little for these."""
    # A card does small pictures in the time of none.
    sides = (512, 1536) if network.device.type == "cuda" else (128, 320)
    while sides[0] > _LEAST_SIDE_PX:
        try:
            return _pace_at(network, sides)
        except (RuntimeError, MemoryError) as error:
            if not devices.is_out_of_memory(error):
                raise
        devices.release_memory(network.device)
        sides = (sides[0] // 2, sides[1] // 2)
    return _pace_at(network, sides)


def _pace_at(network: Network, sides: tuple[int, int]) -> Throughput:
    (small, small_seconds, _), (large, large_seconds, begin_seconds) = (
        _evaluation(network, side) for side in sides
    )
    pixel_seconds = max(0.0, (large_seconds - small_seconds) / (large - small))
    fixed_seconds = max(1e-4, small_seconds - small * pixel_seconds)
    return Throughput(fixed_seconds, pixel_seconds, max(0.0, begin_seconds - 3 * large_seconds))


def _evaluation(network: Network, side: int) -> tuple[int, float, float]:
    """Pixels, the median seconds of their loss and gradient, and the seconds until the first was there."""
    spec = StyleSpec().for_pictures()
    start = time.perf_counter()
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(
        network.device
    )
    objective = Objective(network, spec, image, [Region(style_of(network, image.flip(1), spec))])
    ends = [start]
    for _ in range(6):
        objective.with_gradient(image)[0].by_name()  # reading the losses waits for the device
        ends.append(time.perf_counter())
    seconds = [end - before for before, end in pairwise(ends)]
    return side * side, statistics.median(seconds[1:]), seconds[0]


def free_memory(device: torch.device) -> int:
    """Bytes that a run may take on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    return min(_host_limits())


def _host_limits() -> Iterable[int]:
    """What the machine has, what of it is free, and what is left of this container's share."""
    yield os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        yield int(lines["MemAvailable"].split()[0]) * 1024
    # Of a container: cgroup 2, then 1.
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        if (
            left := _left_of(Path("/sys/fs/cgroup") / limit, Path("/sys/fs/cgroup") / used)
        ) is not None:
            yield left


def _left_of(limit: Path, used: Path) -> int | None:
    """Bytes below the limit; copies of files do not count as used, they make room when asked."""
    try:
        counters = dict(
            line.split() for line in used.with_name("memory.stat").read_text().splitlines()
        )
        return (
            int(limit.read_text()) - int(used.read_text()) + int(counters.get("inactive_file", 0))
        )
    except (OSError, ValueError):  # no such group, or its limit is the word "max"
        return None
