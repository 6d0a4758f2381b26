"""The whole service as a user starts it: `impasto up` in a process of its own, with its own data, on a free port."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import psutil
import pytest

from cli.local_service import free_port
from core.neural.weights.cache import WeightsCache
from impasto import Client


class Service:
    """`impasto up`, to start, stop, and hurt."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.port, self._log_path = free_port(), folder / "up.log"
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {
            **os.environ,
            "IMPASTO_DATA_DIR": str(folder / "my data"),
            "IMPASTO_CACHE_DIR": str(cache),
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self.client = Client(self.url)

    def start(self) -> None:
        command = [sys.executable, "-m", "cli", "up", "--port", str(self.port)]
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        end = time.monotonic() + 60
        while not self.client.ready():
            assert self._process.poll() is None, self._log_path.read_text()
            assert time.monotonic() < end, self._log_path.read_text()
            time.sleep(0.05)

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def stop(self) -> int:
        """Ctrl-C; the exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(60)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def processes(self) -> list[psutil.Process]:
        """All that it started, however deep."""
        assert self._process is not None
        return psutil.Process(self._process.pid).children(recursive=True)

    def find(self, *words: str) -> list[psutil.Process]:
        """Its processes whose command line has all the words."""
        found = []
        for process in self.processes():
            try:
                line = " ".join(process.cmdline())
            except psutil.Error:
                continue
            # Whole words: the path of the interpreter may contain them as well.
            if all(re.search(rf"(^|[ /]){re.escape(word)}( |$)", line) for word in words):
                found.append(process)
        return found

    @property
    def log(self) -> str:
        return self._log_path.read_text()


@pytest.fixture(scope="module")
def _service(tmp_path_factory: pytest.TempPathFactory, weights: WeightsCache) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("service"), weights, {}) as running:
        yield running


@pytest.fixture
def service(_service: Service) -> Service:
    """The module's service, which a test may kill or stop: the next test finds it running again."""
    if not _service.is_running():
        _service.start()
    return _service


@pytest.fixture
def keyed_service(tmp_path: Path, weights: WeightsCache) -> Iterator[Service]:
    """A service of the test's own that asks for API keys."""
    with serving(tmp_path, weights, {"IMPASTO_API_KEYS": "required"}) as running:
        yield running


@pytest.fixture(scope="module")
def shared_service(
    tmp_path_factory: pytest.TempPathFactory, weights: WeightsCache
) -> Iterator[Service]:
    """A service for all tests of the page, which do not stop it."""
    with serving(
        tmp_path_factory.mktemp("service"), weights, {"IMPASTO_WORKER_PREVIEW_SECONDS": "0.2"}
    ) as running:
        yield running


@contextmanager
def serving(folder: Path, weights: WeightsCache, settings: dict[str, str]) -> Iterator[Service]:
    """Started, and gone afterwards with all that it started."""
    running = Service(folder, weights.folder.parent)
    running.environment |= settings
    running.start()
    before = running.processes()
    yield running
    if running.is_running():
        before = running.processes()
        running.stop()
    _, alive = psutil.wait_procs(before, 20)
    assert not alive, alive
    running.client.__exit__(None, None, None)


@pytest.fixture(scope="session")
def pictures(
    tmp_path_factory: pytest.TempPathFactory, photo: Any, painting: Any
) -> tuple[Path, Path]:
    """A small photo and a small painting as files."""
    folder = tmp_path_factory.mktemp("pictures")
    photo.save(folder / "photo.jpg", quality=95)
    painting.save(folder / "painting.png")
    return folder / "photo.jpg", folder / "painting.png"


@pytest.fixture
def submit(service: Service, pictures: tuple[Path, Path]) -> Callable[..., str]:
    """Send a job; its id. It takes some ten seconds on two cores unless told otherwise."""

    def send(**parameters: str) -> str:
        given = {"size": "128", "iterations": "120", "scales": "1", **parameters}
        return service.client.submit(*pictures, **given).id

    return send
