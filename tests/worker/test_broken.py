"""Workers that fail, as real processes: they end, and each job ends as it must."""

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
from worker import process

Start = Callable[[str], subprocess.Popen[bytes]]
LOST = "raise RuntimeError('CUDA error: the card has fallen off the bus')\n"


@pytest.fixture
def start(tmp_path: Path, valkey: Any) -> Iterator[Start]:
    """Start `python -m worker` with a tiny network and some patches; it ends with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def launch(patch: str) -> subprocess.Popen[bytes]:
        (tmp_path / "sitecustomize.py").write_text(TINY + patch)
        settings = {
            "REDIS_URL": valkey.url,
            "DATA_DIR": str(tmp_path),
            "CACHE_DIR": str(tmp_path / "cache"),
        }
        variables = environment(**settings, WORKER_THREADS="1", WORKER_CHECKPOINT_SECONDS="0.1")
        with (tmp_path / "log").open("ab") as log:
            command = [sys.executable, "-m", "worker"]
            started.append(
                subprocess.Popen(
                    command, env=variables | {"PYTHONPATH": str(tmp_path)}, stdout=log, stderr=log
                )
            )
        return started[-1]

    yield launch
    for worker in started:
        worker.terminate()
        try:
            worker.wait(20)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


@pytest.fixture
def jobs(
    store: JobStore, blobs: Blobs, photo: Image.Image, painting: Image.Image, valkey: Any
) -> list[Job]:
    """Two queued jobs, each with its notification."""
    content, style = (blobs.put(codec.encode(picture)) for picture in (photo, painting))
    for digest in (content, style):
        store.reserve(digest)
    spec = StyleSpec(size=64, iterations=40).for_pictures()
    job_input = JobInput(content=content, styles=[style], spec=spec.model_dump())
    created = [store.create(new_job_id(), job_input) for _ in range(2)]
    app = make_celery(valkey.url)
    assert all(notify_workers(app) for _ in created)
    app.close()
    return created


@pytest.mark.parametrize(
    ("patch", "exit_code"),
    [
        (
            "def fail(*_):\n    raise RuntimeError('unexpected')\nmodule.measure_throughput = fail",
            0,
        ),
        (f"def fail(*_):\n    {LOST}module.measure_throughput = fail", process.DEVICE_BROKEN),
        (f"def fail(*_):\n    {LOST}module.Planner.free_bytes = fail", process.DEVICE_BROKEN),
    ],
    ids=["measuring fails", "the card is lost while it is measured", "the card is lost"],
)
def test_a_worker_that_fails_at_its_start_stops_and_ends_no_job(
    start: Start, jobs: list[Job], store: JobStore, tmp_path: Path, patch: str, exit_code: int
) -> None:
    worker = start(patch_on_import("core.neural.transfer.planner", patch))

    assert worker.wait(90) == exit_code
    assert [((seen := store.get(job.id)).status, seen.attempt) for job in jobs] == [
        (Status.QUEUED, 0)
    ] * 2
    assert "this worker cannot run jobs and stops" in (tmp_path / "log").read_text()


def test_a_worker_refuses_a_card_without_kernels_and_names_the_other_packages(
    start: Start, jobs: list[Job], store: JobStore, tmp_path: Path
) -> None:
    patch = (
        "cuda = module.torch.cuda\n"
        "cuda.is_available = lambda: True\n"
        "cuda.device_count = lambda: 1\n"
        "cuda.get_device_name = lambda *_: 'NVIDIA TITAN X (Pascal)'\n"
        "cuda.get_device_capability = lambda *_: (6, 1)\n"
        "cuda.get_arch_list = lambda: ['sm_75', 'sm_80']\n"
    )
    worker = start(patch_on_import("core.neural.device", patch))

    assert worker.wait(90) == 2  # as for a wrong setting: `impasto up` ends with the message
    assert {store.get(job.id).status for job in jobs} == {Status.QUEUED}
    log = (tmp_path / "log").read_text()
    assert "NVIDIA TITAN X (Pascal) cannot be used" in log
    assert "make up GPU=legacy" in log
    assert "Traceback" not in log


def test_a_card_that_fails_while_idle_ends_the_worker_and_no_job(
    start: Start, jobs: list[Job], store: JobStore, tmp_path: Path
) -> None:
    """The first job or the next memory measurement fails; the next process cannot start."""
    dead = tmp_path / "dead"
    patch = (
        "import pathlib, traceback\n"
        f"usual, dead = module.Planner.free_bytes, pathlib.Path({os.fspath(dead)!r})\n"
        "is_first = not dead.exists()\n"
        "def free(self):\n"
        "    dead.touch()\n"
        "    names = [frame.name for frame in traceback.extract_stack()]\n"
        "    if not is_first or 'warm_up' not in names:\n"  # the first process can start
        f"        {LOST}"
        "    return usual(self)\n"
        "module.Planner.free_bytes = free\n"
    )
    worker = start(patch_on_import("core.neural.transfer.planner", patch))

    assert worker.wait(90) == process.DEVICE_BROKEN
    assert {store.get(job.id).status for job in jobs} == {Status.QUEUED}
    assert "the device is lost; this process ends" in (tmp_path / "log").read_text()


def _at_first(folder: Path, code: str) -> str:
    """Code with `is_first()`, which is true in the first process that calls it."""
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
def test_a_run_that_hangs_ends_its_process_and_the_next_one_resumes_the_job(
    start: Start,
    jobs: list[Job],
    store: JobStore,
    tmp_path: Path,
    until: Callable[..., None],
    place: str,
) -> None:
    """Although its lease is renewed and its heartbeat is sent."""
    module, owner, name = HANGS[place]
    where = f"module.{owner}" if owner else "module"
    patch = (
        f"usual = {where}.{name}\n"
        "def hang(*args, **more):\n"
        "    if is_first():\n"
        "        time.sleep(3600)\n"
        "    return usual(*args, **more)\n"
        f"{where}.{name} = hang\n"
    )
    quick = (
        "module.POLL_SECONDS, module.STEP_SECONDS = 0.2, 4\n"
        "module.PHASE_SECONDS, module.STEP_FACTOR = 12, 1"
    )
    if place == "in writing the result":  # frames and previews must not hang
        patch = patch.replace(
            "if is_first()", "if len(args) > 1 and args[1] == 'png' and is_first()"
        )
    start(
        patch_on_import(module, _at_first(tmp_path, patch))
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
def test_a_worker_that_receives_no_messages_ends_and_the_next_one_receives_them(
    start: Start, jobs: list[Job], store: JobStore, tmp_path: Path, until: Callable[..., None]
) -> None:
    stalled = "module.Channel._brpop_start = lambda *_, **__: None"  # it never polls the broker
    quick = (
        "module.STALL_POLL_SECONDS, module.STALL_SECONDS, module.CHILD_START_SECONDS = 0.2, 4, 1"
    )
    worker = start(
        patch_on_import("core.celery_app", stalled) + patch_on_import("worker.supervisor", quick)
    )
    assert worker.wait(90) == 0
    assert "jobs are queued, and this worker has run none" in (tmp_path / "log").read_text()
    assert {store.get(job.id).status for job in jobs} == {Status.QUEUED}

    start("")
    until(
        lambda: all(store.get(job.id).status is Status.SUCCEEDED for job in jobs),
        "all jobs succeed",
        90,
    )


def test_a_worker_that_does_not_stop_by_itself_is_killed(
    start: Start, jobs: list[Job], store: JobStore, tmp_path: Path
) -> None:
    """Its main thread may hang."""
    stalled = (
        "import signal\n"
        "def stuck(*_, **__):\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "module.Channel._brpop_start = stuck"
    )
    quick = (
        "module.STALL_POLL_SECONDS, module.STALL_SECONDS = 0.2, 4\n"
        "module.CHILD_START_SECONDS, module.SHUTDOWN_SECONDS = 1, 1"
    )
    worker = start(
        patch_on_import("core.celery_app", stalled) + patch_on_import("worker.supervisor", quick)
    )

    assert worker.wait(90) == 1
    assert {store.get(job.id).status for job in jobs} == {Status.QUEUED}
    assert "this worker does not stop by itself" in (tmp_path / "log").read_text()
