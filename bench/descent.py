"""Random runs: does any end worse than it began? bench/README.md."""

import random
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from math import isnan
from pathlib import Path
from typing import Any

import click
import torch
from PIL import Image
from torch import Tensor

from bench.panel import GALLERY
from core import errors
from core.config import Settings
from core.images import codec
from core.neural.transfer import inputs as inputs_module
from core.neural.transfer import pixels
from core.neural.transfer.inputs import StyleInputs
from core.neural.transfer.objective import Losses, Objective
from core.neural.transfer.stylize import Control, StepEvent, stylize
from core.neural.vgg import Network
from core.neural.weights.cache import WeightsCache
from core.style.spec import STYLE_WEIGHT, StyleSpec, parse_spec

PRECISIONS = ("bfloat16", "bfloat16", "float32")  # each run takes one at random
MAX_CHAIN = 10  # times that a result is painted again
STYLE_LAYERS = ("relu1_1", "relu1_2", "relu2_1", "relu3_1", "relu4_1", "relu5_1")


@dataclass
class Run:
    """What happened in one run: the losses of all evaluations, with the number of values."""

    seed: int
    spec: StyleSpec
    is_repaint: bool  # whether the photo is the result of an earlier run
    losses: list[tuple[int, float]] = field(default_factory=list)  # values of the image, total
    # Of the first image, or of the image at the spec update. If the result is above it and that
    # image was coarser: of that image at the last size.
    start: float = float("nan")
    final: float = float("nan")  # of the result, before it is rounded to 8 bits
    end: str = "succeeded"
    updates: int = 0

    @property
    def best(self) -> float:
        """The lowest loss at the last size, since the last spec update."""
        return min(loss for count, loss in self.losses if count == self.losses[-1][0])

    @property
    def rejected(self) -> int:
        """Evaluations whose loss was above the lowest before, at the same size."""
        rejected, lowest, newest = 0, float("inf"), 0
        for count, loss in self.losses:
            if count != newest:
                lowest, newest = float("inf"), count
            rejected += not loss <= lowest
            lowest = min(loss, lowest)
        return rejected

    @property
    def is_worse(self) -> bool:
        """Whether the run ended above its start, or far above its own best."""
        return not (self.final <= self.start and self.final <= 1.05 * self.best)


def random_parameters(generator: random.Random) -> dict[str, Any]:
    """A random spec: most parameters have their defaults in most runs."""
    spec: dict[str, Any] = {
        "size": generator.choice([64, 64, 80, 96, 96, 112, 128, 128, 160, 256]),
        "strength": generator.choice([0.5, 0.5, generator.random()]),
        "quality": "draft",
    }
    if generator.random() < 0.3:
        layers = generator.sample(STYLE_LAYERS, generator.randint(1, 5))
        spec["style_layers"] = {layer: 10 ** generator.uniform(-1, 1) for layer in layers}
    if generator.random() < 0.2:
        spec["content_layers"] = generator.choice(["relu2_2", "relu3_1", "relu4_1", "relu5_1"])
    if generator.random() < 0.2:
        spec["pooling"] = generator.choice(["average", "max"])
    if generator.random() < 0.15:
        spec["optimizer"] = "adam"
    if generator.random() < 0.15:
        spec |= {"objective": "gatys", "style_weight": 10 ** generator.uniform(-2, 4)}
    if generator.random() < 0.2:
        spec["init"] = generator.choice(["noise", "style"])
        spec["seed"] = generator.randrange(1000)
    if generator.random() < 0.2:
        spec["tv_weight"] = generator.choice([1, 10, 100])
    if generator.random() < 0.1:
        spec["content_weight"] = 0
    if generator.random() < 0.3:
        spec["iterations"] = generator.randint(5, 40)
    return spec


class _Watched(Objective):
    """An objective that records the loss of each evaluation."""

    run: Run
    newest: Objective
    start: Tensor  # the image of run.start

    def value_and_gradient(self, image: Tensor) -> tuple[Losses, Tensor]:
        losses, gradient = super().value_and_gradient(image)
        total = float(losses.total)
        _Watched.run.losses.append((image.numel(), total))
        _Watched.newest = self
        if isnan(_Watched.run.start):  # NaN: there is none yet
            _Watched.run.start = total
            _Watched.start = self.margin.cut(image).clone()
        return losses, gradient


def paint(
    run: Run, inputs: StyleInputs, network: Network, generator: random.Random
) -> Image.Image | None:
    """Paint, with a spec update in every third run. Fills the record; returns the picture."""
    _Watched.run = run
    update_at = generator.randint(1, 60) if generator.random() < 1 / 3 else 0
    weights = {
        "strength": generator.random(),
        "style_weight": STYLE_WEIGHT * 10 ** generator.uniform(-2, 2),
    }

    def on_progress(event: StepEvent) -> Control:
        if event.progress.iteration != update_at or run.updates or not event.spec.style_weight:
            return Control.CONTINUE
        run.updates, run.start = 1, float("nan")
        run.losses = []
        return Control(spec=event.spec.with_updates(weights))

    try:
        result = stylize(inputs, run.spec, network, on_progress)
    except errors.Diverged as error:
        run.end = "diverged"
        return error.picture
    run.final = result.losses["total"]
    if not run.losses or isnan(run.start):  # updated after the last iteration
        run.start = run.final
        run.losses = [(0, run.final)]
    size = result.plan.scales[-1].scale.size
    if run.final > run.start and _Watched.start.shape[:1:-1] != size:
        # Losses of two sizes cannot be compared: the one at the last size decides.
        enlarged = _Watched.newest.margin.mirror(pixels.enlarge(_Watched.start, size))
        run.start = _Watched.newest(enlarged).by_name()["total"]
    return result.picture


def run_chain(folder: Path, seed: int) -> list[Run]:
    """A run, and often the runs that paint its result again."""
    vars(inputs_module)["Objective"] = _Watched
    torch.set_num_threads(1)
    generator = random.Random(seed)  # noqa: S311 - no secret
    pictures = sorted([*folder.glob("*.jpg"), *folder.glob("*.png")])
    photo, painting = (codec.decode(generator.choice(pictures).read_bytes()) for _ in range(2))
    network = _load(generator.choice(PRECISIONS))
    runs: list[Run] = []
    length = generator.choice([1, 1, 1, 2, 3, MAX_CHAIN])
    parameters = random_parameters(generator)
    for _ in range(length):
        if runs and generator.random() < 0.5:  # the chain goes on with other parameters
            parameters = {**random_parameters(generator), "size": parameters["size"]}
        inputs, spec = StyleInputs(photo, [painting]), parse_spec(parameters)
        if runs and generator.random() < 0.3:
            inputs = StyleInputs(photo, [painting], init=photo)
            spec = parse_spec({**parameters, "init": "picture"})
        run = Run(seed, spec, is_repaint=bool(runs))
        picture = paint(run, inputs, network, generator)
        runs.append(run)
        if picture is None:
            break
        photo = picture
    return runs


_NETWORKS: dict[str, Network] = {}


def _load(precision: Any) -> Network:
    if precision not in _NETWORKS:
        _NETWORKS[precision] = WeightsCache(Settings().weights_dir).load("auto", "cpu", precision)
    return _NETWORKS[precision]


@click.command()
@click.option("--runs", "wanted", default=2000, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--processes", default=2, show_default=True)
@click.option("--minutes", default=float("inf"), help="Stop after this time.")
@click.option(
    "--pictures",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    default=GALLERY,
    help="A folder of pictures.  [default: the gallery of the page]",
)
def main(wanted: int, seed: int, processes: int, minutes: float, pictures: Path) -> None:
    """Paint random pairs with random parameters; report every run that ends worse than it began."""
    runs: list[Run] = []
    end = time.monotonic() + 60 * minutes
    for chain in _chains(pictures, seed, processes):
        for run in chain:
            runs.append(run)
            if run.end != "succeeded" or run.is_worse:
                changed = run.spec.model_dump(exclude_defaults=True)
                click.echo(
                    f"seed {run.seed}: {run.end}, start {run.start:.4g}, best {run.best:.4g}, "
                    f"final {run.final:.4g}, updates {run.updates}, {changed}"
                )
        if len(runs) >= wanted or time.monotonic() > end:
            break
        if len(runs) % 100 < len(chain):
            click.echo(f"{len(runs)} runs", err=True)
    click.echo("| | runs | with an update | diverged | worse | evaluations | rejected |")
    click.echo("|---|---|---|---|---|---|---|")
    click.echo(_row("of a photo", [run for run in runs if not run.is_repaint]))
    click.echo(_row("of a result", [run for run in runs if run.is_repaint]))


def _row(title: str, runs: list[Run]) -> str:
    ended = [run for run in runs if run.end == "succeeded"]
    measured = [run for run in ended if run.spec.optimizer == "lbfgs"]
    evaluations = sum(len(run.losses) for run in measured)
    rejected = sum(run.rejected for run in measured)
    return (
        f"| {title} | {len(runs)} | {sum(run.updates for run in runs)} "
        f"| {len(runs) - len(ended)} | {sum(run.is_worse for run in ended)} "
        f"| {evaluations} | {rejected} ({rejected / max(1, evaluations):.1%}) |"
    )


def _chains(pictures: Path, seed: int, processes: int) -> Iterator[list[Run]]:
    """Chains of runs, without end."""
    with ProcessPoolExecutor(processes) as pool:
        for first in range(seed * 1_000_000, (seed + 1) * 1_000_000, 2 * processes):
            numbers = range(first, first + 2 * processes)
            yield from pool.map(partial(run_chain, pictures), numbers)


if __name__ == "__main__":
    main()
