"""How fast the optimisation is, and how good the picture that comes out: `speed` and `recipes`. bench/README.md."""

import statistics
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import click
import torch
from PIL import Image
from torch import Tensor

from core import images
from core.neural import pixels
from core.neural.losses import Objective
from core.neural.optimize import OPTIMIZERS
from core.neural.schedule import Scale, schedule
from core.neural.stylize import stylize, targets
from core.neural.vgg import Network
from core.neural.weights import Precision, WeightsCache
from core.settings import Settings
from core.spec import ModelName, StyleSpec, parse_spec

SAMPLES = Path(__file__).parents[1] / "samples"
ROUNDS = 3
PRECISIONS: tuple[Precision, ...] = ("float32", "auto")


class Pair:
    """A photo and a painting, both scaled to one long side."""

    def __init__(self, content: Path, style: Path, size: int) -> None:
        self.content, self.style = (
            images.thumbnail(images.decode(path.read_bytes()), size) for path in (content, style)
        )

    def objective(self, spec: StyleSpec, network: Network) -> tuple[Tensor, Objective]:
        """At full size."""
        scale = schedule(spec, *self.content.size)[-1]
        return targets(self.content, [self.style], spec.for_styles(1), network, scale)


def delivered(pair: Pair, spec: StyleSpec, exact: Network, picture: Image.Image) -> float:
    """The loss of an 8-bit picture, in float32."""
    _, objective = pair.objective(spec, exact)
    with torch.no_grad():
        return float(objective(pixels.to_image(picture)).total)


def torch_lbfgs(objective: Objective, image: Tensor, iterations: int) -> Tensor:
    """The usual way: torch's L-BFGS, unbounded, clamped at the end."""
    leaf = image.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([leaf], max_iter=iterations, history_size=100, tolerance_change=-1, tolerance_grad=-1)

    def closure() -> float:
        losses, leaf.grad = objective.with_gradient(leaf)
        return float(losses.total)

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return leaf.detach().clamp(0, 1)


def _rate(iterates: Iterator[object], count: int) -> float:
    """Iterations per second, after two to warm up."""
    list(islice(iterates, 2))
    began = time.monotonic()
    list(islice(iterates, count))
    return count / (time.monotonic() - began)


@click.group()
def main() -> None:
    """Measure."""


pictures = [
    click.option("--content", type=click.Path(exists=True, path_type=Path), default=SAMPLES / "harbor.jpg"),
    click.option("--style", type=click.Path(exists=True, path_type=Path), default=SAMPLES / "strokes.jpg"),
    click.option("--model", type=click.Choice(["vgg16", "vgg19"]), default="vgg16"),
]


def with_pictures(command: Callable[..., None]) -> Callable[..., None]:
    """The options that both commands have."""
    for option in pictures:
        command = option(command)
    return command


@main.command()
@with_pictures
def speed(content: Path, style: Path, model: ModelName) -> None:
    """Iterations per second of L-BFGS."""
    cache = WeightsCache(Settings().weights_dir)
    networks = {precision: cache.load(model, "auto", precision) for precision in PRECISIONS}
    click.echo(f"| size | precision | it/s (median of {ROUNDS}) |\n|---|---|---|")
    for size in (256, 512):
        pair, spec = Pair(content, style, size), StyleSpec(size=size, scales=1)
        runs = {}
        for precision, network in networks.items():
            photo, objective = pair.objective(spec, network)
            runs[precision] = OPTIMIZERS["lbfgs"](objective.with_gradient, photo)
        rates: dict[Precision, list[float]] = {precision: [] for precision in runs}
        for _ in range(ROUNDS):  # in turns, so that a slow minute of the machine falls on both
            for precision, iterates in runs.items():
                rates[precision].append(_rate(iterates, 12 if size == 256 else 5))
        for precision, found in rates.items():
            dtype = str(networks[precision].dtype).removeprefix("torch.")
            click.echo(f"| {size} | {precision} ({dtype}) | {statistics.median(found):.2f} |")


@main.command()
@with_pictures
@click.option("--size", default=256)
@click.option("--style-weight", default=100.0)
def recipes(content: Path, style: Path, model: ModelName, size: int, style_weight: float) -> None:
    """Seconds and delivered loss."""
    cache = WeightsCache(Settings().weights_dir)
    shipped, exact = cache.load(model, "auto", "auto"), cache.load(model, "auto", "float32")
    pair = Pair(content, style, size)
    one = parse_spec({"size": size, "style_weight": style_weight, "scales": 1, "iterations": 300})

    def usual() -> Image.Image:
        photo, objective = pair.objective(one, shipped)
        return pixels.to_picture(torch_lbfgs(objective, photo, 300))

    def ours(**knobs: object) -> Callable[[], Image.Image]:
        spec = one.model_copy(update=knobs)
        return lambda: stylize(pair.content, [pair.style], spec, shipped).picture

    rows: dict[str, Callable[[], Image.Image]] = {
        "300 it, torch's L-BFGS unbounded, clamped at the end": usual,
        "300 it, Adam, clamped each step": ours(optimizer="adam"),
        "300 it, L-BFGS inside [0, 1]": ours(),
        f"coarse to fine {_ladder(pair, size)}: the default": ours(scales=0, iterations=100),
    }
    click.echo("| recipe | seconds | delivered loss |\n|---|---|---|")
    for name, recipe in rows.items():
        began = time.monotonic()
        picture = recipe()
        seconds = time.monotonic() - began
        click.echo(f"| {name} | {seconds:.0f} | {delivered(pair, one, exact, picture):.3f} |")


def _ladder(pair: Pair, size: int) -> str:
    scales: list[Scale] = schedule(StyleSpec(size=size), *pair.content.size)
    return ", ".join(f"{scale.iterations} at {scale.long_side}" for scale in scales)


if __name__ == "__main__":
    main()
