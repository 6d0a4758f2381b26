"""Runs training cases in other processes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[4]
RunCases = Callable[[list[dict[str, Any]]], list[list[int]]]


@pytest.fixture(scope="session")
def run_cases() -> RunCases:
    """Run cases of forked_cases.py; returns the exit codes of each case's processes."""

    def run(cases: list[dict[str, Any]]) -> list[list[int]]:
        result = subprocess.run(
            [sys.executable, str(Path(__file__).with_name("forked_cases.py")), json.dumps(cases)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        return [list(codes) for codes in json.loads(result.stdout)]

    return run
