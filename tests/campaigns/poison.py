"""Jobs that kill whoever paints them, among many sound ones: they end, and the others hardly notice.

python tests/campaigns/poison.py --seed 1 --jobs 200 --poison 20 --seconds 300
python tests/campaigns/poison.py --seed 1 --jobs 20 --poison 2 --seconds 20 --without limit

The same sound jobs of several callers, at the same pace, twice: first by themselves, then with the poison among them.
"""

import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import kills
from fleet import Fleet, late
from history import History, events, judged, percentile

from core.auth.api_keys import ApiKeyStore
from core.jobs.models import MAX_ATTEMPTS, Status

CALLERS = 4
FACTOR = 5.0  # that the median delay of sound jobs may be above that of the same without poison
# A poison that kills late may get somewhat further in each attempt, and only those that get no further count: at most
# as often as there are checkpoints' times between the last checkpoint of the first attempt and the deadly place.
MOST_ATTEMPTS = 8 * MAX_ATTEMPTS
KINDS = ("kill", "abort", "late")
SOUND = kills.PARAMETERS[:2]
LONG = {**kills.PARAMETERS[0], "iterations": "400"}  # of those that kill late
PATIENCE_SECONDS = 240.0

# What a photo's bytes say is done: at once, or late in the run, when there are checkpoints.
_DEADLY = late(
    "worker.attempt",
    "import os, re, signal\n"
    "doom = [b'']\n"
    "def die(kind):\n"
    "    os.abort() if kind == b'abort' else os.kill(os.getpid(), signal.SIGKILL)\n"
    "get, run, watch = module.Blobs.get, module.Attempt.run, module.Attempt._on_step\n"
    "def deadly_get(self, digest):\n"
    "    data = get(self, digest)\n"
    "    found = re.search(b'poison-(kill|abort|late)', data)\n"
    "    doom[0] = found[1] if found else doom[0]\n"
    "    return die(doom[0]) if doom[0] in (b'kill', b'abort') else data\n"
    "def deadly_run(self, load):\n"
    "    doom[0] = b''\n"
    "    return run(self, load)\n"
    "def deadly_watch(self, moment):\n"
    "    return die(b'kill') if doom[0] and moment.progress.iteration > 200 else watch(self, moment)\n"
    "module.Blobs.get, module.Attempt.run = deadly_get, deadly_run\n"
    "module.Attempt._on_step = deadly_watch\n",
)

CONTROLS = {
    # A job may be tried for ever.
    "limit": "import core.jobs.store as s; s.MAX_ATTEMPTS = 10**6\n",
}


class Caller(kills.Caller):
    """Somebody with a key. A job's key says which poison its photo is, if any."""

    def __init__(self, url: str, secret: str) -> None:
        super().__init__(url)
        self._http.headers["Authorization"] = f"Bearer {secret}"

    def photo(self, key: str) -> bytes:
        return kills.picture(1, 96, 72, key)


class Client(threading.Thread):
    """Submits at a pace of its own, whatever becomes of it, and waits for all to end."""

    def __init__(
        self, caller: Caller, history: History, name: str, orders: list[str], seconds: float
    ) -> None:
        super().__init__(daemon=True)
        self._caller, self._history, self._name, self._orders, self._seconds = (
            caller,
            history,
            name,
            orders,
            seconds,
        )

    def run(self) -> None:
        began, open_jobs = time.monotonic(), []
        for number, kind in enumerate(self._orders):
            time.sleep(
                max(0.0, began + number * self._seconds / len(self._orders) - time.monotonic())
            )
            parameters = number % len(SOUND)
            key = f"{self._name}-{number}{kind and '-poison-' + kind}"
            job_id = self._caller.submit(LONG if kind == "late" else SOUND[parameters], key)
            self._history.tell(
                "accepted",
                job=job_id,
                round=self._name.partition("-")[0],
                poison=kind,
                parameters=parameters,
            )
            open_jobs.append(job_id)
        until = time.monotonic() + PATIENCE_SECONDS
        for job_id in open_jobs:
            job = self._ended(job_id, until)
            facts = {
                name: job[name]
                for name in ("status", "attempt", "error", "created_at", "completed_at")
            }
            self._history.tell("final", job=job_id, pixels=self._caller.pixels(job), **facts)

    def _ended(self, job_id: str, until: float) -> dict[str, Any]:
        while True:
            job: dict[str, Any] = self._caller.ask("GET", f"/v1/jobs/{job_id}").json()
            if Status(job["status"]).has_ended or time.monotonic() > until:
                return job
            time.sleep(0.2)


def campaign(
    folder: Path,
    history: History,
    *,
    seed: int,
    jobs: int,
    poison: int,
    seconds: float,
    factor: float = FACTOR,
    without: str | None = None,
) -> None:
    """Run it and tell the history."""
    dice = random.Random(seed)
    history.tell("begin", seed=seed, jobs=jobs, poison=poison, factor=factor, without=without)
    fleet = Fleet(
        folder, tiny=True, changed=_DEADLY + CONTROLS.get(without or "", ""), API_KEYS="required"
    )
    with fleet:
        keys = ApiKeyStore(f"redis://127.0.0.1:{fleet.store_port}/0")
        callers = [
            Caller(fleet.url, keys.create(f"caller {number}")[1]) for number in range(CALLERS)
        ]
        keys.close()
        for number, parameters in enumerate(SOUND):
            job = kills._followed(callers[0], callers[0].submit(parameters, f"reference-{number}"))
            history.tell("reference", parameters=number, pixels=callers[0].pixels(job))
        for name, kinds in (
            ("calm", []),
            ("poisoned", [KINDS[number % len(KINDS)] for number in range(poison)]),
        ):
            orders = [""] * jobs
            for kind in kinds:
                orders.insert(dice.randrange(len(orders)), kind)
            clients = [
                Client(caller, history, f"{name}-{number}", orders[number::CALLERS], seconds)
                for number, caller in enumerate(callers)
            ]
            for client in clients:
                client.start()
            for client in clients:
                client.join()
        for caller in callers:
            caller.__exit__()
        history.tell("end", serving=_serves(fleet))


def _serves(fleet: Fleet) -> bool:
    until = time.monotonic() + 60
    while not fleet.is_serving() and time.monotonic() < until:
        time.sleep(0.1)
    return fleet.is_serving()


# ---------------------------------------------------------------------- the judge


def delays(file: Path, name: str) -> list[float]:
    """Of the sound jobs of a round that ended, the seconds from submission to end, by the store's clock."""
    sound = {
        event["job"]
        for event in events(file, "accepted")
        if event["round"] == name and not event["poison"]
    }
    return [
        (
            datetime.fromisoformat(event["completed_at"])
            - datetime.fromisoformat(event["created_at"])
        ).total_seconds()
        for event in events(file, "final")
        if event["job"] in sound and event["completed_at"]
    ]


def violations(file: Path) -> list[str]:
    """What must not be, by the history alone."""
    found: list[str] = []
    right = {event["parameters"]: event["pixels"] for event in events(file, "reference")}
    final = {event["job"]: event for event in events(file, "final")}
    begin = next(events(file, "begin"))
    for event in events(file, "accepted"):
        end, what = final.get(event["job"]), f"{event['job']} ({event['poison'] or 'sound'})"
        if end is None:
            found.append(f"{what} is lost")
        elif not Status(end["status"]).has_ended:
            found.append(f"{what} never ended: {end['status']} at attempt {end['attempt']}")
        elif event["poison"]:
            found += _ended_wrongly(what, event["poison"], end)
        elif (end["status"], end["attempt"], end["pixels"]) != (
            "succeeded",
            1,
            right.get(event["parameters"]),
        ):
            found.append(
                f"{what} ended as {end['status']} at attempt {end['attempt']}, with {end['pixels']}"
            )
    calm, poisoned = delays(file, "calm"), delays(file, "poisoned")
    if not calm or not poisoned:
        found.append("nothing was measured")
    elif statistics.median(poisoned) > begin["factor"] * statistics.median(calm):
        found.append(
            f"sound jobs take {statistics.median(poisoned):.2f} s, not {statistics.median(calm):.2f}"
        )
    if not any(event["serving"] for event in events(file, "end")):
        found.append("the campaign did not come to its end, or left no service")
    return found


def _ended_wrongly(what: str, kind: str, end: dict[str, Any]) -> list[str]:
    in_time = end["attempt"] <= MOST_ATTEMPTS if kind == "late" else end["attempt"] == MAX_ATTEMPTS
    if end["status"] == "failed" and end["error"]["code"] == "worker_lost" and in_time:
        return []
    return [f"{what} ended as {end['status']}, {end['error']}, at attempt {end['attempt']}"]


def figures(file: Path) -> dict[str, Any]:
    """What the table shows."""
    final = {event["job"]: event for event in events(file, "final")}
    poison = [event for event in events(file, "accepted") if event["poison"]]
    shown: dict[str, Any] = {
        f"{kind}: attempts, and how often": dict(
            Counter(
                final[event["job"]]["attempt"]
                for event in poison
                if event["poison"] == kind and event["job"] in final
            )
        )
        for kind in KINDS
    }
    for name in ("calm", "poisoned"):
        if seconds := delays(file, name):
            p50, p99, most = percentile(seconds, 0.5), percentile(seconds, 0.99), max(seconds)
            shown[f"{name}: sound jobs; delay p50, p99, most"] = (
                f"{len(seconds)}; {p50:.2f}, {p99:.2f}, {most:.2f} s"
            )
    return shown


@click.command()
@click.option("--seed", default=1)
@click.option("--jobs", default=200, help="Sound ones, in each of two rounds.")
@click.option("--poison", default=20)
@click.option("--seconds", default=300.0, help="That a round's submissions take.")
@click.option("--factor", default=FACTOR, help="By how much the median delay may rise.")
@click.option("--history", "file", type=click.Path(path_type=Path), default=None)
@click.option("--without", type=click.Choice([*CONTROLS]), default=None)
def main(
    seed: int,
    jobs: int,
    poison: int,
    seconds: float,
    factor: float,
    file: Path | None,
    without: str | None,
) -> None:
    """Poison and count."""
    with tempfile.TemporaryDirectory(prefix="impasto-poison-") as folder:
        history = History(file or Path(folder) / "history.jsonl")
        told = {
            "jobs": jobs,
            "poison": poison,
            "seconds": seconds,
            "factor": factor,
            "without": without,
        }
        campaign(Path(folder) / "fleet", history, seed=seed, **told)
        for name, value in figures(history.file).items():
            click.echo(f"| {name} | {value} |")
        judged(violations(history.file))


if __name__ == "__main__":
    main()
