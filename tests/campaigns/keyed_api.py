"""Runs a real Valkey and a real `python -m api` that requires API keys, on free ports."""

import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path
from types import TracebackType

from processes import environment, valkey_command

from cli.local_service import free_port


class KeyedApi:
    """The two processes, as a context manager: they answer inside it and are stopped after it.

    changed: Python that the API runs before it starts, for example to remove a guard.
    """

    def __init__(self, folder: Path, changed: str = "", **settings: str) -> None:
        self.folder, self.port, self._store_port = folder, free_port(), free_port()
        self.redis_url = f"redis://127.0.0.1:{self._store_port}/0"
        variables = {
            "API_PORT": str(self.port),
            "DATA_DIR": str(folder / "data"),
            "REDIS_URL": self.redis_url,
        }
        variables |= {"API_KEYS": "required"} | settings
        self._environment = environment(**variables)
        self._program = [sys.executable, "-c", f"{changed}\nfrom api.__main__ import main; main()"]
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "KeyedApi":
        with (self.folder / "api.log").open("ab") as log:
            for program in (valkey_command(self._store_port, self.folder), self._program):
                self._processes.append(
                    subprocess.Popen(program, env=self._environment, stdout=log, stderr=log)
                )
        end = time.monotonic() + 30
        while not self._is_ready():
            if time.monotonic() > end:
                self.stop()
                raise RuntimeError((self.folder / "api.log").read_text())
            time.sleep(0.05)
        return self

    def _is_ready(self) -> bool:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/livez")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the API first, then its store."""
        for process in reversed(self._processes):
            process.terminate()
            process.wait(20)
        self._processes = []
