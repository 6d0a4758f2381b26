"""Fixtures that import a campaign as a module or run it as a command."""

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

HERE = Path(__file__).parent


@pytest.fixture
def campaign(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """A function that imports the campaign of a name."""
    monkeypatch.syspath_prepend(str(HERE))
    return importlib.import_module


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs a campaign as a process; its history goes to the test's folder."""

    def run(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            str(HERE / f"{name}.py"),
            "--history",
            str(tmp_path / "history"),
            *arguments,
        ]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)

    return run
