"""Runs the API with a Valkey of its own; its memory, files and log can be read from outside."""

import http.client
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from processes import environment, valkey_command

from cli.local_service import free_port


class WatchedApi:
    """The two processes, as a context manager. On exit they stop and their folder is deleted.

    changed: Python that the API and its children run before anything else. It replaces a part, or
        removes a guard.
    settings: IMPASTO_*.
    """

    def __init__(self, changed: str = "", **settings: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="impasto-campaign-")
        self.folder = Path(self._folder.name)
        self.blobs = self.folder / "data" / "blobs"
        self.port = free_port()
        # Campaigns send much from one address. Admission control would answer for what they test.
        self.changed, self._settings = changed, {"API_MAX_WAIT_SECONDS": "600"} | settings
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "WatchedApi":
        (self.folder / "sitecustomize.py").write_text(self.changed)
        valkey_port = free_port()
        self._processes.append(subprocess.Popen(valkey_command(valkey_port, self.folder)))
        redis_url = f"redis://127.0.0.1:{valkey_port}/0"
        data, port = str(self.folder / "data"), str(self.port)
        variables = environment(REDIS_URL=redis_url, DATA_DIR=data, API_PORT=port, **self._settings)
        with (self.folder / "api.log").open("ab") as log:
            command = [sys.executable, "-m", "api"]
            api = subprocess.Popen(
                command, env=variables | {"PYTHONPATH": str(self.folder)}, stdout=log, stderr=log
            )
        self._processes.append(api)
        self.pid = api.pid
        end = time.monotonic() + 30
        while self.get("/livez") != 200:
            assert time.monotonic() < end, self.log
            time.sleep(0.05)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: object, trace: TracebackType | None
    ) -> None:
        for process in reversed(self._processes):
            process.terminate()
            process.wait(20)
        self._folder.cleanup()

    def get(self, path: str) -> int:
        """Send GET; return the status, or 0 if there is no response."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.request("GET", path)
            return connection.getresponse().status
        except OSError:
            return 0
        finally:
            connection.close()

    @property
    def log(self) -> str:
        """The log so far."""
        return (self.folder / "api.log").read_text()

    @property
    def peak_kb(self) -> int:
        """The peak resident memory of the API's own process, in KiB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0])

    def parts(self) -> list[str]:
        """Names of files in the folder of unfinished uploads."""
        return sorted(path.name for path in (self.blobs / "parts").glob("*"))

    def digests(self) -> set[str]:
        """The digests of all blobs on disk."""
        files = (
            path
            for path in self.blobs.glob("??/*")
            if path.is_file() and len(path.parent.name) == 2
        )
        return {f"sha256:{path.parent.name}{path.name}" for path in files}
