"""The supervisor of several devices: real processes; nvidia-smi and the cards are stubs."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from fleet import TINY, patch_on_import
from PIL import Image
from processes import environment

from core import errors
from core.celery_app import make_celery, notify_workers
from core.images import codec
from core.jobs.models import JobInput, Status, new_job_id
from core.jobs.store import JobStore
from core.storage.blobs import Blobs
from core.style.spec import StyleSpec
from worker import device_supervisor, process
from worker.device_supervisor import Device, DeviceSupervisor, list_devices
from worker.settings import WorkerSettings

CARDS = "0, GPU-aaaa, NVIDIA TITAN Xp\n1, GPU-bbbb, NVIDIA TITAN RTX\n"
HOST = socket.gethostname()
Until = Callable[..., None]


@pytest.fixture
def install_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Put an nvidia-smi with this output first on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def install(output: str) -> None:
        (folder / "cards").write_text(output)
        program = folder / "new"
        program.write_text(f"#!/bin/sh\ncat {folder / 'cards'}\n")
        program.chmod(0o755)
        program.replace(folder / "nvidia-smi")

    return install


# ---------------------------------------------------------------------- the devices


@pytest.mark.parametrize(
    ("wanted", "visible", "numbers"),
    [
        ("all", None, ["0", "1"]),
        ("1,cpu,1", None, ["1", "cpu"]),
        ("all", "1", ["1"]),
        ("all", "GPU-aa", ["0"]),
        ("", None, []),
    ],
    ids=["all", "by number", "visible by number", "visible by uuid", "not set"],
)
def test_the_devices_are_those_of_nvidia_smi_that_cuda_may_see(
    install_smi: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    wanted: str,
    visible: str | None,
    numbers: list[str],
) -> None:
    install_smi(CARDS)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    assert [device.number for device in list_devices(wanted)] == numbers


def test_an_absent_device_is_refused_and_a_number_is_taken_without_nvidia_smi(
    install_smi: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    install_smi(CARDS)
    with pytest.raises(errors.BadSettings, match="no card 2"):
        list_devices("0,2")
    install_smi("")
    with pytest.raises(errors.BadSettings, match="finds no card"):
        list_devices("all")
    monkeypatch.setattr(device_supervisor, "list_cards", lambda: None)
    assert list_devices("3") == [Device("3")]


# ---------------------------------------------------------------------- small processes


class Program:
    """A worker that writes how it is bound, and ends as a file says; "" : it goes on."""

    CODE = (
        "import os, pathlib, sys, time\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "name = os.environ['CUDA_VISIBLE_DEVICES'] or 'cpu'\n"
        "names = [f'IMPASTO_WORKER_{end}' for end in ('DEVICE', 'NAME', 'DEVICES')]\n"
        "with (folder / f'{name}.starts').open('a') as file:\n"
        "    file.write('|'.join(os.environ[one] for one in names) + '\\n')\n"
        "while not (code := (folder / f'{name}.code')).exists(): time.sleep(0.02)\n"
        "sys.exit(int(code.read_text()))\n"
    )

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.command = (sys.executable, "-c", self.CODE, str(folder))

    def starts(self, name: str) -> list[str]:
        file = self._folder / f"{name}.starts"
        return file.read_text().splitlines() if file.exists() else []

    def end(self, name: str, code: int) -> None:
        part = self._folder / "part"
        part.write_text(str(code))
        part.replace(self._folder / f"{name}.code")

    def go_on(self, name: str) -> None:
        (self._folder / f"{name}.code").unlink()


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


Supervise = Callable[..., DeviceSupervisor]


@pytest.fixture
def supervise(
    program: Program, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Supervise]:
    monkeypatch.setattr(device_supervisor, "STORE_SECONDS", 0.0)
    made: list[DeviceSupervisor] = []

    def make(
        devices: Sequence[Device], cards: Callable[[], Sequence[Device] | None] = lambda: None
    ) -> DeviceSupervisor:
        made.append(DeviceSupervisor(devices, store, WorkerSettings(), program.command, cards))
        return made[-1]

    yield make
    for supervisor in made:
        supervisor.stop()


TWO = [Device("0", "GPU-aaaa", "NVIDIA TITAN Xp"), Device("1", "GPU-bbbb", "NVIDIA TITAN RTX")]


def test_each_worker_is_bound_to_its_device_and_one_that_ends_starts_again_later(
    supervise: Supervise, program: Program, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_supervisor, "MIN_BACKOFF_SECONDS", 0.2)
    supervisor = supervise([*TWO, Device("cpu")])

    def has_started(name: str, count: int) -> bool:
        supervisor.poll()
        return len(program.starts(name)) == count

    for name in ("GPU-aaaa", "GPU-bbbb", "cpu"):
        until(lambda name=name: has_started(name, 1), name)
    assert program.starts("GPU-bbbb") == [f"cuda|{HOST}/cuda:1|"]
    assert program.starts("cpu") == [f"cpu|{HOST}/cpu|"]

    program.end("GPU-bbbb", 1)
    until(lambda: has_started("GPU-bbbb", 4), "more starts")
    assert supervisor._workers[1]._backoff_seconds >= 0.2 * 2**3, "each waits twice as long"
    assert [len(program.starts(name)) for name in ("GPU-aaaa", "cpu")] == [1, 1]


def test_a_broken_device_is_out_of_service_until_the_operator_resumes_it(
    supervise: Supervise, program: Program, store: JobStore, until: Until
) -> None:
    supervisor = supervise(TWO)
    until(lambda: supervisor.poll() is None and program.starts("GPU-aaaa"), "a start")
    program.end("GPU-aaaa", process.DEVICE_BROKEN)
    until(lambda: supervisor.poll() is None and store.suspensions.list(), "its suspension")

    worker_id = f"{HOST}/cuda:0"
    suspension = store.suspensions.list()[worker_id]
    assert (suspension.kind, suspension.device) == ("out_of_service", "NVIDIA TITAN Xp")
    for _ in range(20):
        assert supervisor.poll() is None
    assert len(program.starts("GPU-aaaa")) == 1
    (shown,) = store.operations.list_workers(5000)
    assert (shown.id, shown.name, shown.suspension) == (worker_id, "", suspension)

    program.go_on("GPU-aaaa")
    store.suspensions.resume(worker_id)
    until(
        lambda: supervisor.poll() is None and len(program.starts("GPU-aaaa")) == 2, "another start"
    )


def test_a_device_that_is_missing_is_not_started_and_without_any_the_supervisor_ends(
    supervise: Supervise, program: Program, store: JobStore, until: Until
) -> None:
    supervisor = supervise(TWO, lambda: TWO[1:])
    until(lambda: supervisor.poll() is None and program.starts("GPU-bbbb"), "the other one")
    assert program.starts("GPU-aaaa") == []
    assert store.suspensions.list()[f"{HOST}/cuda:0"].reason == "its device is missing"

    program.end("GPU-bbbb", process.WRONG_USAGE)
    until(lambda: supervisor.poll() == process.WRONG_USAGE, "its end")


def test_a_drained_worker_stays_away_and_others_go_on(
    supervise: Supervise, program: Program, store: JobStore, until: Until
) -> None:
    supervisor = supervise(TWO)
    store.suspensions.suspend(f"{HOST}/cuda:0", "draining")
    until(lambda: supervisor.poll() is None and program.starts("GPU-aaaa"), "a start")
    program.end("GPU-aaaa", process.DRAINED)
    until(lambda: supervisor.poll() is None and supervisor._workers[0].is_out, "its end")

    assert store.suspensions.list()[f"{HOST}/cuda:0"].kind == "draining"
    store.suspensions.suspend(f"{HOST}/cuda:1", "draining")
    program.end("GPU-bbbb", process.DRAINED)
    until(lambda: supervisor.poll() == 0, "the end of the supervisor")


# ---------------------------------------------------------------------- real workers

# Cards whose arithmetic is the CPU's. A file breaks one of them.
FAKE_CARDS = patch_on_import(
    "core.neural.transfer.planner",
    "import os, pathlib\n"
    "folder = pathlib.Path(os.environ['FAKE_CARDS'])\n"
    "card = os.environ['CUDA_VISIBLE_DEVICES']\n"
    "usual = module.Planner.free_bytes\n"
    "def free(self):\n"
    "    (folder / f'used {card}').touch()\n"
    "    if (folder / f'broken {card}').exists():\n"
    "        raise RuntimeError('CUDA error: the card has fallen off the bus')\n"
    "    return usual(self)\n"
    "module.Planner.free_bytes = free\n",
) + patch_on_import(
    "worker.runner", "module.device.best_device = lambda _: module.device.torch.device('cpu')\n"
)


@pytest.mark.reliability
def test_a_card_that_fails_is_taken_out_of_service_while_the_other_runs_the_jobs(
    tmp_path: Path,
    valkey: object,
    store: JobStore,
    blobs: Blobs,
    photo: Image.Image,
    painting: Image.Image,
    until: Until,
    install_smi: Callable[[str], None],
) -> None:
    install_smi(CARDS)
    (tmp_path / "sitecustomize.py").write_text(TINY + FAKE_CARDS)
    url: str = valkey.url  # type: ignore[attr-defined]
    variables = environment(
        REDIS_URL=url,
        DATA_DIR=str(tmp_path),
        CACHE_DIR=str(tmp_path / "cache"),
        WORKER_DEVICES="all",
    )
    variables |= {"PYTHONPATH": str(tmp_path), "FAKE_CARDS": str(tmp_path)}
    with (tmp_path / "log").open("ab") as log:
        supervisor = subprocess.Popen(
            [sys.executable, "-m", "worker"], env=variables, stdout=log, stderr=log
        )
    try:
        until(lambda: store.get_load().workers == 2, "two workers", 90)
        ids = {worker.id for worker in store.operations.list_workers(5000)}
        assert ids == {f"{HOST}/cuda:0", f"{HOST}/cuda:1"}
        assert {path.name for path in tmp_path.glob("used *")} == {"used GPU-aaaa", "used GPU-bbbb"}

        (tmp_path / "broken GPU-aaaa").touch()
        until(store.suspensions.list, "the broken card", 90)
        suspension = store.suspensions.list()[f"{HOST}/cuda:0"]
        assert (suspension.kind, suspension.reason) == ("out_of_service", "its device fails")
        job_id = _queue_job(store, blobs, url, photo, painting)
        until(lambda: store.get(job_id).status is Status.SUCCEEDED, "its result", 60)
        assert f"{HOST}/cuda:0 is out of service" in (tmp_path / "log").read_text()

        store.suspensions.suspend(f"{HOST}/cuda:1", "draining")
        assert supervisor.wait(60) == 0, "its last worker is drained"
    finally:
        supervisor.send_signal(signal.SIGTERM)
        supervisor.wait(60)


def _queue_job(
    store: JobStore, blobs: Blobs, url: str, photo: Image.Image, painting: Image.Image
) -> str:
    content, style = (blobs.put(codec.encode(picture)) for picture in (photo, painting))
    for digest in (content, style):
        store.reserve(digest)
    spec = StyleSpec(size=64, iterations=2, scales=1).for_pictures()
    job_input = JobInput(content=content, styles=[style], spec=spec.model_dump())
    job = store.create(new_job_id(), job_input)
    app = make_celery(url)
    assert notify_workers(app)
    app.close()
    return job.id
