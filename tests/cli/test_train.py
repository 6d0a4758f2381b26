"""`impasto train` from the command line."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli import commands
from core.training.dataset_builder import BuildOptions, build

# So small that a run takes a second.
SMALL = ["--architecture", "vgg11", "--width", "0.0625", "--hidden", "8", "--crop-px", "32"]
SMALL += ["--epochs", "1", "--workers", "0"]


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """A folder with a data set of random pictures in two classes, and its source."""
    generator = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(8):
            Image.fromarray(generator.integers(0, 256, (40, 40, 3), np.uint8)).save(
                tmp_path / f"pets/{name}/{number}.png"
            )
    build(tmp_path / "pets", tmp_path / "data", BuildOptions(40, validation=0.3), jobs=1)
    return tmp_path


def test_it_trains_and_shows_its_progress(pets: Path) -> None:
    """As a process, to check the entry point."""
    result = subprocess.run(
        [sys.executable, "-m", "cli", "train", "data", "-o", "run", *SMALL],
        cwd=pets,
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 0, result.stderr
    assert "100%" in result.stderr
    assert "pictures/s" in result.stderr
    assert "Best validation top-1" in result.stdout
    assert (pets / "run" / "network.safetensors").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "other", "--momentum", "1"], "momentum must be a number from 0 to under 1."),
        (["-o", "other", "--device", "gpu"], "The device gpu cannot be used here; cpu always can."),
        (["-o", "pets"], "pets holds something else; choose another folder."),
    ],
)
def test_a_bad_option_is_refused_in_one_line_and_leaves_no_folder(
    pets: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(pets)
    monkeypatch.setattr(sys, "argv", ["impasto", "train", "data", *SMALL, *options])
    capsys.readouterr()

    with pytest.raises(SystemExit) as refused:
        commands.impasto.main()
    assert refused.value.code == 2
    assert capsys.readouterr().err == f"impasto: {message}\n"
    assert not (pets / "other").exists()
