"""A campaign as a module: its checker, for the tests beside it; and as a command, as a person starts it."""

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
    """The campaign of this name, imported."""
    monkeypatch.syspath_prepend(str(HERE))
    return importlib.import_module


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the campaign of this name, with arguments; its history goes to a folder of the test."""

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
