"""The commands that speak to a service: they are the client's, with words and exit codes around it."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from api_process import ApiProcess

from core.presets import PRESETS
from core.store import JobStore
from impasto import Client

Pictures = tuple[Path, Path]


@pytest.fixture
def impasto(service: ApiProcess, at_service: JobStore, tmp_path: Path) -> Any:
    def run(*args: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cli", *map(str, args)]
        given = {**os.environ, "IMPASTO_URL": service.url}
        return subprocess.run(command, env=given, cwd=tmp_path, capture_output=True, text=True, check=False)

    return run


def test_submit_sends_knobs_presets_and_those_of_an_earlier_result(
    impasto: Any, client: Client, pictures: Pictures, worker: Any, tmp_path: Path
) -> None:
    first = impasto("submit", *pictures, "--preset", "brushwork", "--size", 64, "--seamless", "true")
    (job,) = client.jobs()
    worker.claim()
    (tmp_path / "result.png").write_bytes(worker.succeed())
    again = impasto("submit", *pictures, pictures[1], "--from", "result.png", "--seed", 3)
    newest, _ = client.jobs()

    assert (0, 0) == (first.returncode, again.returncode), first.stderr + again.stderr
    assert client.link(job) == first.stdout.strip()
    assert (64, True, PRESETS["brushwork"].knobs["strength"]) == tuple(
        job.input.spec[name] for name in ("size", "seamless", "strength")
    )
    assert {**job.input.spec, "seed": 3, "style_weights": [0.5, 0.5]} == newest.input.spec


def test_watch_writes_the_result_of_a_job_that_has_ended(
    impasto: Any, client: Client, pictures: Pictures, worker: Any, tmp_path: Path
) -> None:
    job = client.submit(*pictures, size=64)
    worker.claim()
    data = worker.succeed()

    assert 0 == impasto("watch", client.link(job), "-o", "out.png").returncode
    assert data == (tmp_path / "out.png").read_bytes()


def test_refusals_are_one_line_and_exit_2_a_job_without_a_picture_exit_1(
    impasto: Any, client: Client, pictures: Pictures
) -> None:
    canceled = client.cancel(client.submit(*pictures).id)
    unknown, refused = impasto("watch", "job_x"), impasto("submit", *pictures, "--size", "1")
    ended = impasto("watch", canceled.id)

    assert (2, "impasto: There is no job with this id.\n") == (unknown.returncode, unknown.stderr)
    assert (2, "impasto: size must be a whole number from 64 to 8192.\n") == (refused.returncode, refused.stderr)
    assert (1, "impasto: The job was canceled.") == (ended.returncode, ended.stderr.splitlines()[-1])
