"""`impasto up` with required API keys: created beside it, sent by the CLI, never logged."""

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.e2e


def _impasto(service: Any, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {**service.environment, "IMPASTO_URL": service.url, **environment}
    command = [sys.executable, "-m", "cli", *args]
    return subprocess.run(
        command, env=settings, capture_output=True, text=True, check=False, timeout=100
    )


def test_a_new_key_runs_a_job_and_no_log_contains_it(
    keyed_service: Any, pictures: tuple[Path, Path], tmp_path: Path
) -> None:
    service = keyed_service
    data = Path(service.environment["IMPASTO_DATA_DIR"])
    output = tmp_path / "out.png"
    job = ["submit", *map(str, pictures), "--size", "64", "--iterations", "3", "-o", str(output)]

    refused = _impasto(service, *job)
    secret = _impasto(service, "keys", "create", "Ada").stdout.strip()
    done = _impasto(service, *job, IMPASTO_KEY=secret)

    assert (refused.returncode, "set IMPASTO_KEY" in refused.stderr) == (2, True)
    assert done.returncode == 0, done.stderr
    assert output.exists()
    assert stat.S_IMODE((data / "store.url").stat().st_mode) == 0o600
    logs = [
        path.read_text(errors="replace")
        for path in [*(data / "logs").iterdir(), tmp_path / "up.log"]
    ]
    assert not [
        log
        for log in logs
        if secret in log or os.fsdecode((data / "store.url").read_bytes()) in log
    ]
    service.stop()
    assert not (data / "store.url").exists()
