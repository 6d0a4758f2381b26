"""Restarts in peace (SIGTERM), again and again: requests under way are answered, a painter hands its job back.

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
from history import History, events, judged, percentile
from kills import PHOTO, Caller

UPLOADS = 8
HAND_BACK_SECONDS = 10.0
PATIENCE_SECONDS = 60.0
PARAMETERS = {"size": "64", "iterations": "5000", "scales": "1"}
CONTROLS = {
    # Who is asked to go, goes.
    "grace": (
        "import signal, sys\n"
        "stock = signal.signal\n"
        "def loose(number, action):\n"
        "    return None if number == signal.SIGTERM else stock(number, action)\n"
        "signal.signal = loose"
    )
}


class Upload(threading.Thread):
    """One that the API has begun to read when it is asked to go; the rest comes later."""

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
        head = "POST /v1/images HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nConnection: close\r\n"
        head += f"Content-Type: multipart/form-data; boundary=frontier\r\nContent-Length: {len(body)}\r\n\r\n"
        try:
            with socket.create_connection(
                ("127.0.0.1", self._port), timeout=PATIENCE_SECONDS
            ) as line:
                line.sendall(head.encode())
                line.recv(100)  # go on
                self.begun.set()
                for place in range(0, len(body), max(1, len(body) // 10)):
                    time.sleep(self._seconds / 10)  # as a slow line does
                    line.sendall(body[place : place + max(1, len(body) // 10)])
                while data := line.recv(65536):
                    self.answer += data
        except OSError as error:
            self.answer += f" {error}".encode()
        finally:
            self.begun.set()


def _until(true: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not true():
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.02)


class Campaign:
    """The restarts of one fleet."""

    def __init__(self, fleet: Fleet, caller: Caller, history: History, dice: random.Random) -> None:
        self._fleet, self._caller, self._history, self._dice = fleet, caller, history, dice
        self._store = fleet.redis()
        self._job = ""

    def api(self) -> None:
        """Uploads are under way."""
        uploads = [Upload(self._fleet.api_port, self._dice.uniform(0.3, 3)) for _ in range(UPLOADS)]
        for upload in uploads:
            upload.start()
        for upload in uploads:
            upload.begun.wait()
        old, began = self._fleet.api.pid, time.monotonic()
        os.kill(old, signal.SIGTERM)
        for upload in uploads:
            upload.join()
        _until(lambda: self._fleet.api.pid != old, "a new API")
        self._caller.ask("GET", "/readyz")
        words = [upload.answer.decode(errors="replace").partition("\r\n")[0] for upload in uploads]
        self._history.tell("api", answers=words, seconds=time.monotonic() - began)

    def worker(self) -> None:
        """It is painting."""
        worker, job = self._fleet.workers[0], self._running()
        reached, began, old = self._progress(), time.monotonic(), worker.pid
        os.kill(old, signal.SIGTERM)
        _until(lambda: self._status() != "running" or worker.pid != old, "handed back")
        seconds, status = time.monotonic() - began, self._status()
        attempt = int(self._store.hget(f"impasto:job:{job}", "attempt"))
        _until(lambda: worker.pid != old, "a new worker")
        _until(lambda: self._status() == "running", "a painter")
        again_at = self._progress()
        _until(
            lambda: self._status() != "running" or self._progress() > max(reached, again_at),
            "it goes on",
        )
        self._history.tell(
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
        before, more = self._progress(), self._dice.randrange(1, 40)
        _until(
            lambda: self._status() == "running" and self._progress() > before + more, "a painter"
        )
        return self._job

    def _status(self) -> str:
        return str(self._store.hget(f"impasto:job:{self._job}", "status"))

    def _progress(self) -> int:
        told = self._store.hget(f"impasto:job:{self._job}", "progress")
        return int(json.loads(told)["iteration"]) if told else 0

    def last(self) -> None:
        """What became of the job."""
        if self._job:
            self._caller.ask("POST", f"/v1/jobs/{self._job}/cancel")
            _until(lambda: self._status() not in {"queued", "running"}, "its end")
        self._history.tell("end")


def campaign(
    folder: Path, history: History, *, seed: int, restarts: int, without: str | None = None
) -> None:
    """Run it and tell the history."""
    dice = random.Random(seed)
    history.tell("begin", seed=seed, restarts=restarts, without=without)
    fleet = Fleet(folder, workers=1, changed=CONTROLS.get(without or "", ""))
    with fleet, Caller(fleet.url) as caller:
        under_way = Campaign(fleet, caller, history, dice)
        for number in range(restarts):
            [under_way.api, under_way.worker][number % 2]()
        under_way.last()


def violations(file: Path) -> list[str]:
    """What must not be, by the history alone."""
    found = [
        f"an upload under way: {answer or 'no answer'}"
        for event in events(file, "api")
        for answer in event["answers"]
        if " 201 " not in answer
    ]
    for event in events(file, "worker"):
        if event["status"] not in {"queued", "succeeded"}:
            found.append(f"{event['job']} is {event['status']} after its painter was asked to go")
        if event["seconds"] > HAND_BACK_SECONDS:
            found.append(f"{event['job']} was handed back after {event['seconds']:.1f} s")
        if event["status"] == "queued" and event["again_at"] < event["reached"]:
            found.append(f"{event['job']} fell back from {event['reached']} to {event['again_at']}")
    return found if any(events(file, "end")) else [*found, "the campaign did not come to its end"]


def _figures(file: Path) -> dict[str, Any]:
    told = {kind: [event["seconds"] for event in events(file, kind)] for kind in ("api", "worker")}
    return {
        f"{kind}, {len(seconds)} restarts: p50, most": f"{percentile(seconds, 0.5):.2f}, {max(seconds):.2f} s"
        for kind, seconds in told.items()
        if seconds
    }


@click.command()
@click.option("--seed", default=1)
@click.option("--restarts", default=200, help="Half of the API, half of the worker.")
@click.option("--history", "file", type=click.Path(path_type=Path), default=None)
@click.option("--without", type=click.Choice([*CONTROLS]), default=None)
def main(seed: int, restarts: int, file: Path | None, without: str | None) -> None:
    """Restart and watch."""
    with tempfile.TemporaryDirectory(prefix="impasto-rolling-") as folder:
        history = History(file or Path(folder) / "history.jsonl")
        campaign(Path(folder) / "fleet", history, seed=seed, restarts=restarts, without=without)
        for name, value in _figures(history.file).items():
            click.echo(f"| {name} | {value} |")
        judged(violations(history.file))


if __name__ == "__main__":
    main()
