"""A whole service as processes: Valkey, API, workers. A dead process restarts, as in a container.

A campaign may kill or freeze each process. Knows no campaign.
"""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx2
import psutil
import redis
from processes import environment, valkey_command

from cli.local_service import free_port
from core.config import Settings

ROOT = Path(__file__).parents[2]
POLL_SECONDS = 0.05
START_SECONDS = 180  # enough on a busy machine, for two workers
LIFE_MS = 5000  # without a heartbeat for this long, a worker is dead; it sends one a second

_PATCH_ON_IMPORT = """
import importlib.util, sys
class PatchOnImport:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != {module!r}:
            return None
        sys.meta_path.remove(cls)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        def load_and_patch(module):
            load(module)
            exec({code!r}, {{'module': module}})
        spec.loader.exec_module = load_and_patch
        return spec
sys.meta_path.insert(0, PatchOnImport)
"""


def patch_on_import(module: str, code: str) -> str:
    """Return a patch that runs `code` when a process imports the module; `module` is its name.

    So a module that needs torch is patched only in processes that load torch anyway.
    """
    return _PATCH_ON_IMPORT.format(module=module, code=code)


# A network of 4 channels with random weights, for campaigns in which the picture does not matter.
TINY = patch_on_import(
    "core.neural.weights.cache",
    "import torch, core.style.vgg_layers\n"
    "core.style.vgg_layers.WIDTHS = (4, 4, 4, 4, 4)\n"
    "tiny = dict(name='vgg16', sha256='tiny', device='cpu', dtype=torch.float32)\n"
    "def load(self, *_):\n"
    "    return module.Network('vgg16', module.random_parameters('vgg16'), **tiny)\n"
    "def entry(self, name):\n"
    "    return module.CacheEntry(name, self.path(name), 0, {'sha256': 'tiny'})\n"
    "module.WeightsCache.load, module.WeightsCache.entry = load, entry\n"
    "module.WeightsCache.has = lambda *_: True",
)


class Program:
    """One process, and whether it shall run."""

    def __init__(
        self, name: str, command: list[str], environment: Mapping[str, str], log: Path
    ) -> None:
        self.name, self._command, self._environment, self._log = name, command, environment, log
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted = False
        self._source: Path | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def run_from(self, source: Path | None) -> None:
        """Run the code of this folder from the next start on; None: the code of this repository."""
        self._source = source

    def start(self) -> None:
        self._wanted = True
        with self._log.open("ab") as log:
            # `python -m` looks for modules in the current folder first.
            self._process = subprocess.Popen(
                self._command,
                env=self._environment,
                stdout=log,
                stderr=log,
                cwd=self._source or ROOT,
            )

    def restart_if_dead(self) -> None:
        if self._wanted and self._process is not None and self._process.poll() is not None:
            self.start()

    def kill(self) -> None:
        """Kill it with -9; the fleet restarts it."""
        if self._process is not None:
            self._process.kill()

    def send(self, number: signal.Signals) -> None:
        """Send a signal. If the process ends, the fleet restarts it."""
        if self._process is not None:
            self._process.send_signal(number)

    def stop_at_once(self) -> None:
        """Kill it with -9 for good."""
        self._wanted = False
        self.kill()

    def stop(self) -> None:
        """Stop it for good with SIGTERM, after 20 s with -9."""
        self._wanted = False
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def children(self) -> list[psutil.Process]:
        """The pool processes of a worker."""
        try:
            return [
                child
                for child in psutil.Process(self.pid).children()
                if "spawn_main" in " ".join(child.cmdline())
            ]
        except psutil.Error:
            return []


class Fleet:
    """All processes of a service. A context manager: inside it the service is ready."""

    def __init__(
        self,
        folder: Path,
        *,
        workers: int = 2,
        apis: int = 1,
        store: Mapping[str, str] | None = None,
        changed: str = "",
        tiny: bool = False,
        through: int | None = None,
        hosts: bool = False,
        **settings: str,
    ) -> None:
        """store: options of Valkey. changed: Python code that each of our processes runs first.

        apis: how many API processes. tiny: use the network TINY. through: the port of a proxy to
        the store for our processes. hosts: each process has a data folder of its own. settings:
        IMPASTO_*.
        """
        self.folder, self.store_port = folder, free_port()
        self._api_ports = [free_port() for _ in range(apis)]
        self.data = folder / "data"
        for subfolder in (folder / "valkey", folder / "changed", self.data):
            subfolder.mkdir(parents=True, exist_ok=True)
        changed = TINY * tiny + changed
        (folder / "changed" / "sitecustomize.py").write_text(changed)
        own = {
            "REDIS_URL": f"redis://127.0.0.1:{through or self.store_port}/0",
            "DATA_DIR": str(self.data),
            "CACHE_DIR": str(folder / "cache" if tiny else Settings().cache_dir),
            "WORKER_THREADS": "1",
            "WORKER_CHECKPOINT_SECONDS": "0.1",
            **settings,
        }
        variables = environment(**own)
        if changed:
            variables["PYTHONPATH"] = str(folder / "changed")
        valkey = valkey_command(self.store_port, folder / "valkey", **(store or {}))
        python = sys.executable
        self.valkey = Program("valkey", valkey, environment(), folder / "valkey.log")

        def make_program(name: str, module: str, port: int) -> Program:
            host = {"IMPASTO_DATA_DIR": str(folder / "hosts" / name)} if hosts else {}
            own = variables | host | {"IMPASTO_API_PORT": str(port)}
            return Program(name, [python, "-m", module], own, folder / f"{name}.log")

        self.apis = [
            make_program(f"api-{number}" if number else "api", "api", port)
            for number, port in enumerate(self._api_ports)
        ]
        self.workers = [
            make_program(f"worker-{number}", "worker", self.api_port) for number in range(workers)
        ]
        self._stop_event = threading.Event()
        self._supervisor = threading.Thread(target=self._restart_dead, name="fleet", daemon=True)

    @property
    def api(self) -> Program:
        """The first API process."""
        return self.apis[0]

    @property
    def api_port(self) -> int:
        return self._api_ports[0]

    @property
    def url(self) -> str:
        return self.urls[0]

    @property
    def urls(self) -> list[str]:
        """The addresses of all API processes."""
        return [f"http://127.0.0.1:{port}" for port in self._api_ports]

    def redis(self) -> Any:
        """A direct connection to the store, without proxy or service."""
        return redis.Redis(port=self.store_port, decode_responses=True, socket_timeout=5)

    def __enter__(self) -> "Fleet":
        try:
            for program in self._programs():
                program.start()
            self._supervisor.start()
            self._wait_until_serving()
        except BaseException:
            self.stop()
            raise
        return self

    def _wait_until_serving(self) -> None:
        deadline = time.monotonic() + START_SECONDS * max(1, len(self.workers) / 2)
        while not self.is_serving():
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"the fleet does not start, see {self.folder}: {self._log_ends()}"
                )
            time.sleep(POLL_SECONDS)

    def _log_ends(self) -> dict[str, str]:
        """The end of each log, for the error message: CI keeps only the output of the test."""
        return {
            log.name: log.read_text(errors="replace")[-300:]
            for log in sorted(self.folder.glob("*.log"))
        }

    def is_serving(self) -> bool:
        """Whether each API is ready and every worker has sent a recent heartbeat."""
        are_ready = all(map(self._is_api_ready, self.urls))
        return are_ready and self._count_live_workers() == len(self.workers)

    def _is_api_ready(self, url: str) -> bool:
        path = "/readyz" if self.workers else "/v1/system"  # without workers it is not ready
        try:
            return httpx2.get(f"{url}{path}", timeout=2, trust_env=False).status_code == 200
        except httpx2.HTTPError:
            return False

    def _count_live_workers(self) -> int:
        try:
            with self.redis() as client:
                since = int(client.time()[0]) * 1000 - LIFE_MS
                return int(client.zcount("impasto:workers", since, "+inf"))
        except redis.RedisError:
            return 0

    def _programs(self) -> Iterator[Program]:
        yield self.valkey
        yield from self.apis
        yield from self.workers

    def _restart_dead(self) -> None:
        while not self._stop_event.wait(POLL_SECONDS):
            for program in self._programs():
                program.restart_if_dead()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop all processes, the store last."""
        self._stop_event.set()
        if self._supervisor.is_alive():
            self._supervisor.join()
        for program in (*self.workers, *self.apis, self.valkey):
            program.stop()
