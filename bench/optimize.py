"""Measures the optimization: speed, quality of the result, and memory. bench/README.md."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice, pairwise
from pathlib import Path

import click
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from bench.peer import Peer
from core.config import Settings
from core.images import codec
from core.neural.transfer import pixels
from core.neural.transfer.inputs import StyleInputs
from core.neural.transfer.objective import Objective
from core.neural.transfer.optimize import LBFGS, Precondition
from core.neural.transfer.planner import Planner
from core.neural.transfer.preconditioner import precondition
from core.neural.transfer.stylize import stylize
from core.neural.vgg import Network, stride
from core.neural.weights.cache import Precision, WeightsCache
from core.style.schedule import Scale, schedule
from core.style.spec import ModelName, StyleSpec, parse_spec

SAMPLES = Path(__file__).parents[1] / "samples"
ROUNDS = 5


class Pair(StyleInputs):
    """A photo and a painting, both scaled to one long side."""

    def objective(
        self, spec: StyleSpec, network: Network, tile_px: int | None = None
    ) -> tuple[Tensor, Objective]:
        """The photo as an image (1, 3, H, W) with its margin, and the objective, at full size."""
        scale = schedule(spec, *self.content.size)[-1]
        target = self.target_at(scale, self.fit_spec(spec), network, tile_px)
        return target.objective.margin.mirror(target.photo), target.objective


def pair(content: Path, style: Path, size: int) -> Pair:
    """Read two files.

    A picture smaller than `size` is enlarged, so that every size can be measured.
    """
    photo, painting = (codec.decode(path.read_bytes()) for path in (content, style))
    return Pair(scale_picture(photo, size), [scale_picture(painting, size)])


def scale_picture(picture: Image.Image, size: int) -> Image.Image:
    """The picture with a long side of `size` px."""
    factor = size / max(picture.size)
    return picture.resize(
        (round(picture.width * factor), round(picture.height * factor)), Image.Resampling.LANCZOS
    )


def seconds_of(step: Callable[[], object], rounds: int = ROUNDS) -> float:
    """The median seconds of some rounds, after one to warm up."""
    return seconds_of_each([step], rounds)[0]


def seconds_of_each(
    steps: Sequence[Callable[[], object]],
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
) -> list[float]:
    """The median seconds of each step, after one round to warm up.

    The steps take turns, so that other programs slow all of them alike.
    """
    seconds = []
    for _ in range(rounds + 1):
        ends = [clock()]
        for step in steps:
            step()
            wait()
            ends.append(clock())
        seconds.append([end - before for before, end in pairwise(ends)])
    return [statistics.median(of_step) for of_step in zip(*seconds[1:], strict=True)]


def wait() -> None:
    """Wait until a device beside the CPU, if there is one, has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()


def floor(network: Network, image: Tensor) -> float:
    """Seconds of the convolutions alone, to relu5_1 and back: a lower bound for this network."""
    return fastest(seconds_of_each(convolution_steps(network, image)))


def fastest(seconds: Sequence[float]) -> float:
    """The sum over the convolutions of the faster way, from the seconds of `convolution_steps`."""
    return sum(map(min, zip(seconds[::2], seconds[1::2], strict=True)))


def convolution_steps(network: Network, image: Tensor) -> list[Callable[[], object]]:
    """Each convolution to relu5_1, and its gradient: by torch's `conv2d`, and as the network does.

    With the network's own kernels a ReLU may be a part of the convolution.
    """
    steps: list[Callable[[], object]] = []
    height, width = image.shape[2:]
    for conv, kernel in zip(network._convolutions, network._kernels, strict=True):
        size = (height // stride(conv.layer), width // stride(conv.layer))
        weight = kernel.weight  # (outputs, inputs, 3, 3)
        back_weight = weight.flip(2, 3).transpose(0, 1).contiguous(memory_format=network.layout)
        ahead, back = (
            torch.rand(1, filters, *size, device=network.device)
            .to(network.dtype)
            .contiguous(memory_format=network.layout)
            for filters in (weight.shape[1], weight.shape[0])
        )
        steps += [
            partial(functional.conv2d, ahead, weight, kernel.bias, padding=1),
            partial(kernel.respond, ahead),
            partial(functional.conv2d, back, back_weight, padding=1),
            partial(kernel.gradient, back),
        ]
        if conv.layer == "relu5_1":
            break
    return steps


@click.group()
def main() -> None:
    """Measure."""


pictures = [
    click.option(
        "--content", type=click.Path(exists=True, path_type=Path), default=SAMPLES / "harbor.jpg"
    ),
    click.option(
        "--style", type=click.Path(exists=True, path_type=Path), default=SAMPLES / "strokes.jpg"
    ),
    click.option("--model", default="vgg19", show_default=True),
]


def with_pictures(command: Callable[..., None]) -> Callable[..., None]:
    """Add the options for the two pictures and the model."""
    for option in pictures:
        command = option(command)
    return command


def _network(model: ModelName, precision: Precision = "auto") -> Network:
    return WeightsCache(Settings().weights_dir).load(model, "auto", precision)


@main.command()
@with_pictures
@click.option("--cpu", is_flag=True, help="CPU time of the main thread: for a busy machine.")
@click.argument("sizes", type=int, nargs=-1)
def speed(
    content: Path, style: Path, model: ModelName, sizes: tuple[int, ...], *, cpu: bool
) -> None:
    """Iterations per second: plain autograd, ours in float32 and as shipped, the lower bound."""
    clock = time.thread_time if cpu else time.perf_counter
    shipped, exact = _network(model), _network(model, "float32")
    click.echo(
        "| px | autograd, float32 | ours, float32 | ours, as shipped | convolutions alone "
        "| share of the bound |"
    )
    click.echo("|---|---|---|---|---|---|")
    for size in sizes or (256, 512, 1024):
        inputs, spec = pair(content, style, size), StyleSpec(size=size, scales=1)
        photo, objective = inputs.objective(spec, shipped)
        _, objective32 = inputs.objective(spec, exact)
        peer = Peer(exact, inputs.content, inputs.styles[0])
        steps: list[Callable[[], object]] = [
            partial(peer.gradient, objective.margin.cut(photo)),
            _iteration(objective32, photo),
            _iteration(objective, photo),
            *convolution_steps(shipped, photo),
        ]
        stock, ours32, ours, *alone = seconds_of_each(steps, 3 if size == 1024 else ROUNDS, clock)
        rates = [1 / seconds for seconds in (stock, ours32, ours, fastest(alone))]
        row = " | ".join(f"{rate:.2f}" for rate in rates)
        click.echo(f"| {size} | {row} | {rates[2] / rates[3]:.0%} |")


def _iteration(objective: Objective, photo: Tensor) -> Callable[[], object]:
    iterates = LBFGS(objective.value_and_gradient, photo, precondition=precondition)
    return lambda: next(iterates)


@main.command()
@with_pictures
@click.option("--size", default=256)
def precision(content: Path, style: Path, model: ModelName, size: int) -> None:
    """Iterations per second in each precision, on this device."""
    inputs, spec = pair(content, style, size), StyleSpec(size=size, scales=1)
    click.echo("| precision | it/s |\n|---|---|")
    for name in ("float32", "bfloat16", "float16"):
        photo, objective = inputs.objective(spec, _network(model, name))
        click.echo(f"| {name} | {1 / seconds_of(_iteration(objective, photo), 3):.2f} |")


@main.command()
@with_pictures
@click.option("--size", default=256)
@click.option("--iterations", default=300)
def recipes(content: Path, style: Path, model: ModelName, size: int, iterations: int) -> None:
    """Seconds and delivered loss of several ways to minimize the default objective."""
    shipped, exact = _network(model), _network(model, "float32")
    inputs = pair(content, style, size)
    one_scale = parse_spec({"size": size, "scales": 1, "iterations": iterations})

    def usual() -> Image.Image:
        photo, objective = inputs.objective(one_scale, shipped)
        return pixels.to_picture(objective.margin.cut(_torch_lbfgs(objective, photo, iterations)))

    def ours(**parameters: object) -> Callable[[], Image.Image]:
        spec = one_scale.model_copy(update=parameters)
        return lambda: stylize(inputs, spec, shipped).picture

    rows: dict[str, Callable[[], Image.Image]] = {
        f"{iterations} it, torch's L-BFGS unbounded, clamped at the end": usual,
        f"{iterations} it, Adam, clamped each step": ours(optimizer="adam"),
        f"{iterations} it, L-BFGS inside [0, 1]": ours(),
        f"{iterations // 3} it, L-BFGS inside [0, 1]": ours(iterations=iterations // 3),
        f"coarse to fine {_ladder(inputs, size)}: the default": ours(scales=0, iterations=0),
    }
    _, reference = inputs.objective(one_scale, exact)
    click.echo("| recipe | seconds | delivered loss |\n|---|---|---|")
    for name, recipe in rows.items():
        began = time.monotonic()
        picture = recipe()
        seconds = time.monotonic() - began
        image = reference.margin.mirror(pixels.to_image(picture)).to(exact.device)
        loss = float(reference(image).total)
        click.echo(f"| {name} | {seconds:.0f} | {loss:.3f} |")


@main.command()
@with_pictures
@click.option("--size", default=128)
def preconditioner(content: Path, style: Path, model: ModelName, size: int) -> None:
    """The loss after some iterations of L-BFGS at one scale, plain and preconditioned."""
    photo, objective = pair(content, style, size).objective(
        parse_spec({"size": size, "scales": 1}), _network(model)
    )
    counts = (4, 8, 12, 20, 30, 45, 70)
    click.echo(f"| | {' | '.join(map(str, counts))} |\n{'|---' * (len(counts) + 1)}|")
    choices: dict[str, Precondition] = {"without": lambda g: g, "with": precondition}
    for name, choice in choices.items():
        iterates = LBFGS(objective.value_and_gradient, photo, precondition=choice)
        totals = [float(losses.total) for _, losses in islice(iterates, counts[-1])]
        click.echo(f"| {name} | {' | '.join(f'{totals[count - 1]:.3f}' for count in counts)} |")


@main.command()
@with_pictures
@click.option("--size", default=256, show_default=True)
def detail(content: Path, style: Path, model: ModelName, size: int) -> None:
    """The loss at the start of the last scale, without and with the detail of the photo."""
    network, inputs = _network(model), pair(content, style, size)
    spec = inputs.fit_spec(parse_spec({"size": size}))
    scales = schedule(spec, *inputs.content.size)
    if len(scales) < 2:
        raise click.BadParameter("a result of this size has one scale", param_hint="--size")
    before, last = scales[-2:]
    coarse = inputs.target_at(before, before.adapt(spec), network, None)
    margin = coarse.objective.margin
    steps = LBFGS(coarse.value_and_gradient, margin.mirror(coarse.photo), precondition=precondition)
    *_, (image, _) = islice(steps, before.iterations)
    image = margin.cut(image)
    fine = inputs.target_at(last, last.adapt(spec), network, None)
    without = pixels.enlarge(image, last.size)
    firsts = {
        "without": without,
        "with": pixels.add_detail(without, fine.photo, image.shape[2:]),
    }
    counts = (0, 1, 2, 3, 5, 7, 10, 15, 20)
    click.echo(f"| | {' | '.join(map(str, counts))} |\n{'|---' * (len(counts) + 1)}|")
    for name, first in firsts.items():
        steps = LBFGS(
            fine.value_and_gradient,
            fine.objective.margin.mirror(first),
            precondition=precondition,
        )
        totals = [float(steps.losses.total)]
        totals += [float(losses.total) for _, losses in islice(steps, counts[-1])]
        click.echo(f"| {name} | {' | '.join(f'{totals[count]:.3f}' for count in counts)} |")


def _torch_lbfgs(objective: Objective, image: Tensor, iterations: int) -> Tensor:
    leaf: Tensor = image.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [leaf], max_iter=iterations, history_size=100, tolerance_change=-1, tolerance_grad=-1
    )

    def closure() -> float:
        losses, leaf.grad = objective.value_and_gradient(leaf.detach())
        return float(losses.total)

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return leaf.detach().clamp(0, 1)


def _ladder(inputs: Pair, size: int) -> str:
    scales: list[Scale] = schedule(StyleSpec(size=size), *inputs.content.size)
    return ", ".join(f"{scale.iterations} at {scale.long_side}" for scale in scales)


@main.command()
@with_pictures
@click.option("--size", default=256)
@click.option("--iterations", default=500)
def peer(content: Path, style: Path, model: ModelName, size: int, iterations: int) -> None:
    """neural-style-pt's recipe and our defaults on the same loss.

    Reports seconds, and the delivered loss in its unit.
    """
    shipped, exact = _network(model), _network(model, "float32")
    inputs = pair(content, style, size)
    other = Peer(exact, inputs.content, inputs.styles[0])
    spec = other.spec(size)
    click.echo("| | seconds | delivered loss |\n|---|---|---|")
    rows: dict[str, Callable[[], Image.Image]] = {
        "ours, default": lambda: stylize(inputs, spec, shipped).picture,
        "ours, one scale, 100 it": lambda: stylize(inputs, _one_scale(spec), shipped).picture,
        f"neural-style-pt's recipe, {iterations} it": lambda: other.stylize(iterations),
    }
    for name, recipe in rows.items():
        began = time.monotonic()
        picture = recipe()
        seconds = time.monotonic() - began
        click.echo(f"| {name} | {seconds:.1f} | {other.delivered_loss(picture):.2f} |")


def _one_scale(spec: StyleSpec) -> StyleSpec:
    return spec.model_copy(update={"scales": 1, "iterations": 100})


@main.command()
@with_pictures
@click.option("--size", default=256)
def strength(content: Path, style: Path, model: ModelName, size: int) -> None:
    """The content distance of the result at five strengths: are the steps even?

    The distance is sum (F - P)^2 / sum P^2.
    """
    network, inputs = _network(model), pair(content, style, size)
    click.echo("| strength | content distance |\n|---|---|")
    for value in (0, 0.25, 0.5, 0.75, 1):
        result = stylize(inputs, StyleSpec(size=size, strength=value), network)
        click.echo(f"| {value} | {result.losses['content']:.2f} |")


@main.command()
@with_pictures
@click.option("--size", default=1024)
def tiled(content: Path, style: Path, model: ModelName, size: int) -> None:
    """Error and cost of tiles, compared with the whole picture."""
    click.echo(
        "| tile px | gradient's relative difference, float32 | time, as shipped |\n|---|---|---|"
    )
    inputs, spec = pair(content, style, size), StyleSpec(size=size, scales=1)
    shipped, exact = _network(model), _network(model, "float32")
    whole = whole_seconds = None
    for side in (None, 1024, 512, 256):
        if side is not None and side >= size:
            continue
        photo, objective = inputs.objective(spec, exact, side)
        gradient = objective.value_and_gradient(photo.flip(3))[1]
        whole = gradient if whole is None else whole
        _, fast = inputs.objective(spec, shipped, side)
        seconds = seconds_of(partial(fast.value_and_gradient, photo), 3)
        whole_seconds = seconds if whole_seconds is None else whole_seconds
        difference = float((gradient - whole).norm() / whole.norm())
        click.echo(f"| {side or 'whole'} | {difference:.1e} | x{seconds / whole_seconds:.2f} |")


@main.command()
@with_pictures
@click.option("--limit-gb", default=0.0, help="Memory that the plan may use; 0: what is free.")
@click.argument("sizes", type=int, nargs=-1)
def memory(
    content: Path, style: Path, model: ModelName, limit_gb: float, sizes: tuple[int, ...]
) -> None:
    """The peak resident memory of two iterations at the last scale, and the planned memory.

    Each run has its own process.
    """
    click.echo(
        "| px | limit, GB | route | planned, GB | resident before, GB | peak resident, GB "
        "| s/iteration |"
    )
    click.echo("|---|---|---|---|---|---|---|")
    for size in sizes or (512, 1024, 2048):
        arguments = [str(content), str(style), model, str(limit_gb), str(size)]
        subprocess.run([sys.executable, __file__, "one-run", *arguments], check=True)


@main.command(hidden=True)
@click.argument("content", type=Path)
@click.argument("style", type=Path)
@click.argument("model")
@click.argument("limit_gb", type=float)
@click.argument("size", type=int)
def one_run(content: Path, style: Path, model: ModelName, limit_gb: float, size: int) -> None:
    """One row of `memory`."""
    network = WeightsCache(Settings().weights_dir).load(model, "cpu", "auto")
    inputs = pair(content, style, size)
    spec = parse_spec({"size": size})
    before, planner = _resident("VmRSS"), Planner(network, free_bytes=int(limit_gb * 1e9) or None)
    planned = planner.plan(inputs.content.size, [inputs.styles[0].size], spec).scales[-1]
    spec = planned.scale.adapt(inputs.fit_spec(spec))
    target = inputs.target_at(planned.scale, spec, network, planned.route.tile_px)
    objective = target.objective
    began = time.monotonic()
    kept = planned.route
    steps = LBFGS(
        objective.value_and_gradient,
        objective.margin.mirror(target.photo),
        kept.history,
        half_pairs=kept.half_pairs,
        precondition=precondition,
    )
    list(islice(steps, 2))
    seconds = (time.monotonic() - began) / 3
    rounded = " in bfloat16" if kept.half_pairs else ""
    route = f"{kept.tile_px or 'whole'}, {kept.history} pairs{rounded}"
    size_px = f"{planned.scale.width} x {planned.scale.height}"
    gigabytes = f"{planned.memory_bytes / 1e9:.2f} | {before:.2f} | {_resident('VmHWM'):.2f}"
    click.echo(f"| {size_px} | {limit_gb or 'free'} | {route} | {gigabytes} | {seconds:.1f} |")


def _resident(field: str) -> float:
    """A field of /proc/self/status, in GB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) * 1024 / 1e9


if __name__ == "__main__":
    main()
