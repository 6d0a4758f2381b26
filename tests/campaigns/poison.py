"""Jobs that kill their worker among many sound jobs: they end, and the others are hardly delayed.

python tests/campaigns/poison.py --seed 1 --jobs 200 --poison 20 --seconds 300
python tests/campaigns/poison.py --seed 1 --jobs 20 --poison 2 --seconds 20 --without limit

Several callers submit the same sound jobs twice at the same rate: first alone, then with poison
jobs in between.
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
from fleet import Fleet, patch_on_import
from history import History, events, percentile, report_violations

from core.auth.api_keys import ApiKeyStore
from core.jobs.models import MAX_ATTEMPTS, Status

CALLERS = 4
FACTOR = 5.0  # by which poison may raise the median delay of the sound jobs
# A poison job that kills late may get further in each attempt, and only attempts without progress
# count. The bound is the number of checkpoints between the first attempt's last one and the kill.
MOST_ATTEMPTS = 8 * MAX_ATTEMPTS
KINDS = ("kill", "abort", "late")
SOUND = kills.PARAMETERS[:2]
LONG = {**kills.PARAMETERS[0], "iterations": "400"}  # for jobs that kill late
TIMEOUT_SECONDS = 240.0

# The photo's bytes select the kill: at once, or late in the run, after some checkpoints.
_DEADLY = patch_on_import(
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
    "def deadly_watch(self, event):\n"
    "    doomed = doom[0] and event.progress.iteration > 200\n"
    "    return die(b'kill') if doomed else watch(self, event)\n"
    "module.Blobs.get, module.Attempt.run = deadly_get, deadly_run\n"
    "module.Attempt._on_step = deadly_watch\n",
)

CONTROLS = {
    # No limit of attempts.
    "limit": "import core.jobs.store as s; s.MAX_ATTEMPTS = 10**6\n",
}


class Caller(kills.Caller):
    """A caller with an API key. The idempotency key of a job names its poison, if any."""

    def __init__(self, url: str, secret: str) -> None:
        super().__init__(url)
        self._http.headers["Authorization"] = f"Bearer {secret}"

    def photo(self, key: str) -> bytes:
        return kills.picture(1, 96, 72, key)


class Client(threading.Thread):
    """Submits jobs at a fixed rate, then waits for all of them to end."""

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
            self._history.record(
                "accepted",
                job=job_id,
                round=self._name.partition("-")[0],
                poison=kind,
                parameters=parameters,
            )
            open_jobs.append(job_id)
        until = time.monotonic() + TIMEOUT_SECONDS
        for job_id in open_jobs:
            job = self._wait_until_ended(job_id, until)
            facts = {
                name: job[name]
                for name in ("status", "attempt", "error", "created_at", "completed_at")
            }
            self._history.record("final", job=job_id, pixels=self._caller.pixels(job), **facts)

    def _wait_until_ended(self, job_id: str, until: float) -> dict[str, Any]:
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
    """Run the campaign and write its history."""
    rng = random.Random(seed)
    history.record("begin", seed=seed, jobs=jobs, poison=poison, factor=factor, without=without)
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
            job = kills.wait_until_ended(
                callers[0], callers[0].submit(parameters, f"reference-{number}")
            )
            history.record("reference", parameters=number, pixels=callers[0].pixels(job))
        for name, kinds in (
            ("calm", []),
            ("poisoned", [KINDS[number % len(KINDS)] for number in range(poison)]),
        ):
            orders = [""] * jobs
            for kind in kinds:
                orders.insert(rng.randrange(len(orders)), kind)
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
        history.record("end", serving=_is_serving_again(fleet))


def _is_serving_again(fleet: Fleet) -> bool:
    until = time.monotonic() + 60
    while not fleet.is_serving() and time.monotonic() < until:
        time.sleep(0.1)
    return fleet.is_serving()


# ---------------------------------------------------------------------- the checker


def delays(file: Path, name: str) -> list[float]:
    """Seconds from submission to end of a round's sound jobs, by the store's clock."""
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
    """Return the violations that the history shows."""
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
        seconds, expected = statistics.median(poisoned), statistics.median(calm)
        found.append(f"sound jobs take {seconds:.2f} s, not {expected:.2f}")
    if not any(event["serving"] for event in events(file, "end")):
        found.append("the campaign did not finish, or the service is down")
    return found


def _ended_wrongly(what: str, kind: str, end: dict[str, Any]) -> list[str]:
    in_time = end["attempt"] <= MOST_ATTEMPTS if kind == "late" else end["attempt"] == MAX_ATTEMPTS
    if end["status"] == "failed" and end["error"]["code"] == "worker_lost" and in_time:
        return []
    return [f"{what} ended as {end['status']}, {end['error']}, at attempt {end['attempt']}"]


def figures(file: Path) -> dict[str, Any]:
    """Return the rows of the report."""
    final = {event["job"]: event for event in events(file, "final")}
    poison = [event for event in events(file, "accepted") if event["poison"]]
    shown: dict[str, Any] = {
        f"{kind}: attempts and their counts": dict(
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
            p50, p99 = percentile(seconds, 0.5), percentile(seconds, 0.99)
            shown[f"{name}: sound jobs; delay p50, p99, max"] = (
                f"{len(seconds)}; {p50:.2f}, {p99:.2f}, {max(seconds):.2f} s"
            )
    return shown


@click.command()
@click.option("--seed", default=1)
@click.option("--jobs", default=200, help="Sound jobs in each of the two rounds.")
@click.option("--poison", default=20, help="Poison jobs in the second round.")
@click.option("--seconds", default=300.0, help="Duration of a round's submissions.")
@click.option("--factor", default=FACTOR, help="Factor by which the median delay may rise.")
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
    """Submit poison jobs and check all jobs."""
    with tempfile.TemporaryDirectory(prefix="impasto-poison-") as folder:
        history = History(file or Path(folder) / "history.jsonl")
        options = {
            "jobs": jobs,
            "poison": poison,
            "seconds": seconds,
            "factor": factor,
            "without": without,
        }
        campaign(Path(folder) / "fleet", history, seed=seed, **options)
        for name, value in figures(history.file).items():
            click.echo(f"| {name} | {value} |")
        report_violations(violations(history.file))


if __name__ == "__main__":
    main()
