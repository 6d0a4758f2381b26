"""`impasto demo`: the service that it starts for itself may die under it."""

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


def test_what_dies_while_the_job_waits_is_started_again(
    tmp_path: Path, weights: WeightsCache, until: Any
) -> None:
    """The worker and the API at once, with -9, as soon as the job is there: nobody could tell of it, or paint it."""
    given = {
        "IMPASTO_DATA_DIR": str(tmp_path / "data"),
        "IMPASTO_CACHE_DIR": str(weights.folder.parent),
    }
    command = [
        sys.executable,
        "-m",
        "cli",
        "demo",
        "--size",
        "64",
        "--port",
        str(free_port()),
        "-o",
        "out.png",
    ]
    said = tmp_path / "said"
    with said.open("wb") as told:
        demo = subprocess.Popen(
            command, env={**os.environ, **given}, cwd=tmp_path, stdout=told, stderr=told
        )
    try:
        until(
            lambda: "queued" in said.read_text() or "starting" in said.read_text(), "submitted", 120
        )
        for child in psutil.Process(demo.pid).children():
            if {"worker", "api"} & set(child.cmdline()):
                child.kill()
        assert demo.wait(120) == 0, said.read_text()
    finally:
        demo.terminate()
        demo.wait(60)

    assert validation.detect_format((tmp_path / "out.png").read_bytes()) == "png"
