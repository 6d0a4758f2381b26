"""The logs of a real worker and its child: every line is JSON, from the first to the last."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def test_every_line_of_a_worker_and_its_child_is_json(valkey: Any, tmp_path: Path) -> None:
    """The worker has no weights, so its child logs that, and the worker stops by itself."""
    environment = {
        **os.environ,
        "IMPASTO_LOG_FORMAT": "json",
        "IMPASTO_REDIS_URL": valkey.url,
        "IMPASTO_DATA_DIR": str(tmp_path),
        "IMPASTO_CACHE_DIR": str(tmp_path),
    }
    command = [sys.executable, "-m", "worker"]
    done = subprocess.run(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
        timeout=60,
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]

    assert any("ready" in line["message"] for line in lines)
    assert [
        line
        for line in lines
        if line["logger"] == "worker.tasks" and "cannot run jobs" in line["message"]
    ]
