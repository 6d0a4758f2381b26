"""The set-up by `make`: which Python it takes, and what it does about a wrong environment."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OLD = "#!/bin/sh\nexit 1\n"  # fails the check of the version, as Python 3.10 does
# Passes the check; makes an environment that consists of itself and a pip.
RECENT = f"""#!/bin/sh
[ "$1" = -c ] && exec {sys.executable} "$@"
mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && touch "$3/bin/pip" "$3/pyvenv.cfg"
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "Makefile", tmp_path)
    for name, text in (("old", OLD), ("recent", RECENT)):
        (tmp_path / name).write_text(text, encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    return tmp_path


def _make_environment(project: Path, python: str) -> subprocess.CompletedProcess[str]:
    command = ["make", ".venv/bin/pip", f"PYTHON=./{python}"]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, check=False)


def test_an_older_python_is_refused_and_the_message_names_the_required_one(project: Path) -> None:
    made = _make_environment(project, "old")

    assert made.returncode != 0
    assert "Impasto needs Python 3.11 or newer, and ./old is not." in made.stderr
    assert not (project / ".venv").exists()


def test_an_environment_of_an_older_python_is_replaced_and_a_good_one_is_kept(
    project: Path,
) -> None:
    bin_folder = project / ".venv" / "bin"
    bin_folder.mkdir(parents=True)
    shutil.copy(project / "old", bin_folder / "python")
    (bin_folder / "pip").touch()
    (project / ".venv" / "pyvenv.cfg").touch()
    made = _make_environment(project, "recent")

    assert made.returncode == 0, made.stderr
    assert (bin_folder / "python").read_text(encoding="utf-8") == RECENT
    (bin_folder / "marker").touch()
    assert _make_environment(project, "recent").returncode == 0
    assert (bin_folder / "marker").exists()


@pytest.mark.parametrize(
    ("folder", "arguments"),
    [
        ("other", ["other/bin/pip", "VENV=other"]),
        (".venv", ["-n", ".venv/bin/pip"]),
        (".venv", ["help"]),
        ("pictures", ["pictures/bin/pip", "VENV=pictures"]),
    ],
    ids=str,
)
def test_no_other_folder_is_deleted(project: Path, folder: str, arguments: list[str]) -> None:
    """Nor the environment, if nothing is to be done."""
    (project / folder / "bin").mkdir(parents=True)
    (project / folder / "bin" / "mine.jpg").touch()
    if folder != "pictures":
        (project / folder / "pyvenv.cfg").touch()
    command = ["make", "PYTHON=./old", *arguments]
    subprocess.run(command, cwd=project, capture_output=True, check=False)

    assert (project / folder / "bin" / "mine.jpg").exists()
