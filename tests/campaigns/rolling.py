"""Graceful restarts (SIGTERM): open requests are answered, and a worker releases its job.

python tests/campaigns/rolling.py --seed 1 --restarts 100
python tests/campaigns/rolling.py --seed 1 --restarts 10 --without grace
"""

import json
import os
import random
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from fleet import Fleet
from history import History, events, percentile, report_violations
from kills import PHOTO, Caller

UPLOADS = 8
RELEASE_SECONDS = 10.0
TIMEOUT_SECONDS = 60.0
PARAMETERS = {"size": "64", "iterations": "5000", "scales": "1"}
CONTROLS = {
    # SIGTERM kills at once.
    "grace": (
        "import signal, sys\n"
        "stock = signal.signal\n"
        "def without_sigterm(number, action):\n"
        "    return None if number == signal.SIGTERM else stock(number, action)\n"
        "signal.signal = without_sigterm"
    )
}


class Upload(threading.Thread):
    """A slow upload that the API has started to read before it gets SIGTERM."""

    def __init__(self, port: int, seconds: float) -> None:
        super().__init__(daemon=True)
        self._port, self._seconds = port, seconds
        self.begun = threading.Event()
        self.answer = b""

    def run(self) -> None:
        part = (
            b'--frontier\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        )
        body = part + PHOTO + b"\r\n--frontier--\r\n"
        lines = [
            "POST /v1/images HTTP/1.1",
            "Host: localhost",
            "Expect: 100-continue",
            "Connection: close",
            "Content-Type: multipart/form-data; boundary=frontier",
            f"Content-Length: {len(body)}",
        ]
        head = "\r\n".join([*lines, "", ""])
        try:
            with socket.create_connection(
                ("127.0.0.1", self._port), timeout=TIMEOUT_SECONDS
            ) as connection:
                connection.sendall(head.encode())
                connection.recv(100)  # "100 Continue"
                self.begun.set()
                for place in range(0, len(body), max(1, len(body) // 10)):
                    time.sleep(self._seconds / 10)  # like a slow connection
                    connection.sendall(body[place : place + max(1, len(body) // 10)])
                while data := connection.recv(65536):
                    self.answer += data
        except OSError as error:
            self.answer += f" {error}".encode()
        finally:
            self.begun.set()


def _wait_until(condition: Callable[[], object], name: str) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(name)
        time.sleep(0.02)


class Campaign:
    """The restarts of one fleet."""

    def __init__(self, fleet: Fleet, caller: Caller, history: History, rng: random.Random) -> None:
        self._fleet, self._caller, self._history, self._rng = fleet, caller, history, rng
        self._store = fleet.redis()
        self._job = ""

    def api(self) -> None:
        """Restart the API during uploads."""
        uploads = [Upload(self._fleet.api_port, self._rng.uniform(0.3, 3)) for _ in range(UPLOADS)]
        for upload in uploads:
            upload.start()
        for upload in uploads:
            upload.begun.wait()
        old, began = self._fleet.api.pid, time.monotonic()
        os.kill(old, signal.SIGTERM)
        for upload in uploads:
            upload.join()
        _wait_until(lambda: self._fleet.api.pid != old, "a new API")
        self._caller.ask("GET", "/readyz")
        answers = [
            upload.answer.decode(errors="replace").partition("\r\n")[0] for upload in uploads
        ]
        self._history.record("api", answers=answers, seconds=time.monotonic() - began)

    def worker(self) -> None:
        """Restart the worker during a run."""
        worker, job = self._fleet.workers[0], self._running()
        reached, began, old = self._progress(), time.monotonic(), worker.pid
        os.kill(old, signal.SIGTERM)
        _wait_until(lambda: self._status() != "running" or worker.pid != old, "a released job")
        seconds, status = time.monotonic() - began, self._status()
        attempt = int(self._store.hget(f"impasto:job:{job}", "attempt"))
        _wait_until(lambda: worker.pid != old, "a new worker")
        _wait_until(lambda: self._status() == "running", "a running job")
        again_at = self._progress()
        _wait_until(
            lambda: self._status() != "running" or self._progress() > max(reached, again_at),
            "progress",
        )
        self._history.record(
            "worker",
            job=job,
            seconds=seconds,
            status=status,
            attempt=attempt,
            reached=reached,
            again_at=again_at,
        )

    def _running(self) -> str:
        if not self._job or self._status() not in {"queued", "running"} or self._progress() > 4000:
            self._job = self._caller.submit(PARAMETERS, f"job-{time.monotonic()}")
        before, more = self._progress(), self._rng.randrange(1, 40)
        _wait_until(
            lambda: self._status() == "running" and self._progress() > before + more,
            "a running job",
        )
        return self._job

    def _status(self) -> str:
        return str(self._store.hget(f"impasto:job:{self._job}", "status"))

    def _progress(self) -> int:
        progress = self._store.hget(f"impasto:job:{self._job}", "progress")
        return int(json.loads(progress)["iteration"]) if progress else 0

    def finish(self) -> None:
        """Cancel the last job."""
        if self._job:
            self._caller.ask("POST", f"/v1/jobs/{self._job}/cancel")
            _wait_until(lambda: self._status() not in {"queued", "running"}, "its end")
        self._history.record("end")


def campaign(
    folder: Path, history: History, *, seed: int, restarts: int, without: str | None = None
) -> None:
    """Run the campaign and write its history."""
    rng = random.Random(seed)
    history.record("begin", seed=seed, restarts=restarts, without=without)
    fleet = Fleet(folder, workers=1, changed=CONTROLS.get(without or "", ""))
    with fleet, Caller(fleet.url) as caller:
        rolling = Campaign(fleet, caller, history, rng)
        for number in range(restarts):
            [rolling.api, rolling.worker][number % 2]()
        rolling.finish()


def violations(file: Path) -> list[str]:
    """Return the violations that the history shows."""
    found = [
        f"an open upload: {answer or 'no response'}"
        for event in events(file, "api")
        for answer in event["answers"]
        if " 201 " not in answer
    ]
    for event in events(file, "worker"):
        if event["status"] not in {"queued", "succeeded"}:
            found.append(f"{event['job']} is {event['status']} after SIGTERM of its worker")
        if event["seconds"] > RELEASE_SECONDS:
            found.append(f"{event['job']} was released after {event['seconds']:.1f} s")
        if event["status"] == "queued" and event["again_at"] < event["reached"]:
            found.append(f"{event['job']} fell back from {event['reached']} to {event['again_at']}")
    return found if any(events(file, "end")) else [*found, "the campaign did not finish"]


def _figures(file: Path) -> dict[str, Any]:
    seconds_by_kind = {
        kind: [event["seconds"] for event in events(file, kind)] for kind in ("api", "worker")
    }
    return {
        f"{kind}, {len(seconds)} restarts: p50, max": (
            f"{percentile(seconds, 0.5):.2f}, {max(seconds):.2f} s"
        )
        for kind, seconds in seconds_by_kind.items()
        if seconds
    }


@click.command()
@click.option("--seed", default=1)
@click.option("--restarts", default=200, help="Half of the API, half of the worker.")
@click.option("--history", "file", type=click.Path(path_type=Path), default=None)
@click.option("--without", type=click.Choice([*CONTROLS]), default=None)
def main(seed: int, restarts: int, file: Path | None, without: str | None) -> None:
    """Restart API and worker and check uploads and jobs."""
    with tempfile.TemporaryDirectory(prefix="impasto-rolling-") as folder:
        history = History(file or Path(folder) / "history.jsonl")
        campaign(Path(folder) / "fleet", history, seed=seed, restarts=restarts, without=without)
        for name, value in _figures(history.file).items():
            click.echo(f"| {name} | {value} |")
        report_violations(violations(history.file))


if __name__ == "__main__":
    main()
