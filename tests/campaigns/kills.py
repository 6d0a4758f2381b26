"""Kill -9 of every process under load: no job is lost or run twice, and no file is left over.

Each result has the right pixels, too.

python tests/campaigns/kills.py --seed 1 --kills 1000 --jobs 2000
python tests/campaigns/kills.py --seed 1 --kills 60 --jobs 100 --without lease
"""

import hashlib
import io
import os
import random
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import click
import httpx2
import psutil
import redis
from fleet import Fleet
from history import History, events, report_violations
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from core.jobs.models import Status
from core.storage.blobs import digest_of

CLIENTS = 4
OPEN_JOBS = 3  # of each client at a time
PAUSE_SECONDS = 1.6  # mean time between two kills
TIMEOUT_SECONDS = 120.0  # after the last kill
TARGETS = {"api": 0.3, "worker": 0.2, "child": 0.2, "valkey": 0.2, "child frozen": 0.1}

# With these parameters the result is reproducible to the bit, and with the tiny network the run is
# long enough to be killed.
PARAMETERS = [
    {"size": "64", "iterations": str(iterations), "scales": "1", "style_weight": str(weight)}
    for iterations in (60, 200, 600)
    for weight in (5, 20)
]

CONTROLS = {
    # Leases never expire, and the child monitor requeues nothing.
    "lease": "import core.jobs.store as s; s.JobStore.reap_expired_leases = lambda self: (0, 0); "
    "s.JobStore.requeue_jobs_of = lambda self, worker: 0",
    "durability": "",  # the store writes no append-only file
}


def picture(seed: int, width: int, height: int, text: str = "") -> bytes:
    """Return smooth noise as a PNG. The text is metadata: it changes the digest, not the pixels."""
    noise = random.Random(seed).randbytes(12 * 9 * 3)
    image = Image.frombytes("RGB", (12, 9), noise).resize((width, height), Image.Resampling.BICUBIC)
    buffer, info = io.BytesIO(), PngInfo()
    if text:
        info.add_text("text", text)
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


PHOTO, PAINTING = picture(1, 96, 72), picture(2, 90, 70)


class Caller:
    """A client that never gives up: it repeats failed requests with the same idempotency key."""

    def __init__(self, url: str) -> None:
        self._http = httpx2.Client(base_url=url, timeout=10, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def ask(
        self, method: str, path: str, until: Callable[[], bool] = lambda: False, **request: Any
    ) -> httpx2.Response:
        while True:
            with suppress(httpx2.HTTPError):
                answer = self._http.request(method, path, **request)
                if answer.status_code != 503:
                    return answer
            if until():
                raise TimeoutError(path)
            time.sleep(0.05)

    def photo(self, key: str) -> bytes:  # noqa: ARG002 - for subclasses
        """Return the photo of a submission."""
        return PHOTO

    def submit(self, parameters: dict[str, str], key: str) -> str:
        files = {"content": ("a.png", self.photo(key)), "style": ("b.png", PAINTING)}
        answer = self.ask(
            "POST", "/v1/jobs", files=files, data=parameters, headers={"Idempotency-Key": key}
        )
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def pixels(self, job: dict[str, Any]) -> str | None:
        """Return a hash of the result's pixels; the bytes of the file also contain the job id."""
        if "result" not in job["links"]:
            return None
        answer = self.ask("GET", job["links"]["result"])
        if answer.status_code != 200 or digest_of(answer.content) != job["outputs"][0]["id"]:
            return f"broken: {answer.status_code}"
        with Image.open(io.BytesIO(answer.content)) as image:
            return hashlib.sha256(image.convert("RGB").tobytes()).hexdigest()


def _facts(caller: Caller, job: dict[str, Any]) -> dict[str, Any]:
    names = ("status", "version", "attempt", "completed_at", "outputs", "error")
    return {name: job[name] for name in names} | {"pixels": caller.pixels(job)}


class Client(threading.Thread):
    """Submits jobs, polls them and records how each one ended."""

    def __init__(
        self, fleet: Fleet, history: History, seed: int, jobs: int, stop: threading.Event
    ) -> None:
        super().__init__(daemon=True)
        self._caller, self._history, self._jobs, self._stop_event = (
            Caller(fleet.url),
            history,
            jobs,
            stop,
        )
        self._random = random.Random(seed)
        self._seed = seed

    def run(self) -> None:
        with self._caller:
            self._run()

    def _run(self) -> None:
        open_jobs: dict[str, str] = {}
        sent = 0
        while open_jobs or (sent < self._jobs and not self._stop_event.is_set()):
            while (
                len(open_jobs) < OPEN_JOBS and sent < self._jobs and not self._stop_event.is_set()
            ):
                parameters, key = self._random.randrange(len(PARAMETERS)), f"{self._seed}-{sent}"
                job_id = self._caller.submit(PARAMETERS[parameters], key)
                self._history.record("accepted", job=job_id, key=key, parameters=parameters)
                open_jobs[job_id] = key
                sent += 1
            for job_id in list(open_jobs):
                answer = self._caller.ask("GET", f"/v1/jobs/{job_id}")
                if answer.status_code != 200:
                    self._history.record("missing", job=job_id, status=answer.status_code)
                    del open_jobs[job_id]
                elif Status(answer.json()["status"]).has_ended:
                    self._history.record("ended", job=job_id, **_facts(self._caller, answer.json()))
                    del open_jobs[job_id]
            time.sleep(0.1)


def _kill_or_freeze(fleet: Fleet, target: str, rng: random.Random) -> bool:
    """Kill or freeze a process; return False if there is no such process at the moment."""
    if target == "api":
        fleet.api.kill()
    elif target == "valkey":
        fleet.valkey.kill()
    elif target == "worker":
        rng.choice(fleet.workers).kill()
    else:
        children = [child for worker in fleet.workers for child in worker.children()]
        if not children:
            return False
        child = rng.choice(children)
        with suppress(psutil.Error):
            if target == "child":
                child.kill()
            else:  # for longer than its lease, so that another worker gets the job
                child.suspend()
                threading.Timer(7, _wake, [child]).start()
    return True


def _wake(child: psutil.Process) -> None:
    with suppress(psutil.Error):
        child.resume()


def campaign(
    folder: Path, history: History, *, seed: int, kills: int, jobs: int, without: str | None = None
) -> None:
    """Run the campaign and write its history."""
    rng, stop = random.Random(seed), threading.Event()
    store, settings = None, {}
    if without == "durability":
        store, settings = {"appendonly": "no"}, {"STORE_UNSAFE": "accept"}
    history.record("begin", seed=seed, kills=kills, jobs=jobs, without=without)
    fleet = Fleet(
        folder, tiny=True, store=store, changed=CONTROLS.get(without or "", ""), **settings
    )
    with fleet, Caller(fleet.url) as caller:
        for number, parameters in enumerate(PARAMETERS):  # before any kill
            job = wait_until_ended(caller, caller.submit(parameters, f"reference-{number}"))
            history.record("reference", parameters=number, pixels=caller.pixels(job))
        clients = [
            Client(fleet, history, seed * 1000 + number, jobs // CLIENTS, stop)
            for number in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        done = 0
        while done < kills:
            time.sleep(rng.expovariate(1 / PAUSE_SECONDS))
            target = rng.choices([*TARGETS], [*TARGETS.values()])[0]
            if _kill_or_freeze(fleet, target, rng):
                history.record("kill", target=target)
                done += 1
        history.record("kills done")
        until = time.monotonic() + TIMEOUT_SECONDS + 1.5 * jobs
        for client in clients:
            client.join(max(0.0, until - time.monotonic()))
        stop.set()
        record_final_states(fleet, caller, history)
        delete_all_jobs(fleet, caller, history)


def wait_until_ended(caller: Caller, job_id: str) -> dict[str, Any]:
    while True:
        job: dict[str, Any] = caller.ask("GET", f"/v1/jobs/{job_id}").json()
        if Status(job["status"]).has_ended:
            return job
        time.sleep(0.05)


def record_final_states(fleet: Fleet, caller: Caller, history: History) -> None:
    """Record the final state of each job, and the number of jobs in the store."""
    for event in [*events(history.file, "accepted")]:
        answer = caller.ask("GET", f"/v1/jobs/{event['job']}")
        if answer.status_code != 200:
            history.record("missing", job=event["job"], status=answer.status_code)
        else:
            history.record("final", job=event["job"], **_facts(caller, answer.json()))
    with fleet.redis() as client:
        history.record("records", count=client.zcard("impasto:jobs_of:local"))


def delete_all_jobs(fleet: Fleet, caller: Caller, history: History) -> None:
    """Delete every job, make all files look old, and record the files that the service keeps.

    Old files with no job are garbage, so none may remain.
    """
    cursor: str | None = "/v1/jobs?limit=100"
    while cursor:
        page = caller.ask("GET", cursor).json()
        for job in page["jobs"]:
            caller.ask("DELETE", f"/v1/jobs/{job['id']}")
        cursor = "/v1/jobs?limit=100" if page["jobs"] else None
    with fleet.redis() as client, suppress(redis.RedisError):
        for digest in client.zrange("impasto:orphans", 0, -1):
            client.zadd("impasto:orphans", {digest: 1})
    files = [
        path
        for name in ("blobs", "checkpoints")
        for path in (fleet.data / name).rglob("*")
        if path.is_file()
    ]
    for path in files:
        with suppress(FileNotFoundError):
            os.utime(path, (1, 1))
    fleet.api.kill()  # a new reaper collects garbage at once
    until = time.monotonic() + 90
    while (left := _files(fleet.data)) and time.monotonic() < until:
        time.sleep(0.5)
    history.record("left", files=left)


def _files(data: Path) -> list[str]:
    found = [
        path
        for name in ("blobs", "checkpoints")
        for path in (data / name).rglob("*")
        if path.is_file()
    ]
    kept = ("deletions.lock", "store.identity")
    return [str(path.relative_to(data)) for path in found if path.name not in kept]


# ---------------------------------------------------------------------- the checker


def violations(file: Path) -> list[str]:
    """Return the violations that the history shows."""
    found: list[str] = []
    right = {event["parameters"]: event["pixels"] for event in events(file, "reference")}
    accepted = {event["job"]: event for event in events(file, "accepted")}
    final = {event["job"]: event for event in events(file, "final")}
    keys = Counter(event["key"] for event in accepted.values())
    found += [f"key {key} made {count} jobs" for key, count in keys.items() if count > 1]
    records = next(events(file, "records"), {"count": -1})["count"]
    if records != len(accepted) + len(right):
        found.append(f"{records} records for {len(accepted) + len(right)} accepted jobs")
    for job, event in accepted.items():
        end = final.get(job)
        if end is None:
            found.append(f"{job} is lost")
        elif not Status(end["status"]).has_ended:
            found.append(f"{job} never ended: {end['status']}")
        elif end["status"] == "succeeded" and end["pixels"] != right[event["parameters"]]:
            found.append(f"{job} has wrong pixels")
        elif (
            end["status"] not in ("succeeded", "failed")
            or (end["error"] or {}).get("code", "worker_lost") != "worker_lost"
        ):
            found.append(f"{job} ended as {end['status']}, {end['error']}")
    for event in events(file, "ended"):
        end = final.get(event["job"], {})
        facts = ("status", "version", "attempt", "completed_at", "outputs", "pixels")
        if any(event[fact] != end.get(fact) for fact in facts):
            found.append(f"{event['job']} changed after its end")
    for event in events(file, "left"):
        found += [f"left behind: {name}" for name in event["files"]]
    if not any(events(file, "left")):
        found.append("the campaign did not finish")
    return found


def figures(file: Path) -> dict[str, Any]:
    """Return the rows of the report."""
    final = [*events(file, "final")]
    return {
        "kills": dict(Counter(event["target"] for event in events(file, "kill"))),
        "jobs": len([*events(file, "accepted")]),
        "ended": dict(Counter(event["status"] for event in final)),
        "attempts": dict(sorted(Counter(event["attempt"] for event in final).items())),
    }


@click.command()
@click.option("--seed", default=1)
@click.option("--kills", default=1000)
@click.option("--jobs", default=2000)
@click.option("--history", "file", type=click.Path(path_type=Path), default=None)
@click.option("--without", type=click.Choice([*CONTROLS]), default=None)
def main(seed: int, kills: int, jobs: int, file: Path | None, without: str | None) -> None:
    """Kill processes under load and check every job."""
    with tempfile.TemporaryDirectory(prefix="impasto-kills-") as folder:
        history = History(file or Path(folder) / "history.jsonl")
        campaign(
            Path(folder) / "fleet", history, seed=seed, kills=kills, jobs=jobs, without=without
        )
        for name, value in figures(history.file).items():
            click.echo(f"| {name} | {value} |")
        report_violations(violations(history.file))


if __name__ == "__main__":
    main()
