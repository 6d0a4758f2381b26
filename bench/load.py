"""Measures the service under load: many kept jobs, and more requests than it can serve.

    python bench/load.py growth [--counts 0,10000,100000,1000000] [--plot FILE]
    python bench/load.py overload [--of lists] [--factor 5] [--seconds 15] [--rounds 3]

Half an hour with three API processes, eight workers and a bucket: tests/campaigns/soak.py. The
clients of `overload` are locust's (bench/load_users.py). See bench/README.md.
"""

import io
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import click
import httpx2
import redis
from PIL import Image

from bench import api
from bench.chart import draw_lines
from bench.store import Records
from core.jobs.models import ModelUsed, Output

SAMPLES = Path(__file__).parents[1] / "samples"
USERS = Path(__file__).with_name("load_users.py")
UNLIMITED = {
    "API_KEYS": "required",
    "API_SUBMISSIONS_PER_MINUTE": "10000000",
    "API_REQUESTS_PER_MINUTE": "10000000",
    "API_MAX_QUEUED": "10000000",
    "API_MAX_JOBS_PER_CALLER": "10000000",
}


@click.group()
def main() -> None:
    """Measure the service under load."""


# ---------------------------------------------------------------------- many kept jobs

QUEUED, OWNERS = 10_000, 1_000
MEASURED_OWNERS = 20  # of these, with a key
BATCH = 5  # calls of one kind before those of the next
MAX_TRIES = 10


class _Filled:
    """A service with kept and queued jobs of many owners, and what measures its calls."""

    def __init__(self, running: api.Service, kept: int, queued: int) -> None:
        self._running, self._number = running, 0
        self._redis = redis.Redis.from_url(running.redis_url)
        keys = [running.create_key() for _ in range(MEASURED_OWNERS)]
        self._headers = [headers for _, headers in keys]
        self._http = [self._connect(headers[0]) for _, headers in keys]
        self._photos = [self._upload(number).json()["id"] for number in range(MEASURED_OWNERS)]
        self._ended = [self._end_job(owner) for owner, _ in keys]
        records = Records(running.redis_url)  # creates a queued job, so after those that ended
        owners = [owner for owner, _ in keys]
        owners += [f"key_{number:06}" for number in range(OWNERS - len(owners))]
        with self._without_log():
            records.add(owners, kept, queued)
        records.close()
        self._jobs: list[str] = []
        self.times: dict[str, list[float]] = {}
        self.costs: dict[str, list[Cost]] = {}

    def close(self) -> None:
        """Close the connections."""
        for client in self._http:
            client.close()
        self._redis.close()

    def _connect(self, authorization: str) -> httpx2.Client:
        name, _, value = authorization.partition(": ")
        url = f"http://127.0.0.1:{self._running.ports[0]}"
        return httpx2.Client(base_url=url, headers={name: value}, timeout=60, trust_env=False)

    def _end_job(self, owner: str) -> str:
        """Create a job with a result of 100 KB. Returns its id."""
        running = self._running
        job_id = running.create_job(owner)
        digest = running.put_blob(b"\x89PNG\r\n\x1a\n" + os.urandom(100_000))
        job = running.store.claim(job_id, "bench")
        assert job is not None
        assert job.id == job_id
        output = Output(id=digest, content_type="image/png", width=1, height=1, size_bytes=1)
        running.store.succeed(job_id, job_id, output, ModelUsed(name="vgg19", sha256=""), {})
        return job_id

    @contextmanager
    def _without_log(self) -> Iterator[None]:
        """Fill the store faster: it writes its log afterwards, at once."""
        self._redis.config_set("appendonly", "no")
        yield
        self._redis.config_set("appendonly", "yes")
        while True:
            state: Any = self._redis.info("persistence")
            if not (state["aof_rewrite_in_progress"] or state["aof_rewrite_scheduled"]):
                break
            time.sleep(0.2)
        time.sleep(1.5)  # the API checks the store's settings once a second

    # ------------------------------------------------------------------ calls

    def _upload(self, number: int) -> httpx2.Response:
        data = _make_photo(number)
        return self._send(number, "POST", "/v1/images", files={"image": ("a.png", data)})

    def _send(self, number: int, method: str, path: str, **request: Any) -> httpx2.Response:
        for _ in range(MAX_TRIES):
            response = self._http[number % MEASURED_OWNERS].request(method, path, **request)
            if response.status_code != 503:  # on a machine so busy that calls of the store time out
                break
        if response.is_error:
            raise click.ClickException(f"{method} {path}: {response.text}")
        return response

    def _submit(self, number: int) -> httpx2.Response:
        photo = self._photos[number % MEASURED_OWNERS]
        response = self._send(
            number, "POST", "/v1/jobs", json={"content": photo, "styles": [photo]}
        )
        self._jobs.append(response.json()["id"])
        return response

    def _claim(self, number: int) -> None:
        token, store = f"{number:032}", self._running.store
        job = store.claim(token, "bench")
        assert job is not None
        store.release(job.id, token)

    def calls(self) -> dict[str, Callable[[int], object]]:
        """The calls by their names. A batch submits, uses, cancels and deletes its own jobs."""

        def of_new(method: str, end: str = "") -> Callable[[int], httpx2.Response]:
            def call(number: int) -> httpx2.Response:
                job_id = self._jobs[number % BATCH - BATCH]
                return self._send(number, method, f"/v1/jobs/{job_id}{end}")

            return call

        def of_ended(end: str = "") -> Callable[[int], httpx2.Response]:
            return lambda number: self._send(
                number, "GET", f"/v1/jobs/{self._ended[number % MEASURED_OWNERS]}{end}"
            )

        return {
            "upload": lambda number: self._upload(number + MEASURED_OWNERS),
            "submit": self._submit,
            "status, queued": of_new("GET"),
            "status, ended": of_ended(),
            "list": lambda number: self._send(number, "GET", "/v1/jobs"),
            "events": of_ended("/events"),
            "result": of_ended("/result"),
            "cancel": of_new("POST", "/cancel"),
            "delete": of_new("DELETE"),
            "claim and release": self._claim,
        }

    def measure(self, name: str, first: int) -> None:
        """Time a batch of calls."""
        call, size = self.calls()[name], 0
        before = self._running.cpu_by_part()
        for number in range(first, first + BATCH):
            started_at = time.perf_counter()
            response = call(number)
            self.times.setdefault(name, []).append(time.perf_counter() - started_at)
            if isinstance(response, httpx2.Response):
                size += len(response.content)
        after = self._running.cpu_by_part()
        spent = {name: (after[name] - before[name]) / BATCH for name in after}
        cost = Cost(spent["API"], spent["decoders"], spent["store"], size / BATCH)
        self.costs.setdefault(name, []).append(cost)


class Cost(NamedTuple):
    """CPU seconds of one call, and bytes of its answer."""

    api: float
    decoders: float
    store: float
    size: float


def _make_photo(number: int) -> bytes:
    """A small picture with a digest of its own."""
    buffer = io.BytesIO()
    color = (number % 256, number // 256 % 256, number // 65_536 % 256)
    Image.new("RGB", (64, 64), color).save(buffer, "PNG")
    return buffer.getvalue()


@main.command()
@click.option("--counts", default="0,10000,100000,1000000", show_default=True, help="Kept jobs.")
@click.option("--queued", default=QUEUED, show_default=True)
@click.option("--rounds", default=40, show_default=True, help=f"Of {BATCH} calls of each kind.")
@click.option("--plot", type=click.Path(path_type=Path), help="Also draw an SVG.")
def growth(counts: str, queued: int, rounds: int, plot: Path | None) -> None:
    """Time of each call with ever more kept jobs of a thousand owners, and what a call costs.

    There is a service for each number of jobs. They take turns, so all see the same load.
    """
    numbers = [int(count) for count in counts.split(",")]
    with ExitStack() as stack:
        filled = []
        for number in numbers:
            running = stack.enter_context(api.service(1, **UNLIMITED))
            filled.append(_Filled(running, number, queued))
            stack.callback(filled[-1].close)
            click.echo(f"{number:,} kept jobs are stored", err=True)
        names = list(filled[0].calls())
        for first in range(0, rounds * BATCH, BATCH):
            for name in names:
                for one in filled:
                    one.measure(name, first)
    table = {name: [_percentiles(one.times[name]) for one in filled] for name in names}
    heads = [f"{number:,}" for number in numbers]
    click.echo(f"| p50, p99 ms | {' | '.join(heads)} |\n{'|---' * (len(heads) + 1)}|")
    for name, row in table.items():
        cells = [f"{p50:.1f}, {p99:.0f}" for p50, p99 in row]
        click.echo(f"| {name} | {' | '.join(cells)} |")
    click.echo(
        "\n| CPU ms of a call | API | decoders | store: "
        f"{' | store: '.join(heads)} | answer, bytes |\n{'|---' * (len(heads) + 4)}|"
    )
    for name in names:
        first_costs = filled[0].costs[name]
        columns = list(zip(*first_costs, strict=True))
        stores = [statistics.median(cost.store for cost in one.costs[name]) for one in filled]
        cells = [f"{1e3 * statistics.median(columns[0]):.2f}"]
        cells += [f"{1e3 * statistics.mean(columns[1]):.1f}"]
        cells += [f"{1e3 * seconds:.2f}" for seconds in stores]
        cells += [f"{statistics.mean(columns[3]):.0f}"]
        click.echo(f"| {name} | {' | '.join(cells)} |")
    if plot is not None:
        panels = {
            f"{which} of a call, ms": {
                name: [cell[index] for cell in row] for name, row in table.items()
            }
            for index, which in enumerate(("p50", "p99"))
        }
        plot.write_text(draw_lines(panels, heads, "kept jobs, beside 10,000 queued"))


def _percentiles(times: Sequence[float]) -> tuple[float, float]:
    """p50 and p99 in ms."""
    return 1e3 * percentile(times, 0.5), 1e3 * percentile(times, 0.99)


# ---------------------------------------------------------------------- overload

CALLERS = 50
RUNNING_JOBS = 20
SUCCESS = (200, 202)
POLLS_PER_SECOND = 20
# Of a client under overload: more than the bound, so that a late answer is seen as such. Its next
# request is due when this one has certainly ended.
TIMEOUT_SECONDS, PACING_SECONDS = 3.0, 4.0
PATIENT_SECONDS = 60.0  # of a client that measures the capacity
WARM_UP_SHARE = 0.25
BOUND_SECONDS = 2.0


@dataclass(frozen=True)
class Answers:
    """What the clients of one phase saw."""

    seconds: float  # of the phase, after the warm-up
    requests: Sequence[tuple[float, int]]  # seconds, status; 0: no answer in time
    polls: Sequence[tuple[float, int]]
    cpu: dict[str, float]  # seconds of the whole phase: of the service's parts, and the clients

    @property
    def offered(self) -> float:
        """Requests per second."""
        return len(self.requests) / self.seconds

    @property
    def goodput(self) -> float:
        """Successful requests per second, within the bound."""
        return self.count(SUCCESS, BOUND_SECONDS) / self.seconds

    @property
    def accepted(self) -> float:
        """Successful requests per second, however late: the capacity."""
        return self.count(SUCCESS) / self.seconds

    def count(self, statuses: Sequence[int], within: float = float("inf")) -> int:
        """Count the requests with one of these statuses."""
        return sum(code in statuses and took <= within for took, code in self.requests)

    def row(self, name: str) -> str:
        """A row of the table."""
        accepted = [took for took, code in self.requests if code in SUCCESS]
        refused = [took for took, code in self.requests if code in (429, 503)]
        unanswered = self.count([0])
        other = len(self.requests) - len(accepted) - len(refused) - unanswered
        late = unanswered + sum(code != 0 and took > BOUND_SECONDS for took, code in self.requests)
        cells = [
            name,
            f"{self.offered:.1f}",
            f"{self.goodput:.1f}",
            f"{len(refused) / self.seconds:.1f}",
            f"{late / max(1, len(self.requests)):.2%}",
            f"{unanswered}, {other}",
            _describe(accepted),
            _describe(refused),
            _describe([took for took, code in self.polls if code == 200]),
            ", ".join(f"{seconds:.1f}" for seconds in self.cpu.values()),
        ]
        return f"| {' | '.join(cells)} |"


def _describe(times: Sequence[float]) -> str:
    """p50 and p99 in ms."""
    if not times:
        return "–"
    return f"{1e3 * percentile(times, 0.5):.0f}, {1e3 * percentile(times, 0.99):.0f}"


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


@main.command()
@click.option("--of", "kind", type=click.Choice(["submissions", "lists"]), default="submissions")
@click.option("--factor", default=5.0, show_default=True, help="Offered load by capacity.")
@click.option("--seconds", default=20.0, show_default=True, help="Of each phase.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--clients", default=8, show_default=True, help="That measure the capacity.")
@click.option("--max-wait", default=1.0, show_default=True, help="IMPASTO_API_MAX_WAIT_SECONDS.")
@click.option("--side", default=800, show_default=True, help="Of the pictures, in px.")
@click.option("--jobs", default=20, show_default=True, help="In each list.")
def overload(
    *,
    kind: str,
    factor: float,
    seconds: float,
    rounds: int,
    clients: int,
    max_wait: float,
    side: int,
    jobs: int,
) -> None:
    """Requests at the service's capacity (closed loop), and at a multiple of it (open loop).

    A second service, without admission control, shows the capacity and serves as the control.
    """
    click.echo(
        f"| {kind} | offered/s | goodput/s | 503, 429/s | not within 2 s | no answer, other "
        "| success: p50, p99 ms | refused: p50, p99 ms | status: p50, p99 ms "
        "| CPU s: API, decoders, store, clients |\n"
        f"{'|---' * 10}|"
    )
    ratios: dict[str, list[float]] = {"": [], ", no admission control": []}
    cores = sorted(os.sched_getaffinity(0))
    # A service and its clients are on different machines. Here each has half of the cores:
    # otherwise the clients of an overload take what the service had at its capacity.
    half = (len(cores) + 1) // 2
    settings = {**UNLIMITED, "API_MAX_WAIT_SECONDS": str(max_wait)}
    unlimited = {**UNLIMITED, "API_MAX_WAIT_SECONDS": "600"}
    with (
        tempfile.TemporaryDirectory() as folder,
        _on_cores(cores[:half]),
        api.service(1, **settings) as limited,
        api.service(1, **unlimited) as control,
    ):
        loads = [
            _Load(
                Path(folder), running, side, jobs if kind == "lists" else 0, cores[half:] or cores
            )
            for running in (limited, control)
        ]
        for number in range(1, rounds + 1):
            capacity = loads[1].run(clients, 0.0, seconds, PATIENT_SECONDS)
            click.echo(capacity.row(f"{number}: {clients} clients, no admission control"))
            users = max(1, round(factor * capacity.accepted * PACING_SECONDS))
            for load, (name, of_service) in zip(loads, ratios.items(), strict=True):
                answers = load.run(users, PACING_SECONDS, seconds)
                click.echo(answers.row(f"{number}: {factor:g} x{name}"))
                of_service.append(answers.goodput / max(capacity.accepted, 1e-9))
    click.echo()
    for name, values in ratios.items():
        shown = ", ".join(f"{value:.2f}" for value in values)
        click.echo(f"goodput by capacity{name}: {statistics.median(values):.2f} (of {shown})")


@contextmanager
def _on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Run this process, and those that it starts meanwhile, on these cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class _Load:
    """Clients of one service, as processes of locust."""

    def __init__(
        self, folder: Path, running: api.Service, side: int, listed: int, cores: Sequence[int]
    ) -> None:
        """listed: jobs in each list; 0: for submissions. cores: of the clients."""
        self._folder, self._running, self._side = folder, running, side
        keys = [running.create_key() for _ in range(CALLERS)]
        secrets = {owner: headers[0].partition("Bearer ")[2] for owner, headers in keys}
        for owner in list(secrets)[:RUNNING_JOBS]:
            running.create_job(owner)
        for owner in list(secrets) * listed:
            running.create_job(owner)
        jobs = []
        for number in range(RUNNING_JOBS):
            job = running.store.claim(f"load-{number}", "bench")
            assert job is not None
            jobs.append((job.id, secrets[job.owner]))
        self._plan = {
            "listed": listed,
            "cores": cores,
            "keys": [*secrets.values()],
            "jobs": jobs,
            "photo": str(self._write("harbor")),
            "painting": str(self._write("strokes")),
        }

    def _write(self, name: str) -> Path:
        """Write a sample as a JPEG of this size; 800 px take some 100 KB."""
        buffer, file = io.BytesIO(), self._folder / f"{name}.jpg"
        with Image.open(SAMPLES / f"{name}.jpg") as picture:
            picture.thumbnail((self._side, self._side))
            picture.save(buffer, "JPEG", quality=85)
        file.write_bytes(buffer.getvalue())
        return file

    def run(
        self, requesters: int, pacing: float, seconds: float, timeout: float = TIMEOUT_SECONDS
    ) -> Answers:
        """Let so many clients send requests, each every `pacing` seconds, while others poll.

        timeout: of a client, in seconds.
        """
        pollers = max(1, round(POLLS_PER_SECOND * 0.5))
        file = self._folder / "plan.json"
        own = {
            "requesters": requesters,
            "pacing": pacing,
            "pollers": pollers,
            "status_pacing": 0.5,
            "timeout_seconds": timeout,
        }
        file.write_text(json.dumps(self._plan | own))
        command = [sys.executable, "-m", "locust", "-f", str(USERS), "--headless"]
        command += ["--host", f"http://127.0.0.1:{self._running.ports[0]}"]
        command += ["--users", str(requesters + pollers), "--spawn-rate", "10000"]
        command += ["--run-time", f"{seconds:.0f}s", "--stop-timeout", "3", "--only-summary"]
        before = self._cpu()
        ran = subprocess.run(
            command,
            env=os.environ | {"IMPASTO_LOAD": str(file)},
            capture_output=True,
            text=True,
            check=False,
        )
        answers = json.loads(file.read_text()).get("answers")
        if answers is None:
            raise click.ClickException(ran.stderr[-2000:])
        time.sleep(1)  # the service finishes what it has begun
        after = self._cpu()
        return _select(answers, seconds, {name: after[name] - before[name] for name in after})

    def _cpu(self) -> dict[str, float]:
        """CPU seconds so far."""
        clients = resource.getrusage(resource.RUSAGE_CHILDREN)
        return {
            **self._running.cpu_by_part(),
            "API": self._running.cpu_seconds(),  # also of threads that have ended
            "clients": clients.ru_utime + clients.ru_stime,
        }


def _select(
    answers: list[tuple[str, float, float, int]], seconds: float, cpu: dict[str, float]
) -> Answers:
    """Leave out the requests of the warm-up. answers: name, time, seconds, status."""
    began = min((at - took for _, at, took, _ in answers), default=0.0)
    since = began + WARM_UP_SHARE * seconds
    rows = [(name, took, status) for name, at, took, status in answers if at - took >= since]
    requests = [(took, status) for name, took, status in rows if name != "status"]
    polls = [(took, status) for name, took, status in rows if name == "status"]
    return Answers((1 - WARM_UP_SHARE) * seconds, requests, polls, cpu)


if __name__ == "__main__":
    main()
