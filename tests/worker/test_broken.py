"""Workers that cannot work, or no longer, as real processes: they go, and every job ends as it should."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fleet import TINY, patch_on_import
from PIL import Image
from processes import environment

from core.celery_app import make_celery, notify_workers
from core.images import codec
from core.jobs.models import Job, JobInput, Status, new_job_id
from core.jobs.store import JobStore
from core.storage.blobs import Blobs
from core.style.spec import StyleSpec

Start = Callable[[str], subprocess.Popen[bytes]]
LOST = "raise RuntimeError('CUDA error: the card has fallen off the bus')\n"


@pytest.fixture
def start(tmp_path: Path, valkey: Any) -> Iterator[Start]:
    """`python -m worker` with a tiny network, changed by some Python; gone with the test."""
    begun: list[subprocess.Popen[bytes]] = []

    def begin(changed: str) -> subprocess.Popen[bytes]:
        (tmp_path / "sitecustomize.py").write_text(TINY + changed)
        own = {
            "REDIS_URL": valkey.url,
            "DATA_DIR": str(tmp_path),
            "CACHE_DIR": str(tmp_path / "cache"),
        }
        given = environment(**own, WORKER_THREADS="1", WORKER_CHECKPOINT_SECONDS="0.1")
        with (tmp_path / "log").open("ab") as log:
            command = [sys.executable, "-m", "worker"]
            begun.append(
                subprocess.Popen(
                    command, env=given | {"PYTHONPATH": str(tmp_path)}, stdout=log, stderr=log
                )
            )
        return begun[-1]

    yield begin
    for process in begun:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def jobs(
    store: JobStore, blobs: Blobs, photo: Image.Image, painting: Image.Image, valkey: Any
) -> list[Job]:
    """Two that wait, each with its bell."""
    content, style = (blobs.put(codec.encode(picture)) for picture in (photo, painting))
    for digest in (content, style):
        store.reserve(digest)
    spec = StyleSpec(size=64, iterations=40).for_pictures()
    wanted = JobInput(content=content, styles=[style], spec=spec.model_dump())
    made = [store.create(new_job_id(), wanted) for _ in range(2)]
    app = make_celery(valkey.url)
    assert all(notify_workers(app) for _ in made)
    app.close()
    return made


@pytest.mark.parametrize(
    "trouble",
    [
        "def fail(*_):\n    raise RuntimeError('out of the blue')\nmodule.measure_throughput = fail",
        f"def fail(*_):\n    {LOST}module.measure_throughput = fail",
        f"def fail(*_):\n    {LOST}module.Planner.free_bytes = fail",
    ],
    ids=["measuring fails", "the card is lost while it is measured", "the card is lost"],
)
def test_a_worker_that_fails_at_its_start_stops_and_ends_no_job(
    start: Start, jobs: list[Job], store: JobStore, tmp_path: Path, trouble: str
) -> None:
    process = start(patch_on_import("core.neural.transfer.planner", trouble))

    assert process.wait(90) == 0
    assert [((seen := store.get(job.id)).status, seen.attempt) for job in jobs] == [
        (Status.QUEUED, 0)
    ] * 2
    assert "this worker cannot paint and stops" in (tmp_path / "log").read_text()


def test_a_card_that_dies_while_it_idles_ends_the_worker_and_no_job(
    start: Start, jobs: list[Job], store: JobStore, tmp_path: Path
) -> None:
    """The first job finds out, or the look at the memory; the next process cannot begin."""
    dead = tmp_path / "dead"
    trouble = (
        "import pathlib\n"
        "usual = module.Planner.free_bytes\n"
        "def free(self):\n"
        f"    if pathlib.Path({os.fspath(dead)!r}).exists():\n"
        f"        {LOST}"
        f"    pathlib.Path({os.fspath(dead)!r}).touch()\n"  # it is well at the start of the first process
        "    return usual(self)\n"
        "module.Planner.free_bytes = free\n"
    )
    process = start(patch_on_import("core.neural.transfer.planner", trouble))

    assert process.wait(90) == 0
    assert {store.get(job.id).status for job in jobs} == {Status.QUEUED}
    assert "the device is lost; this process ends" in (tmp_path / "log").read_text()


def _at_first(folder: Path, code: str) -> str:
    """Code that only the first process to come by runs."""
    return (
        "import os, time\n"
        "def is_first():\n"
        "    try:\n"
        f"        os.close(os.open({os.fspath(folder / 'first')!r}, os.O_CREAT | os.O_EXCL))\n"
        "    except FileExistsError:\n"
        "        return False\n"
        "    return True\n" + code
    )


HANGS = {
    "in an iteration": ("core.neural.transfer.stylize", "ProgressTracker", "count"),
    "in reading a picture": ("core.storage.blobs", "Blobs", "get"),
    "in writing the result": ("core.images.codec", None, "encode"),
    "after the end": ("worker.checkpoint_writer", "CheckpointWriter", "close"),
}


@pytest.mark.reliability
@pytest.mark.parametrize("place", HANGS)
def test_a_painting_that_hangs_ends_its_process_and_the_job_goes_on_in_the_next(
    start: Start,
    jobs: list[Job],
    store: JobStore,
    tmp_path: Path,
    until: Callable[..., None],
    place: str,
) -> None:
    """Though its lease is renewed, and its sign of life given."""
    module, owner, name = HANGS[place]
    where = f"module.{owner}" if owner else "module"
    trouble = (
        f"usual = {where}.{name}\n"
        "def hang(*args, **more):\n"
        "    if is_first():\n"
        "        time.sleep(3600)\n"
        "    return usual(*args, **more)\n"
        f"{where}.{name} = hang\n"
    )
    quick = "module.POLL_SECONDS, module.STEP_SECONDS, module.PHASE_SECONDS, module.STEP_FACTOR = 0.2, 4, 12, 1"
    if place == "in writing the result":  # no frame or preview is what hangs
        trouble = trouble.replace(
            "if is_first()", "if len(args) > 1 and args[1] == 'png' and is_first()"
        )
    start(
        patch_on_import(module, _at_first(tmp_path, trouble))
        + patch_on_import("worker.watchdog", quick)
    )
    until(
        lambda: all(store.get(job.id).status.has_ended for job in jobs), "the end of all jobs", 120
    )

    assert {store.get(job.id).status for job in jobs} == {Status.SUCCEEDED}
    log = (tmp_path / "log").read_text()
    assert log.count("this process ends; it hangs in <string>:") == 1, log
    assert " hang < " in log


@pytest.mark.reliability
def test_a_worker_that_is_deaf_goes_and_the_next_one_hears(
    start: Start, jobs: list[Job], store: JobStore, tmp_path: Path, until: Callable[..., None]
) -> None:
    deaf = "module.Channel._brpop_start = lambda *_, **__: None"  # it never asks for a bell
    quick = (
        "module.STALL_POLL_SECONDS, module.STALL_SECONDS, module.CHILD_START_SECONDS = 0.2, 4, 1"
    )
    process = start(
        patch_on_import("core.celery_app", deaf) + patch_on_import("worker.supervisor", quick)
    )
    assert process.wait(90) == 0
    assert "jobs are queued, and this worker has run none" in (tmp_path / "log").read_text()
    assert {store.get(job.id).status for job in jobs} == {Status.QUEUED}

    start("")
    until(
        lambda: all(store.get(job.id).status is Status.SUCCEEDED for job in jobs), "all painted", 90
    )


def test_a_worker_that_does_not_go_by_itself_is_ended(
    start: Start, jobs: list[Job], store: JobStore, tmp_path: Path
) -> None:
    """Its main thread may be what hangs."""
    deaf = (
        "import signal\n"
        "def stuck(*_, **__):\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "module.Channel._brpop_start = stuck"
    )
    quick = (
        "module.STALL_POLL_SECONDS, module.STALL_SECONDS = 0.2, 4\n"
        "module.CHILD_START_SECONDS, module.SHUTDOWN_SECONDS = 1, 1"
    )
    process = start(
        patch_on_import("core.celery_app", deaf) + patch_on_import("worker.supervisor", quick)
    )

    assert process.wait(90) == 1
    assert {store.get(job.id).status for job in jobs} == {Status.QUEUED}
    assert "this worker does not stop by itself" in (tmp_path / "log").read_text()
