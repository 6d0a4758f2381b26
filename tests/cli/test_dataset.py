"""The command `impasto dataset`, run as a user runs it."""

import subprocess
import sys
from pathlib import Path

import click
import lmdb
import numpy as np
from PIL import Image

from cli.dataset import build
from core.images.codec import RESIZES
from core.training.dataset import STORES


def impasto(folder: Path, *args: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "cli", *args],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_folder_becomes_a_data_set_and_a_contact_sheet(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(5):
            Image.fromarray(random.integers(0, 256, (40, 40, 3), np.uint8)).save(
                tmp_path / f"pets/{name}/{number}.png"
            )
    (tmp_path / "pets" / "cats" / "notes.txt").write_text("no picture")

    built = impasto(
        tmp_path, "dataset", "build", "pets", "pets.lmdb", "--side", "48", "--validation", "0.2"
    )
    shown = impasto(tmp_path, "dataset", "info", "pets.lmdb", "--classes", "--sheet", "sheet.png")
    no_folder = impasto(
        tmp_path, "dataset", "info", "pets.lmdb", "--refused", "0", "--sheet", "no/sheet.png"
    )

    assert (built.returncode, shown.returncode) == (0, 0), built.stderr + shown.stderr
    assert "100%" in built.stderr
    for text in (
        "in 2 classes",
        "48 × 48 px, resize linear, stored as jpeg",
        "1 files were refused",
        "notes.txt: On",
    ):
        assert text in built.stdout
        assert text in shown.stdout
    assert "    train + validation" in shown.stdout.splitlines()
    assert (
        "  and 1 more: impasto dataset info pets.lmdb --refused 1" in no_folder.stdout.splitlines()
    )
    assert (no_folder.returncode, no_folder.stderr) == (
        1,
        "impasto: No such file or directory: no/sheet.png\n",
    )
    assert shown.stdout.splitlines()[-1] == "sheet.png"
    assert (tmp_path / "sheet.png").is_file()


def test_a_bad_folder_gives_one_line_and_exit_code_2(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    for args in (["build", "empty", "out"], ["info", "empty"]):
        ran = impasto(tmp_path, "dataset", *args)
        assert (ran.returncode, len(ran.stderr.splitlines())) == (2, 1), ran.stderr
        assert "impasto: " in ran.stderr


def test_an_incomplete_data_set_is_shown_without_control_characters(tmp_path: Path) -> None:
    """Names in a data set are untrusted: they must not clear the screen or fake another line."""
    for name in ("cats", "dogs"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        (tmp_path / "pets" / name / "\x1b[2J\nall is well").write_text("no picture")
    refused = impasto(tmp_path, "dataset", "build", "pets", "out", "--side", "32")
    with (
        lmdb.open(str(tmp_path / "out"), max_dbs=4) as environment,
        environment.begin(write=True) as transaction,
    ):
        header = transaction.get(b"header")
        transaction.put(b"header", header.replace(b"cats", b"c\\u001b[2Jats"))
    shown = impasto(tmp_path, "dataset", "info", "out", "--classes")

    assert (refused.returncode, shown.returncode) == (2, 0), shown.stderr
    assert "It is not complete: 2 of 2 of the files are read." in shown.stdout
    assert (
        "cats/\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}all is well: Only"
        in shown.stdout
    )
    assert "\N{REPLACEMENT CHARACTER}[2Jats" in shown.stdout
    assert "\x1b" not in refused.stderr + shown.stdout + shown.stderr


def test_the_choices_of_the_options_are_those_of_the_builder() -> None:
    choices = {
        option.name: option.type.choices
        for option in build.params
        if isinstance(option.type, click.Choice)
    }

    assert choices == {"resize": RESIZES, "store": STORES}
