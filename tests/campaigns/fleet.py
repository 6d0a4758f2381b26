"""A whole service as processes: Valkey, API, workers, each started again when it dies, as a container's runtime does.

To be hurt: every process can be killed or frozen by what it is. Knows no campaign.
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

LOOK_SECONDS = 0.05
START_SECONDS = 180  # on a machine that others use as well
LIFE_MS = 5000  # a worker says once a second that it lives, and does not count after this

_LATE = """
import importlib.util, sys
class Late:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != {module!r}:
            return None
        sys.meta_path.remove(cls)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        def load_and_change(module):
            load(module)
            exec({code!r}, {{'module': module}})
        spec.loader.exec_module = load_and_change
        return spec
sys.meta_path.insert(0, Late)
"""


def late(module: str, code: str) -> str:
    """For `changed`: code that runs once a process has imported the module, and finds it as `module`.

    So that what needs torch is changed where torch is, and loaded nowhere else.
    """
    return _LATE.format(module=module, code=code)


# A network of 4 channels with weights of chance: where it does not matter what is painted, but how often.
TINY = late(
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
    """One process, and the word that it is to run."""

    def __init__(
        self, name: str, command: list[str], environment: Mapping[str, str], log: Path
    ) -> None:
        self.name, self._command, self._environment, self._log = name, command, environment, log
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted = False

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        self._wanted = True
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log
            )

    def restart_if_dead(self) -> None:
        if self._wanted and self._process is not None and self._process.poll() is not None:
            self.start()

    def kill(self) -> None:
        """With kill -9; whoever watches starts it again."""
        if self._process is not None:
            self._process.kill()

    def stop_at_once(self) -> None:
        """For good, with kill -9."""
        self._wanted = False
        self.kill()

    def stop(self) -> None:
        """For good, in peace if it can."""
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
        """Of a worker: its pool."""
        try:
            return [
                one
                for one in psutil.Process(self.pid).children()
                if "spawn_main" in " ".join(one.cmdline())
            ]
        except psutil.Error:
            return []


class Fleet:
    """A context manager: serving inside, gone afterwards."""

    def __init__(
        self,
        folder: Path,
        *,
        workers: int = 2,
        store: Mapping[str, str] | None = None,
        changed: str = "",
        tiny: bool = False,
        through: int | None = None,
        **settings: str,
    ) -> None:
        """store: options of Valkey. changed: Python that every process of ours runs first, a guard taken out.

        tiny: paint with TINY. through: a port that leads to the store's; our processes then use it.
        settings: IMPASTO_*.
        """
        self.folder, self.store_port, self.api_port = folder, free_port(), free_port()
        self.data = folder / "data"
        for made in (folder / "valkey", folder / "changed", self.data):
            made.mkdir(parents=True, exist_ok=True)
        changed = TINY * tiny + changed
        (folder / "changed" / "sitecustomize.py").write_text(changed)
        own = {
            "REDIS_URL": f"redis://127.0.0.1:{through or self.store_port}/0",
            "DATA_DIR": str(self.data),
            "CACHE_DIR": str(folder / "cache" if tiny else Settings().cache_dir),
            "API_PORT": str(self.api_port),
            "WORKER_THREADS": "1",
            "WORKER_CHECKPOINT_SECONDS": "0.1",
            **settings,
        }
        ours = environment(**own)
        if changed:
            ours["PYTHONPATH"] = str(folder / "changed")
        valkey = valkey_command(self.store_port, folder / "valkey", **(store or {}))
        python = sys.executable
        self.valkey = Program("valkey", valkey, environment(), folder / "valkey.log")
        self.api = Program("api", [python, "-m", "api"], ours, folder / "api.log")
        self.workers = [
            Program(
                f"worker-{number}", [python, "-m", "worker"], ours, folder / f"worker-{number}.log"
            )
            for number in range(workers)
        ]
        self._over = threading.Event()
        self._watch = threading.Thread(target=self._restart_dead, name="fleet", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.api_port}"

    def redis(self) -> Any:
        """The store itself, past everything."""
        return redis.Redis(port=self.store_port, decode_responses=True, socket_timeout=5)

    def __enter__(self) -> "Fleet":
        try:
            for program in self._programs():
                program.start()
            self._watch.start()
            self._until_serving()
        except BaseException:
            self.stop()
            raise
        return self

    def _until_serving(self) -> None:
        until = time.monotonic() + START_SECONDS
        while not self.is_serving():
            if time.monotonic() > until:
                raise RuntimeError(
                    f"the fleet does not start, see {self.folder}: {self._last_words()}"
                )
            time.sleep(LOOK_SECONDS)

    def _last_words(self) -> dict[str, str]:
        """Of each program, by its log: where only the test's output is kept, they are all there is."""
        return {
            log.name: log.read_text(errors="replace")[-300:]
            for log in sorted(self.folder.glob("*.log"))
        }

    def is_serving(self) -> bool:
        """Whether the API is ready and every worker has said that it lives, of late."""
        return self._ready() and self._live_workers() == len(self.workers)

    def _ready(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/readyz", timeout=2, trust_env=False).status_code == 200
        except httpx2.HTTPError:
            return False

    def _live_workers(self) -> int:
        try:
            with self.redis() as client:
                since = int(client.time()[0]) * 1000 - LIFE_MS
                return int(client.zcount("impasto:workers", since, "+inf"))
        except redis.RedisError:
            return 0

    def _programs(self) -> Iterator[Program]:
        yield self.valkey
        yield self.api
        yield from self.workers

    def _restart_dead(self) -> None:
        while not self._over.wait(LOOK_SECONDS):
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
        """The store last."""
        self._over.set()
        if self._watch.is_alive():
            self._watch.join()
        for program in (*self.workers, self.api, self.valkey):
            program.stop()
