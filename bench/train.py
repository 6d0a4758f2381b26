"""Which networks begin to learn, what a painting owes to that, and what two processes cost. bench/README.md."""

import csv
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import product
from pathlib import Path
from typing import Any

import click
import torch
from torch.nn.parallel import DistributedDataParallel

from core.images import codec
from core.neural.training import artifacts
from core.neural.training.classifier import Classifier
from core.neural.training.distributed import ProcessGroup, join_process_group
from core.neural.training.trainer import TrainerOptions, train
from core.neural.transfer.inputs import StyleInputs
from core.neural.transfer.stylize import stylize
from core.neural.weights.cache import WeightsCache
from core.style.spec import parse_spec
from core.training.config import TrainingConfig

SAMPLES = Path(__file__).parents[1] / "samples"
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # for each of two processes on two cores
SMALL = TrainingConfig(width=0.25, hidden=256, crop_px=65, batch=32, dropout=0.0, epochs=2)
BEGINNINGS: dict[str, dict[str, object]] = {
    "he": {"init": "he"},
    "gaussian": {"init": "gaussian"},
    "batch norm": {"init": "he", "batch_norm": True},
}


@click.group()
def main() -> None:
    """Training, measured."""


def run(dataset: Path, place: Path, recipe: TrainingConfig, begin_with: Path | None = None) -> None:
    """Train, and tell it in a row of the table."""
    train(
        dataset,
        place,
        recipe,
        ProcessGroup(),
        TrainerOptions(workers=1, checkpoint_seconds=1e9, log_steps=1),
        start=begin_with,
    )
    with (place / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["loss"]) for row in rows if row["loss"]]
    best = max(float(row["validation_top1"] or 0) for row in rows)
    first, last = sum(losses[:10]) / 10, sum(losses[-10:]) / 10
    click.echo(f"| {place.name} | {len(losses)} | {first:.3f} | {last:.3f} | {100 * best:.1f} % |")


@main.command()
@click.argument("dataset", type=click.Path(exists=True, path_type=Path))
@click.option("--epochs", default=2, show_default=True)
@click.option(
    "--shallow-epochs",
    default=20,
    show_default=True,
    help="Of the VGG-11 that others begin with; 0: none.",
)
@click.option("--learning-rate", default=0.01, show_default=True)
@click.option(
    "--depth",
    "depths",
    multiple=True,
    default=["vgg11", "vgg13", "vgg16", "vgg19"],
    show_default=True,
)
@click.option("--from", "beginnings", multiple=True, default=list(BEGINNINGS), show_default=True)
def start(
    *,
    dataset: Path,
    epochs: int,
    shallow_epochs: int,
    learning_rate: float,
    depths: tuple[str, ...],
    beginnings: tuple[str, ...],
) -> None:
    """Short runs of each depth from each beginning: the loss at first and at last. A guess gives ln(classes).

    The deeper ones also as in the paper: but for some layers, which are those of a VGG-11 that has learnt.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)

        def recipe(**changes: object) -> TrainingConfig:
            return SMALL.model_copy(
                update={"epochs": epochs, "learning_rate": learning_rate, **changes}
            )

        click.echo(
            "| | steps | loss, first 10 steps | last 10 | best validation top-1 |\n|---|---|---|---|---|"
        )
        for depth in depths:
            for words in beginnings:
                run(
                    dataset,
                    folder / f"{depth}, {words}",
                    recipe(architecture=depth, **BEGINNINGS[words]),
                )
        if shallow_epochs:
            shallow = folder / "vgg11 to begin with"
            run(
                dataset,
                shallow,
                recipe(architecture="vgg11", epochs=shallow_epochs, schedule="cosine"),
            )
            plain = [words for words in beginnings if words != "batch norm"]
            for depth, words in product((depth for depth in depths if depth != "vgg11"), plain):
                place = folder / f"{depth}, {words} after vgg11"
                run(
                    dataset,
                    place,
                    recipe(architecture=depth, init=words),
                    shallow / "whole.safetensors",
                )


@main.command()
@click.argument("run", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("out", type=click.Path(file_okay=False, path_type=Path))
@click.option("--size", default="256", show_default=True)
@click.option("--iterations", default="100", show_default=True)
@click.option(
    "--content", type=click.Path(exists=True, path_type=Path), default=SAMPLES / "harbor.jpg"
)
@click.option(
    "--style", type=click.Path(exists=True, path_type=Path), default=SAMPLES / "strokes.jpg"
)
def paint(*, run: Path, out: Path, size: str, iterations: str, content: Path, style: Path) -> None:
    """Paint with the network of a run, and with one of the same shape that has learnt nothing: two pictures."""
    out.mkdir(parents=True, exist_ok=True)
    about = artifacts.load(run / "checkpoint.pt").about
    model_name: Any = about.recipe.architecture
    spec = parse_spec({"size": size, "iterations": iterations, "model": model_name})
    subject = StyleInputs(codec.decode(content.read_bytes()), [codec.decode(style.read_bytes())])
    with tempfile.TemporaryDirectory() as temporary:
        for name in ("trained", "random"):
            folder = Path(temporary) / name
            folder.mkdir()
            if name == "trained":
                shutil.copy(run / "network.safetensors", folder)
            else:
                torch.manual_seed(0)
                model = Classifier(about.recipe, len(about.classes))
                model.begin("he")
                artifacts.publish(folder, model, about, 0, None)
            cache = WeightsCache(folder)
            cache.import_file(model_name, folder / "network.safetensors")
            painting = stylize(subject, spec, cache.load(model_name, "auto", "auto"))
            (out / f"{name}.png").write_bytes(codec.encode(painting.picture))
            click.echo(out / f"{name}.png")


@main.command()
@click.option("--rounds", default=20, show_default=True)
@click.option("--steps", default=10, show_default=True)
@click.option("--size", "crop_px", default=65, show_default=True, help="Of a picture, in px.")
def together(*, rounds: int, steps: int, crop_px: int) -> None:
    """Two processes on this CPU, by our mean of the gradients and by torch's DistributedDataParallel, in turns.

    What a step of VGG-11 takes, and how many runs end as they should.
    """
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        __file__,
        "pair",
    ]
    found: dict[str, list[float]] = {"ours": [], "ddp": []}
    badly = dict.fromkeys(found, 0)
    for _, way in product(range(rounds), found):
        options = [f"--way={way}", f"--steps={steps}", f"--size={crop_px}"]
        environment = {**os.environ, **ONE_THREAD}
        ran = subprocess.run(
            [*launch, *options], check=False, capture_output=True, text=True, env=environment
        )
        badly[way] += ran.returncode != 0
        found[way] += [float(line) for line in ran.stdout.split()]
    click.echo("| | ms a step, median | runs that ended badly |\n|---|---|---|")
    for way, seconds in found.items():
        click.echo(
            f"| {way} | {1000 * statistics.median(seconds):.1f} | {badly[way]} of {rounds} |"
        )


@main.command(hidden=True)
@click.option("--way", required=True)
@click.option("--steps", type=int, required=True)
@click.option("--size", "crop_px", type=int, required=True)
def pair(*, way: str, steps: int, crop_px: int) -> None:
    """One of the two: the seconds of each step but the first."""
    recipe = SMALL.model_copy(update={"architecture": "vgg11", "crop_px": crop_px})
    with join_process_group("cpu") as team:
        plain = Classifier(recipe, 10)
        model = DistributedDataParallel(plain) if way == "ddp" else plain
        optimizer = torch.optim.SGD(plain.parameters(), lr=0.01)
        for step in range(steps + 1):
            began = time.perf_counter()
            optimizer.zero_grad()
            model(torch.rand(8, 3, crop_px, crop_px)).square().mean().backward()  # (N, C, H, W)
            if way == "ours":
                team.average(plain)
            optimizer.step()
            if team.leads and step:
                click.echo(time.perf_counter() - began)


if __name__ == "__main__":
    main()
