"""How fast a data set is built and read, beside torchvision's ImageFolder, and in how much memory. bench/README.md."""

import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
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


def draw(folder: Path, count: int) -> None:
    """Parts of the sample photo, about as large as photos in data sets are: 500 × 375 px, JPEG."""
    hand = np.random.default_rng(0)
    with Image.open(HARBOR) as photo:
        for number in range(count):
            left, top = (
                int(hand.integers(0, photo.width - 500)),
                int(hand.integers(0, photo.height - 375)),
            )
            place = folder / "source" / f"class{number % 10}" / f"{number}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            photo.crop((left, top, left + 500, top + 375)).save(place, quality=92)


def rate(step: Callable[[], Iterable[Any]]) -> float:
    """Items a second of CPU time: one process and one thread, whatever else the machine does."""
    began, count = time.process_time(), 0
    for _ in step():
        count += 1
    return count / (time.process_time() - began)


def views_of(dataset: Dataset, recipe: TrainingConfig) -> Iterable[Any]:
    views = TrainingImages(dataset, "train", recipe)
    return (views[0, index] for index in torch.randperm(dataset.count("train")).tolist())


def image_folder(folder: Path, recipe: TrainingConfig) -> Iterable[Any]:
    """The same from the files: each decoded and scaled anew, in every epoch."""
    v2 = import_torchvision("transforms.v2")
    steps = [v2.PILToTensor(), v2.Resize((256, 256), antialias=True), v2.RandomCrop(recipe.crop_px)]
    folder_ = import_torchvision("datasets").ImageFolder(
        folder, v2.Compose([*steps, v2.RandomHorizontalFlip()])
    )
    return (folder_[index] for index in torch.randperm(len(folder_)).tolist())


@click.group()
def main() -> None:
    """Data sets, measured."""


@main.command()
@click.option("--count", default=1000, show_default=True, help="Pictures.")
@click.option("--jobs", default=0, help="Decoding processes; 0: one a core.")
def rates(count: int, jobs: int) -> None:
    """Build in both stores, then read with one process; the rates of one run, to be compared with each other."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        folder, recipe = Path(temporary), TrainingConfig()
        draw(folder, count)
        click.echo(
            "| | built, pictures/s | read, views/s of CPU time | KB a picture |\n|---|---|---|---|"
        )
        for store in STORES:
            out = folder / store
            began = time.perf_counter()
            build(folder / "source", out, BuildOptions(store=store, validation=0), jobs)
            built = count / (time.perf_counter() - began)
            with Dataset(out) as dataset:
                read = [rate(lambda opened=dataset: views_of(opened, recipe)) for _ in range(3)]  # type: ignore[misc]
                click.echo(
                    f"| {store} | {built:.0f} | {max(read):.0f} | {dataset.bytes / count / 1e3:.0f} |"
                )
        read = [rate(lambda: image_folder(folder / "source", recipe)) for _ in range(3)]
        size = sum(file.stat().st_size for file in (folder / "source").rglob("*.jpg")) / count / 1e3
        click.echo(f"| ImageFolder | | {max(read):.0f} | {size:.0f} |")


@main.command()
@click.option(
    "--count", "counts", multiple=True, default=[2_000, 20_000], show_default=True, help="Pictures."
)
def memory(counts: tuple[int, ...]) -> None:
    """The most memory that a build takes, by the number of its pictures; they are tiny, which changes nothing of it."""
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
    """Anonymous memory, and pages of mapped files, above what there is before the build."""
    hand = np.random.default_rng(0)
    for number in range(count):
        place = folder / "source" / f"class{number % 10}" / f"{number}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(hand.integers(0, 256, (32, 32, 3), np.uint8)).save(place)
    before, peaks = _resident(), [0, 0]

    def look(_: BuildProgress) -> None:
        now = _resident()
        peaks[:] = [
            max(peak, size - first) for peak, size, first in zip(peaks, now, before, strict=True)
        ]

    build(folder / "source", folder / "out", BuildOptions(32, store="raw"), 2, on_progress=look)
    return peaks[0], peaks[1]


def _resident() -> tuple[int, int]:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own, mapped = (1024 * int(lines[name].split()[0]) for name in ("RssAnon", "RssFile"))
    return own, mapped


if __name__ == "__main__":
    main()
