"""Measures which networks start to learn, how training changes a style transfer, and two processes.

bench/README.md.
"""

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
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # two processes share two cores
SMALL_CONFIG = TrainingConfig(width=0.25, hidden=256, crop_px=65, batch=32, dropout=0.0, epochs=2)
INITIALIZATIONS: dict[str, dict[str, object]] = {
    "he": {"init": "he"},
    "gaussian": {"init": "gaussian"},
    "batch norm": {"init": "he", "batch_norm": True},
}


@click.group()
def main() -> None:
    """Measure training."""


def train_and_print(
    dataset: Path, folder: Path, config: TrainingConfig, start: Path | None = None
) -> None:
    """Train one network, and print a row of the table."""
    options = TrainerOptions(workers=1, checkpoint_seconds=1e9, log_steps=1)
    train(dataset, folder, config, ProcessGroup(), options, start=start)
    with (folder / "log.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["loss"]) for row in rows if row["loss"]]
    best = max(float(row["validation_top1"] or 0) for row in rows)
    first, last = sum(losses[:10]) / 10, sum(losses[-10:]) / 10
    click.echo(f"| {folder.name} | {len(losses)} | {first:.3f} | {last:.3f} | {100 * best:.1f} % |")


@main.command()
@click.argument("dataset", type=click.Path(exists=True, path_type=Path))
@click.option("--epochs", default=2, show_default=True)
@click.option(
    "--shallow-epochs",
    default=20,
    show_default=True,
    help="Epochs of the VGG-11 whose layers the deeper networks start with; 0: none.",
)
@click.option("--learning-rate", default=0.01, show_default=True)
@click.option(
    "--depth",
    "depths",
    multiple=True,
    default=["vgg11", "vgg13", "vgg16", "vgg19"],
    show_default=True,
)
@click.option(
    "--from", "initializations", multiple=True, default=list(INITIALIZATIONS), show_default=True
)
def start(
    *,
    dataset: Path,
    epochs: int,
    shallow_epochs: int,
    learning_rate: float,
    depths: tuple[str, ...],
    initializations: tuple[str, ...],
) -> None:
    """Short runs of each depth with each initialization: the first and the last losses.

    A random guess has a loss of ln(classes). The deeper networks also start as in the paper, with
    some layers of a trained VGG-11.
    """
    base = SMALL_CONFIG.model_copy(update={"epochs": epochs, "learning_rate": learning_rate})
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        click.echo(
            "| | steps | loss, first 10 steps | last 10 | best validation top-1 |\n"
            "|---|---|---|---|---|"
        )
        for depth, name in product(depths, initializations):
            config = base.model_copy(update={"architecture": depth, **INITIALIZATIONS[name]})
            train_and_print(dataset, folder / f"{depth}, {name}", config)
        if not shallow_epochs:
            return
        shallow = folder / "vgg11 to start with"
        changes = {"architecture": "vgg11", "epochs": shallow_epochs, "schedule": "cosine"}
        train_and_print(dataset, shallow, base.model_copy(update=changes))
        # The paper's VGG-11 has no batch normalization, so its layers fit only networks without.
        plain = [name for name in initializations if name != "batch norm"]
        for depth, name in product((depth for depth in depths if depth != "vgg11"), plain):
            train_and_print(
                dataset,
                folder / f"{depth}, {name} after vgg11",
                base.model_copy(update={"architecture": depth, "init": name}),
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
    """Stylize with a run's network, and with a random network of the same shape: two pictures."""
    out.mkdir(parents=True, exist_ok=True)
    info = artifacts.load_checkpoint(run / "checkpoint.pt").info
    model_name: Any = info.config.architecture
    spec = parse_spec({"size": size, "iterations": iterations, "model": model_name})
    inputs = StyleInputs(codec.decode(content.read_bytes()), [codec.decode(style.read_bytes())])
    with tempfile.TemporaryDirectory() as temporary:
        for name in ("trained", "random"):
            folder = Path(temporary) / name
            folder.mkdir()
            if name == "trained":
                shutil.copy(run / "network.safetensors", folder)
            else:
                torch.manual_seed(0)
                model = Classifier(info.config, len(info.classes))
                model.initialize("he")
                artifacts.publish(folder, model, info, 0, None)
            cache = WeightsCache(folder)
            cache.import_file(model_name, folder / "network.safetensors")
            result = stylize(inputs, spec, cache.load(model_name, "auto", "auto"))
            (out / f"{name}.png").write_bytes(codec.encode(result.picture))
            click.echo(out / f"{name}.png")


@main.command()
@click.option("--rounds", default=20, show_default=True)
@click.option("--steps", default=10, show_default=True)
@click.option("--size", "crop_px", default=65, show_default=True, help="Side of an image, in px.")
def together(*, rounds: int, steps: int, crop_px: int) -> None:
    """Compare two ways to average gradients between two processes on this CPU, in turns.

    Ours (ProcessGroup.average_gradients) and torch's DistributedDataParallel: milliseconds for a
    step of VGG-11, and how many runs fail.
    """
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launch += ["--nproc-per-node=2", __file__, "pair"]
    seconds: dict[str, list[float]] = {"ours": [], "ddp": []}
    failures = dict.fromkeys(seconds, 0)
    for _, method in product(range(rounds), seconds):
        options = [f"--method={method}", f"--steps={steps}", f"--size={crop_px}"]
        environment = {**os.environ, **ONE_THREAD}
        result = subprocess.run(
            [*launch, *options], check=False, capture_output=True, text=True, env=environment
        )
        failures[method] += result.returncode != 0
        seconds[method] += [float(line) for line in result.stdout.split()]
    click.echo("| | ms a step, median | failed runs |\n|---|---|---|")
    for method, values in seconds.items():
        milliseconds = 1000 * statistics.median(values)
        click.echo(f"| {method} | {milliseconds:.1f} | {failures[method]} of {rounds} |")


@main.command(hidden=True)
@click.option("--method", required=True)
@click.option("--steps", type=int, required=True)
@click.option("--size", "crop_px", type=int, required=True)
def pair(*, method: str, steps: int, crop_px: int) -> None:
    """One of the two processes: prints the seconds of each step except the first."""
    config = SMALL_CONFIG.model_copy(update={"architecture": "vgg11", "crop_px": crop_px})
    with join_process_group("cpu") as group:
        plain = Classifier(config, 10)
        model = DistributedDataParallel(plain) if method == "ddp" else plain
        optimizer = torch.optim.SGD(plain.parameters(), lr=0.01)
        for step in range(steps + 1):
            started_at = time.perf_counter()
            optimizer.zero_grad()
            model(torch.rand(8, 3, crop_px, crop_px)).square().mean().backward()  # (N, C, H, W)
            if method == "ours":
                group.average_gradients(plain)
            optimizer.step()
            if group.is_main and step:
                click.echo(time.perf_counter() - started_at)


if __name__ == "__main__":
    main()
