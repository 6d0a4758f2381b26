"""Runs a real Valkey and a real `python -m api` on free ports, in a folder of their own.

For a control run, one guard of the API can be removed.
"""

import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from processes import environment, valkey_command

from cli.local_service import free_port

# Programs that replace `python -m api` in a control run, by the guard that they remove.
CONTROLS = {
    "protocol": (
        "import uvicorn\n"
        "uvicorn.run('api.app:create_app', factory=True, host='127.0.0.1', port={port})"
    ),
    "guard": (
        "import api.middleware.host_guard as g; g.HostGuard.find_refusal = lambda *_: None\n"
        "from api.__main__ import main; main()"
    ),
    "validation": (
        "import api.app as a; from fastapi import exception_handlers as h, exceptions as e\n"
        "stock = a.problems.install\n"
        "def install(app):\n"
        "    stock(app)\n"
        "    handler = h.request_validation_exception_handler\n"
        "    app.add_exception_handler(e.RequestValidationError, handler)\n"
        "a.problems.install = install; from api.__main__ import main; main()"
    ),
}


class ApiProcess:
    """The two processes, as a context manager: they answer inside it and are stopped after it."""

    def __init__(self, folder: Path, without: str | None = None, **settings: str) -> None:
        self.folder, self.port = folder, free_port()
        self.data, self.temporary, self.log = folder / "data", folder / "tmp", folder / "api.log"
        for path in (self.data, self.temporary, folder / "valkey"):
            path.mkdir(parents=True)
        self._store_port = free_port()
        variables = {"API_PORT": str(self.port), "DATA_DIR": str(self.data), "LOG_FORMAT": "json"}
        variables |= {"REDIS_URL": self.redis_url} | settings
        self._environment = environment(**variables)
        self._environment["TMPDIR"] = str(self.temporary)
        control = ["-c", CONTROLS[without].format(port=self.port)] if without else ["-m", "api"]
        self._command = [sys.executable, *control]
        self._processes: list[subprocess.Popen[bytes]] = []

    @property
    def redis_url(self) -> str:
        return f"redis://:hunter2@127.0.0.1:{self._store_port}/0"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self._processes[1].pid

    def __enter__(self) -> "ApiProcess":
        valkey = valkey_command(self._store_port, self.folder / "valkey", requirepass="hunter2")
        try:
            self._start(valkey, self._store_port)
            self._start(self._command, self.port)
        except BaseException:
            self.stop()
            raise
        return self

    def _start(self, command: list[str], port: int) -> None:
        with self.log.open("ab") as log:
            process = subprocess.Popen(command, env=self._environment, stdout=log, stderr=log)
        self._processes.append(process)
        until = time.monotonic() + 30
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(self.log.read_text())
            time.sleep(0.02)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop the API first, with time to answer its open requests."""
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes = []

    def restart_api(self, **settings: str) -> None:
        """Start the API again, with other settings. Its store keeps running."""
        process = self._processes.pop()
        process.send_signal(signal.SIGTERM)
        process.wait(15)
        self._environment |= environment(**settings)
        self._start(self._command, self.port)

    def leftovers(self) -> Iterator[str]:
        """Every file that requests have left on the disk."""
        for folder in (self.data, self.temporary):
            for path in folder.rglob("*"):
                if path.is_file() and path.name not in ("deletions.lock", "store.identity"):
                    yield str(path.relative_to(self.folder))
