"""A real Valkey and a real `python -m api` that requires keys, on free ports, in a folder of their own."""

import subprocess
import sys
import time
from http.client import HTTPConnection
from pathlib import Path
from types import TracebackType

from processes import environment, valkey_command

from cli.local_service import free_port


class KeyedApi:
    """The two processes. A context manager: answering inside, gone afterwards.

    `changed` is Python that the API runs before it starts: a guard taken out.
    """

    def __init__(self, folder: Path, changed: str = "", **settings: str) -> None:
        self.folder, self.port, self._store_port = folder, free_port(), free_port()
        self.redis_url = f"redis://127.0.0.1:{self._store_port}/0"
        own = {
            "API_PORT": str(self.port),
            "DATA_DIR": str(folder / "data"),
            "REDIS_URL": self.redis_url,
        }
        own |= {"API_KEYS": "required"} | settings
        self._environment = environment(**own)
        self._program = [sys.executable, "-c", f"{changed}\nfrom api.__main__ import main; main()"]
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "KeyedApi":
        with (self.folder / "api.log").open("ab") as log:
            for program in (valkey_command(self._store_port, self.folder), self._program):
                self._processes.append(
                    subprocess.Popen(program, env=self._environment, stdout=log, stderr=log)
                )
        end = time.monotonic() + 30
        while not self._ready():
            if time.monotonic() > end:
                self.stop()
                raise RuntimeError((self.folder / "api.log").read_text())
            time.sleep(0.05)
        return self

    def _ready(self) -> bool:
        line = HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            line.request("GET", "/readyz")
            return line.getresponse().status == 200
        except OSError:
            return False
        finally:
            line.close()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """The API first, then its store."""
        for process in reversed(self._processes):
            process.terminate()
            process.wait(20)
        self._processes = []
