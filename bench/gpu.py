"""Measures one card in a few minutes, without internet access: python bench/gpu.py [WEIGHTS].

WEIGHTS is a cache file of VGG-16 or VGG-19 (`impasto weights list` names them). Without it the
weights are random; the speed is the same. Checks the card against the CPU in float32, then prints
one table. Exits with 1 if a gradient is wrong or a section fails. bench/README.md.
"""

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import click
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))  # the project need not be installed

from bench.optimize import SAMPLES, Pair, floor, pair, seconds_of, wait
from bench.peer import FILTERS, Peer
from core.neural import device as devices
from core.neural.transfer.formats import fastest_format
from core.neural.transfer.optimize import LBFGS
from core.neural.transfer.planner import Planner, measure_throughput
from core.neural.transfer.preconditioner import precondition
from core.neural.transfer.stylize import stylize
from core.neural.vgg import Format, Network, formats, stride
from core.neural.weights.cache import DTYPES, Precision, WeightsCache, random_parameters
from core.style.spec import StyleSpec
from core.style.vgg_layers import Architecture, convolutions

BUDGET_SECONDS = 420  # no section starts later

# Relative differences of a gradient from the CPU's that rounding explains.
GRADIENT_LIMITS = {torch.float32: 1e-3, torch.float16: 0.08, torch.bfloat16: 0.2}
WRONG = " WRONG"

Row = tuple[str, str]
_ARCHITECTURES: dict[str, Architecture] = {"vgg16": "vgg16", "vgg19": "vgg19"}


class Card:
    """The device and its networks."""

    def __init__(self, device: str, weights: Path | None) -> None:
        self.device = torch.device(device)
        self.cpu = _network(weights, "cpu", "float32")
        self.exact, self.fast = (
            _network(weights, device, "float32"),
            _network(weights, device, "auto"),
        )

    def flops(self, height: int, width: int) -> float:
        """Operations of an evaluation up to relu5_1, forward and backward.

        A multiplication with its addition counts as 2.
        """
        rows = [row for row in convolutions(self.fast.architecture) if row.layer <= "relu5_1"]
        return sum(
            2 * 2 * 9 * row.inputs * row.outputs * height * width / stride(row.layer) ** 2
            for row in rows
        )


def _network(weights: Path | None, device: str, precision: Precision) -> Network:
    if weights is not None:
        return WeightsCache(weights.parent).load(_ARCHITECTURES[weights.stem], device, precision)
    dtype = DTYPES[precision]
    return Network(
        "vgg16", random_parameters("vgg16"), name="random", sha256="", device=device, dtype=dtype
    )


def correctness(card: Card) -> Iterator[Row]:
    """Compare the gradient on the card with that of the CPU; report the loss after 10 steps."""
    inputs, spec = _samples(192), StyleSpec(size=192, scales=1)
    photo, objective = inputs.objective(spec, card.cpu)
    image = photo.flip(3)
    _, expected = objective.value_and_gradient(image)
    *_, (_, losses) = (
        pair for _, pair in zip(range(10), LBFGS(objective.value_and_gradient, photo), strict=False)
    )
    for network in (card.exact, card.fast):
        name = str(network.dtype).removeprefix("torch.")
        photo, objective = inputs.objective(spec, network)
        actual = objective.value_and_gradient(image.to(card.device))[1].cpu()
        yield (
            f"gradient, {name}: relative difference from the CPU",
            _judge(actual, expected, GRADIENT_LIMITS[network.dtype]),
        )
        *_, (_, ours) = (
            pair
            for _, pair in zip(range(10), LBFGS(objective.value_and_gradient, photo), strict=False)
        )
        yield (
            f"loss after 10 iterations, {name} / CPU",
            f"{float(ours.total) / float(losses.total):.4f}",
        )
    _, whole = inputs.objective(spec, card.exact)
    _, tiled = inputs.objective(spec, card.exact, 64)
    one, many = (
        objective.value_and_gradient(image.to(card.device))[1] for objective in (whole, tiled)
    )
    yield (
        "gradient in tiles of 64 px, float32: relative difference",
        _judge(many, one, GRADIENT_LIMITS[torch.float32]),
    )


def _judge(actual: torch.Tensor, expected: torch.Tensor, limit: float) -> str:
    """The relative difference, and whether it is too large."""
    difference = float((actual - expected).norm() / expected.norm())
    return f"{difference:.1e}" + (WRONG if not difference < limit else "")  # NaN is wrong, too


def number_formats(card: Card) -> Iterator[Row]:
    """The seconds of an evaluation in each format, and the one that a worker chooses."""
    throughputs = {}
    for one in formats(card.device):
        network = _random_network(card, one)
        throughputs[one] = throughput = measure_throughput(network)
        seconds = throughput.fixed_seconds + 1024 * 1024 * throughput.pixel_seconds
        scratch = f"{throughput.scratch_pixel_bytes:.0f} bytes a pixel of scratch"
        yield f"1024 x 1024 px, {_describe(one)}", f"{seconds * 1e3:.1f} ms, {scratch}"
    yield "format of a worker", _describe(fastest_format(throughputs))


def _random_network(card: Card, number_format: Format) -> Network:
    return Network(
        "vgg19",
        random_parameters("vgg19"),
        name="random",
        sha256="",
        device=str(card.device),
        dtype=number_format.dtype,
        layout=number_format.layout,
    )


def _describe(number_format: Format) -> str:
    layout = "last" if number_format.layout == torch.channels_last else "first"
    return f"{str(number_format.dtype).removeprefix('torch.')}, channels {layout}"


def rates(card: Card) -> Iterator[Row]:
    """The rate of a matrix product, and iterations compared with their lower bound."""
    side = 8192 if card.device.type == "cuda" else 1024
    matrix = torch.rand(side, side, device=card.device).to(card.fast.dtype)
    peak = 2 * side**3 / seconds_of(partial(torch.mm, matrix, matrix), 5)
    yield f"matrix product, {card.fast.dtype}", f"{peak / 1e12:.1f} TFLOP/s"
    for size in (256, 512, 1024, 2048) if card.device.type == "cuda" else (256,):
        try:
            yield from _rates_at(card, size, peak)
        except RuntimeError as error:  # a small card must not lose the rest of the table
            yield f"{size} px", _first_line(error)
            devices.release_memory(card.device)


def _rates_at(card: Card, size: int, peak: float) -> Iterator[Row]:
    inputs, spec = _samples(size), StyleSpec(size=size, scales=1)
    photo, objective = inputs.objective(spec, card.fast)
    evaluation = seconds_of(partial(objective.value_and_gradient, photo))
    iterates = LBFGS(objective.value_and_gradient, photo)
    iteration = seconds_of(lambda: next(iterates))
    least, flops = floor(card.fast, photo), card.flops(photo.shape[2], photo.shape[3])
    stock = seconds_of(
        partial(Peer(card.exact, inputs.content, inputs.styles[0]).gradient, photo), 3
    )
    yield f"{size} px: iterations a second", f"{1 / iteration:.1f}"
    yield (
        f"{size} px: evaluation / convolutions alone / stock autograd in float32",
        (f"{evaluation * 1e3:.1f} / {least * 1e3:.1f} / {stock * 1e3:.1f} ms"),
    )
    yield f"{size} px: share of the matrix product's rate", f"{flops / iteration / peak:.0%}"
    if card.device.type == "cuda":
        yield (
            f"{size} px: evaluation as a CUDA graph",
            _capture_graph(partial(objective.value_and_gradient, photo)),
        )


def _capture_graph(step: Callable[[], object]) -> str:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    try:
        with torch.cuda.stream(stream):
            step()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        return f"{seconds_of(graph.replay) * 1e3:.1f} ms"
    except RuntimeError as error:
        return f"cannot be captured: {_first_line(error)}"


def autotune(card: Card) -> Iterator[Row]:
    """An evaluation with and without cuDNN's search for algorithms."""
    if card.device.type != "cuda":
        return
    photo, objective = _samples(512).objective(StyleSpec(size=512, scales=1), card.fast)
    default = seconds_of(partial(objective.value_and_gradient, photo))
    torch.backends.cudnn.benchmark = True
    tuned = seconds_of(partial(objective.value_and_gradient, photo))
    torch.backends.cudnn.benchmark = False
    yield (
        "512 px: evaluation with cuDNN's search on / off",
        f"{tuned * 1e3:.1f} / {default * 1e3:.1f} ms",
    )


def _evaluate(card: Card, image: torch.Tensor, layers: list[str]) -> None:
    card.fast.record(image, layers).gradient(
        lambda _, responses, total: total.add_(responses, alpha=1e-6)
    )


def batches(card: Card) -> Iterator[Row]:
    """Several pictures of one size in one batch: the network's part of an evaluation."""
    layers = [*FILTERS, "relu4_2"]
    for size in (256, 512) if card.device.type == "cuda" else (128,):
        alone = 0.0
        for count in (1, 2, 4, 8):
            image = torch.rand(count, 3, size * 3 // 4, size, device=card.device)
            seconds = seconds_of(partial(_evaluate, card, image, layers))
            alone = alone or seconds
            yield (
                f"{size} px: batch of {count}, time per picture / alone",
                f"x{seconds / count / alone:.2f}",
            )


def recipe(card: Card) -> Iterator[Row]:
    """The default and neural-style-pt's recipe, at 512 px."""
    size, iterations = (512, 500) if card.device.type == "cuda" else (128, 10)
    inputs = _samples(size)
    other = Peer(card.exact, inputs.content, inputs.styles[0])
    spec = other.spec(size)
    stylize(inputs, spec.model_copy(update={"iterations": 2}), card.fast)  # to warm up
    ours, mine = _time(lambda: stylize(inputs, spec, card.fast).picture)
    theirs, yours = _time(lambda: other.stylize(iterations))
    yield (
        f"{size} px: the default's seconds, delivered loss",
        f"{ours:.1f}, {other.delivered_loss(mine):.2f}",
    )
    yield (
        f"{size} px: neural-style-pt's, {iterations} iterations",
        f"{theirs:.1f}, {other.delivered_loss(yours):.2f}",
    )


def _time(step: Callable[[], Image.Image]) -> tuple[float, Image.Image]:
    began = time.perf_counter()
    picture = step()
    wait()
    return time.perf_counter() - began, picture


def memory(card: Card) -> Iterator[Row]:
    """Peak and planned memory, on a card limited to 12 GB."""
    if card.device.type != "cuda":
        return
    total = torch.cuda.get_device_properties(card.device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, 12e9 / total), card.device)
    planner = Planner(
        card.fast,
        measure_throughput(card.fast),
        int(12e9) - torch.cuda.memory_allocated(card.device),
    )
    for size in (1024, 2048, 4096, 8192):
        try:
            yield _two_iterations(card, planner, size)
        except Exception as error:  # one missing row must not lose the table
            yield f"{size} px", _first_line(error)
    torch.cuda.set_per_process_memory_fraction(1.0, card.device)


def _two_iterations(card: Card, planner: Planner, size: int) -> Row:
    """Measure one size, in its own function: all its memory is freed before the next size."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(card.device)
    inputs, spec = _samples(size), StyleSpec(size=size, scales=1, iterations=12)
    plan = planner.plan(inputs.content.size, [inputs.styles[0].size], inputs.fit_spec(spec))
    planned = plan.scales[-1]
    before = torch.cuda.memory_allocated(card.device)
    photo, objective = inputs.objective(spec, card.fast, planned.route.tile_px)
    route, host = planned.route, torch.device("cpu")
    iterates = LBFGS(
        objective.value_and_gradient,
        photo,
        route.history,
        host if route.history_on_host else None,
        half_pairs=route.half_pairs,
        precondition=precondition,
    )
    next(iterates)
    wait()
    began = time.perf_counter()
    next(iterates)
    wait()
    seconds = time.perf_counter() - began
    peak = torch.cuda.max_memory_allocated(card.device) - before
    memory = f"{peak / 1e9:.2f} / {planned.memory_bytes / 1e9:.2f} GB"
    time_taken = f"{seconds:.2f} / {planned.iteration_seconds:.2f} s"
    return f"{size} px, {planned.route}: measured / planned", f"{memory}; {time_taken}"


def _samples(size: int) -> Pair:
    return pair(SAMPLES / "harbor.jpg", SAMPLES / "strokes.jpg", size)


@click.command()
@click.argument(
    "weights", required=False, type=click.Path(exists=True, dir_okay=False, path_type=Path)
)
@click.option(
    "--device",
    default="cuda",
    help="cuda or mps; cpu runs a small part, to test the command itself.",
)
def main(weights: Path | None, device: str) -> None:
    """Measure a card."""
    if torch.device(device).type == "cuda":
        torch.cuda.set_device(device)  # `wait` and streams then mean this card
    card, began, failed = Card(device, weights), time.monotonic(), False
    name = torch.cuda.get_device_name() if card.device.type == "cuda" else device
    click.echo(
        f"{name}, torch {torch.__version__}, {card.fast.architecture}, "
        f"{'real' if weights else 'random'} weights\n"
    )
    click.echo("| | |\n|---|---|")
    for section in (correctness, number_formats, rates, autotune, batches, memory, recipe):
        if time.monotonic() - began > BUDGET_SECONDS:
            click.echo(f"| {section.__name__} | skipped: the time is up |")
            continue
        try:
            for label, value in section(card):
                click.echo(f"| {label} | {value} |")
                failed |= value.endswith(WRONG)
        except Exception as error:  # a section that fails must not lose the others
            click.echo(f"| {section.__name__} | {_first_line(error)} |")
            failed = True
    if failed:
        sys.exit(1)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:60]}"


if __name__ == "__main__":
    main()
