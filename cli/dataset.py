"""`impasto dataset`: from a folder of pictures to a data set, and a look at one."""

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
    help="linear: each side on its own; crop: the short side, then the middle.",
)
@click.option(
    "--store",
    default="jpeg",
    show_default=True,
    type=click.Choice(["jpeg", "raw"]),
    help="jpeg: quality 95; raw: four times as large or more, as it is.",
)
@click.option(
    "--validation",
    default=0.05,
    show_default=True,
    type=FiniteFloat(0, 0.5),
    help="Share of the pictures that is kept from training.",
)
@click.option(
    "--jobs", default=0, type=click.IntRange(0, 256), help="Decoding processes; 0: one a core."
)
def build(source: Path, out: Path, jobs: int, **wish: Any) -> None:
    """Make the data set OUT of FOLDER, whose sub-folders are the classes. Given again, it goes on where it was."""
    from core.training.dataset import Dataset
    from core.training.dataset_builder import BuildOptions, BuildProgress
    from core.training.dataset_builder import build as harvest

    with ProgressBar() as bar:

        def show(at: BuildProgress) -> None:
            if not at.done:
                bar.show_work("listing", 0.0, f"{at.files} files")
            else:
                left = "" if at.seconds_left is None else f", {at.seconds_left:.0f} s left"
                details = f"{at.done} of {at.files} files, {at.refused} refused{left}"
                bar.show_work("building", at.done / at.files, details)

        side_px = wish.pop("side")
        harvest(source, out, BuildOptions(side_px=side_px, **wish), jobs, on_progress=show)
        bar.show_work("done", 1.0, "")
    with Dataset(out) as made:
        _say(made, refusals=10)


@dataset.command()
@click.argument("place", metavar="DATASET", type=folder)
@click.option("--classes", is_flag=True, help="Tell the pictures of each class.")
@click.option(
    "--refused",
    default=10,
    show_default=True,
    type=click.IntRange(0),
    help="Refused files to tell of.",
)
@click.option(
    "--sheet",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a contact sheet, PNG or JPEG.",
)
def info(place: Path, classes: bool, refused: int, sheet: Path | None) -> None:
    """What a data set holds, also one that is not complete."""
    from core.training.dataset import Dataset, contact_sheet

    if sheet is not None and sheet.suffix.lower() not in (".png", ".jpg", ".jpeg"):
        raise errors.BadInput("A contact sheet must end in .png, .jpg or .jpeg.")
    with Dataset(place, unfinished=True) as opened:
        _say(opened, refused)
        if classes:
            click.echo("    train + validation")
            rows = zip(opened.classes, opened.state.train, opened.state.validation, strict=True)
            for name, train, validation in rows:
                click.echo(f"{train:>9} + {validation:<10} {printable(name)}")
        if sheet is not None:
            kind = "PNG" if sheet.suffix.lower() == ".png" else "JPEG"
            atomic_write(sheet, lambda part: contact_sheet(opened).save(part, kind, quality=90))
            click.echo(sheet)


def _say(opened: Any, refusals: int) -> None:
    header, state = opened.header, opened.state
    click.echo(
        f"{opened.folder}: {opened.count('train')} pictures for training and {opened.count('validation')} for "
        f"validation in {len(header.classes)} classes"
    )
    click.echo(
        f"{header.side_px} × {header.side_px} px, resize {header.resize}, stored as {header.store}, "
        f"{opened.bytes / 1e6:.0f} MB, sha256 {opened.sha256[:16]}"
    )
    if state.phase != "complete":
        done = f"{state.taken + state.refused} of {state.files}" if state.files else "none"
        click.echo(
            f"It is not complete: {done} of the files are read. Give the command that began it again."
        )
    if state.refused:
        click.echo(f"{state.refused} files were not taken:")
        for sentence in opened.refusals(refusals):
            click.echo(f"  {printable(sentence)}")
    if state.refused > refusals:
        command = f"impasto dataset info {opened.folder} --refused {state.refused}"
        click.echo(f"  and {state.refused - refusals} more: {command}")
