"""Rates of building and reading a data set, compared with torchvision's ImageFolder, and memory.

See bench/README.md.
"""

import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from core.neural.training.data import TrainingImages
from core.neural.weights.torchvision_registry import import_torchvision
from core.training.config import TrainingConfig
from core.training.dataset import STORES, Dataset
from core.training.dataset_builder import BuildOptions, BuildProgress, build

HARBOR = Path(__file__).parents[1] / "samples" / "harbor.jpg"


def write_samples(folder: Path, count: int) -> None:
    """Write crops of the sample photo, as large as photos in data sets are: 500 × 375 px, JPEG."""
    random = np.random.default_rng(0)
    with Image.open(HARBOR) as photo:
        for number in range(count):
            left = int(random.integers(0, photo.width - 500))
            top = int(random.integers(0, photo.height - 375))
            file = folder / "source" / f"class{number % 10}" / f"{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            photo.crop((left, top, left + 500, top + 375)).save(file, quality=92)


def measure_rate(iterate: Callable[[], Iterable[Any]]) -> float:
    """Return items per second of CPU time, in one process and one thread."""
    began, count = time.process_time(), 0
    for _ in iterate():
        count += 1
    return count / (time.process_time() - began)


def read_dataset(dataset: Dataset, config: TrainingConfig) -> Iterable[Any]:
    """Iterate over the training pictures in random order, each cropped and flipped."""
    views = TrainingImages(dataset, "train", config)
    return (views[0, index] for index in torch.randperm(dataset.count("train")).tolist())


def read_image_folder(folder: Path, config: TrainingConfig) -> Iterable[Any]:
    """Do the same from the files: each is decoded and scaled again in every epoch."""
    v2 = import_torchvision("transforms.v2")
    steps = [v2.PILToTensor(), v2.Resize((256, 256), antialias=True), v2.RandomCrop(config.crop_px)]
    images = import_torchvision("datasets").ImageFolder(
        folder, v2.Compose([*steps, v2.RandomHorizontalFlip()])
    )
    return (images[index] for index in torch.randperm(len(images)).tolist())


@click.group()
def main() -> None:
    """Measure data sets."""


@main.command()
@click.option("--count", default=1000, show_default=True, help="Pictures.")
@click.option("--jobs", default=0, help="Decoding processes; 0: one per core.")
def rates(count: int, jobs: int) -> None:
    """Build in both stores, then read with one process. Compare only rates of one run."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder, config = Path(temporary), TrainingConfig()
        write_samples(folder, count)
        click.echo(
            "| | built, pictures/s | read, views/s of CPU time | KB a picture |\n|---|---|---|---|"
        )
        for store in STORES:
            out = folder / store
            began = time.perf_counter()
            build(folder / "source", out, BuildOptions(store=store, validation=0), jobs)
            built = count / (time.perf_counter() - began)
            with Dataset(out) as dataset:
                iterate = partial(read_dataset, dataset, config)
                read = [measure_rate(iterate) for _ in range(3)]
                kilobytes = dataset.bytes / count / 1e3
                click.echo(f"| {store} | {built:.0f} | {max(read):.0f} | {kilobytes:.0f} |")
        iterate = partial(read_image_folder, folder / "source", config)
        read = [measure_rate(iterate) for _ in range(3)]
        size = sum(file.stat().st_size for file in (folder / "source").rglob("*.jpg")) / count / 1e3
        click.echo(f"| ImageFolder | | {max(read):.0f} | {size:.0f} |")


@main.command()
@click.option(
    "--count", "counts", multiple=True, default=[2_000, 20_000], show_default=True, help="Pictures."
)
def memory(counts: tuple[int, ...]) -> None:
    """Measure the peak memory of a build by its number of pictures, which are tiny."""
    click.echo(
        "| pictures | MB of its own, at most | MB of the file in memory, at most |\n|---|---|---|"
    )
    for count in counts:
        with (
            tempfile.TemporaryDirectory() as temporary,
            ProcessPoolExecutor(1, get_context("spawn")) as fresh,
        ):
            own, mapped = fresh.submit(_peaks, Path(temporary), count).result()
            click.echo(f"| {count} | {own / 1e6:.1f} | {mapped / 1e6:.1f} |")


def _peaks(folder: Path, count: int) -> tuple[int, int]:
    """Return the peaks of anonymous memory and of mapped pages above the level before the build."""
    random = np.random.default_rng(0)
    for number in range(count):
        file = folder / "source" / f"class{number % 10}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(file)
    before, peaks = _read_resident(), [0, 0]

    def update_peaks(_: BuildProgress) -> None:
        for index, size in enumerate(_read_resident()):
            peaks[index] = max(peaks[index], size - before[index])

    build(
        folder / "source",
        folder / "out",
        BuildOptions(32, store="raw"),
        2,
        on_progress=update_peaks,
    )
    return peaks[0], peaks[1]


def _read_resident() -> tuple[int, int]:
    """Return this process's resident anonymous memory and mapped pages, in bytes."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own, mapped = (1024 * int(lines[name].split()[0]) for name in ("RssAnon", "RssFile"))
    return own, mapped


if __name__ == "__main__":
    main()
