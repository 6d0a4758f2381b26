"""`impasto demo` restarts the processes of its own service."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from cli.local_service import free_port
from core.images import validation
from core.neural.weights.cache import WeightsCache

pytestmark = pytest.mark.e2e


def test_demo_restarts_a_worker_and_an_api_that_die_during_the_job(
    tmp_path: Path, weights: WeightsCache, until: Any
) -> None:
    """Both are killed at once after the job is submitted, so nothing can run or report it."""
    settings = {
        "IMPASTO_DATA_DIR": str(tmp_path / "data"),
        "IMPASTO_CACHE_DIR": str(weights.folder.parent),
    }
    options = ["--size", "64", "--port", str(free_port()), "-o", "out.png"]
    output = tmp_path / "output"
    with output.open("wb") as file:
        demo = subprocess.Popen(
            [sys.executable, "-m", "cli", "demo", *options],
            env={**os.environ, **settings},
            cwd=tmp_path,
            stdout=file,
            stderr=file,
        )
    try:
        until(
            lambda: "queued" in output.read_text() or "starting" in output.read_text(),
            "submitted",
            120,
        )
        for child in psutil.Process(demo.pid).children():
            if {"worker", "api"} & set(child.cmdline()):
                child.kill()
        assert demo.wait(120) == 0, output.read_text()
    finally:
        demo.terminate()
        demo.wait(60)

    assert validation.detect_format((tmp_path / "out.png").read_bytes()) == "png"
