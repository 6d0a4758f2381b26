"""`impasto train` as a user meets it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from core.training.dataset_builder import BuildOptions, build


def impasto(folder: Path, *args: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "cli", *args],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_it_trains_with_progress_and_tells_what_is_wrong_in_one_line(tmp_path: Path) -> None:
    hand = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (tmp_path / "pets" / name).mkdir(parents=True)
        for number in range(8):
            Image.fromarray(hand.integers(0, 256, (40, 40, 3), np.uint8)).save(
                tmp_path / f"pets/{name}/{number}.png"
            )
    build(tmp_path / "pets", tmp_path / "data", BuildOptions(40, validation=0.3), jobs=1)
    small = [
        "--architecture",
        "vgg11",
        "--width",
        "0.0625",
        "--hidden",
        "8",
        "--crop-px",
        "32",
        "--epochs",
        "1",
    ]

    ran = impasto(tmp_path, "train", "data", "-o", "run", *small, "--workers", "0")
    wrong = impasto(tmp_path, "train", "data", "-o", "other", "--momentum", "1")
    nowhere = impasto(tmp_path, "train", "data", "-o", "other", "--device", "gpu")
    strange = impasto(tmp_path, "train", "data", "-o", "pets")

    assert ran.returncode == 0, ran.stderr
    assert "100%" in ran.stderr
    assert "pictures/s" in ran.stderr
    assert "Best validation top-1" in ran.stdout
    assert (tmp_path / "run" / "network.safetensors").is_file()
    assert (wrong.returncode, wrong.stderr) == (
        2,
        "impasto: momentum must be a number from 0 to under 1.\n",
    )
    assert (nowhere.returncode, nowhere.stderr) == (
        2,
        "impasto: The device gpu cannot be used here; cpu always can.\n",
    )
    assert (strange.returncode, len(strange.stderr.splitlines())) == (2, 1)
    assert not (tmp_path / "other").exists()
