"""`impasto dataset`: build a data set from a folder of pictures, and show what a data set holds."""

from pathlib import Path
from typing import Any

import click

from cli.options import FiniteFloat
from cli.output import ProgressBar, printable
from core import errors
from core.storage.files import atomic_write

folder = click.Path(exists=True, file_okay=False, path_type=Path)


@click.group()
def dataset() -> None:
    """Pictures in classes, to train a network on."""


@dataset.command()
@click.argument("source", metavar="FOLDER", type=folder)
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--side",
    default=256,
    show_default=True,
    type=click.IntRange(32, 1024),
    help="Side of each picture, px.",
)
@click.option(
    "--resize",
    default="linear",
    show_default=True,
    type=click.Choice(["linear", "crop"]),
    help="linear: scale each side on its own; crop: scale the short side, then crop the center.",
)
@click.option(
    "--store",
    default="jpeg",
    show_default=True,
    type=click.Choice(["jpeg", "raw"]),
    help="jpeg: at quality 95; raw: plain pixels, at least four times as large.",
)
@click.option(
    "--validation",
    default=0.05,
    show_default=True,
    type=FiniteFloat(0, 0.5),
    help="Share of the pictures that is kept from training.",
)
@click.option(
    "--jobs", default=0, type=click.IntRange(0, 256), help="Decoding processes; 0: one per core."
)
def build(source: Path, out: Path, jobs: int, **options: Any) -> None:
    """Build the data set OUT from FOLDER, whose sub-folders are the classes.

    The same command resumes an interrupted build.
    """
    from core.training import dataset_builder
    from core.training.dataset import Dataset

    side_px = options.pop("side")
    build_options = dataset_builder.BuildOptions(side_px=side_px, **options)
    with ProgressBar() as bar:

        def show(progress: dataset_builder.BuildProgress) -> None:
            if not progress.done:
                bar.show_work("listing", 0.0, f"{progress.files} files")
                return
            seconds = progress.seconds_left
            left = "" if seconds is None else f", {seconds:.0f} s left"
            details = f"{progress.done} of {progress.files} files, {progress.refused} refused{left}"
            bar.show_work("building", progress.done / progress.files, details)

        dataset_builder.build(source, out, build_options, jobs, on_progress=show)
        bar.show_work("done", 1.0, "")
    with Dataset(out) as built:
        _print_summary(built, refusals=10)


@dataset.command()
@click.argument("path", metavar="DATASET", type=folder)
@click.option("--classes", is_flag=True, help="Show the number of pictures in each class.")
@click.option(
    "--refused",
    default=10,
    show_default=True,
    type=click.IntRange(0),
    help="Number of refused files to show.",
)
@click.option(
    "--sheet",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a contact sheet, PNG or JPEG.",
)
def info(path: Path, classes: bool, refused: int, sheet: Path | None) -> None:
    """Show what a data set holds, even if it is incomplete."""
    from core.training.dataset import Dataset, contact_sheet

    if sheet is not None and sheet.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise errors.BadInput("A contact sheet must end in .png, .jpg or .jpeg.")
    with Dataset(path, unfinished=True) as opened:
        _print_summary(opened, refused)
        if classes:
            click.echo("    train + validation")
            rows = zip(opened.classes, opened.state.train, opened.state.validation, strict=True)
            for name, train, validation in rows:
                click.echo(f"{train:>9} + {validation:<10} {printable(name)}")
        if sheet is not None:
            kind = "PNG" if sheet.suffix.lower() == ".png" else "JPEG"
            picture = contact_sheet(opened)
            atomic_write(sheet, lambda file: picture.save(file, kind, quality=90))
            click.echo(sheet)


def _print_summary(opened: Any, refusals: int) -> None:
    header, state = opened.header, opened.state
    click.echo(
        f"{opened.folder}: {opened.count('train')} pictures for training and "
        f"{opened.count('validation')} for validation in {len(header.classes)} classes"
    )
    click.echo(
        f"{header.side_px} × {header.side_px} px, resize {header.resize}, "
        f"stored as {header.store}, {opened.bytes / 1e6:.0f} MB, sha256 {opened.sha256[:16]}"
    )
    if state.phase != "complete":
        done = "none"
        if state.files:
            done = f"{state.accepted + state.refused} of {state.files}"
        click.echo(
            f"It is not complete: {done} of the files are read. "
            "Give the command that began it again."
        )
    if state.refused:
        click.echo(f"{state.refused} files were refused:")
        for sentence in opened.refusals(refusals):
            click.echo(f"  {printable(sentence)}")
    if state.refused > refusals:
        command = f"impasto dataset info {opened.folder} --refused {state.refused}"
        click.echo(f"  and {state.refused - refusals} more: {command}")
