"""Thousands of slow clients beside regular ones: the slow are disconnected, the others are served.

    python tests/campaigns/slow_clients.py --seed 1 [--count 2000] [--seconds 60]
    python tests/campaigns/slow_clients.py --seed 1 --without protocol

Kinds of slow clients:

- `silent` sends nothing.
- `head` sends a header now and then.
- `body` sends at a tenth of the minimum rate.
- `read` and `result` request large responses and receive them at a tenth of the minimum rate.

A client that is disconnected connects again at once. The regular clients are one that polls, and
two on slow connections, which upload and download at ten times the minimum rate.
"""

import asyncio
import contextlib
import http.client
import json
import random
import resource
import socket
import tempfile
import time
from collections import defaultdict
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import psutil
from api_process import ApiProcess
from history import percentile, report_violations
from PIL import Image

from core.images import codec
from core.jobs.models import JobInput, ModelUsed, Output, new_job_id
from core.jobs.store import JobStore
from core.storage.blobs import Blobs, digest_of
from core.style.spec import StyleSpec

KINDS = ("silent", "head", "body", "read", "result")
MIN_RATE = 1000.0  # bytes per second
RESULT_BYTES = 1_000_000
REGULAR_MS = 500.0

# How long a connection may live, in timeouts. Transferred bytes restore 0.1 s per second.
ALLOWED = {"silent": 1.0, "head": 1.0, "body": 1.2, "read": 1.2, "result": 1.2}
SLACK_SECONDS = 3.0  # both sides read their clocks late

Entry = dict[str, Any]


class SlowClient:
    """One slow client: it connects, is slow, records when it is disconnected, and repeats."""

    def __init__(self, kind: str, port: int, job: str, delay: float, interval: float) -> None:
        self._kind, self._port, self._job = kind, port, job
        self._delay, self._interval = delay, interval

    async def run(self, until: float, entries: list[Entry]) -> None:
        """Repeat until the time is over; the last connection is recorded as open."""
        await asyncio.sleep(self._delay)
        while time.monotonic() < until:
            began = time.monotonic()
            try:
                ended = await self._connect_once(until)
            except OSError as error:
                ended = "refused" if isinstance(error, ConnectionRefusedError) else "disconnected"
            seconds = round(time.monotonic() - began, 2)
            entries.append({"slow": self._kind, "seconds": seconds, "ended": ended})

    async def _connect_once(self, until: float) -> str:
        connection = socket.socket()
        connection.setblocking(False)
        if self._kind in ("read", "result"):
            # Bytes in this kernel's buffer count as received, so the buffer must be small.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_connect(connection, ("127.0.0.1", self._port))
            await loop.sock_sendall(connection, self._opening())
            while time.monotonic() < until:
                if await self._transfer_slowly(connection, loop):
                    return "disconnected"
            return "open"
        finally:
            connection.close()

    def _opening(self) -> bytes:
        head = "GET {} HTTP/1.1\r\nHost: localhost\r\n"
        return {
            "silent": b"",
            "head": head.format("/livez").encode(),
            "body": (
                b"POST /v1/images HTTP/1.1\r\nHost: localhost\r\nContent-Length: 20000000\r\n"
                b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x\r\n"
                b'Content-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
            ),
            "read": f"{head}\r\n".format("/openapi.json").encode() * 8,
            "result": f"{head}\r\n".format(f"/v1/jobs/{self._job}/result").encode(),
        }[self._kind]

    async def _transfer_slowly(
        self, connection: socket.socket, loop: asyncio.AbstractEventLoop
    ) -> bool:
        """Send or receive for one interval; return whether the server has closed."""
        tenth = int(MIN_RATE / 10 * self._interval)
        if self._kind in ("read", "result"):
            await asyncio.sleep(self._interval)
            data = await loop.sock_recv(connection, tenth)
            # After a reset, bytes that came before it can still be read; SO_ERROR shows it at once.
            return not data or connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
        if self._kind != "silent":
            await loop.sock_sendall(
                connection, b"A: b\r\n" if self._kind == "head" else b"a" * tenth
            )
        try:
            async with asyncio.timeout(self._interval):
                while await loop.sock_recv(connection, 4096):
                    pass
        except TimeoutError:
            return False
        return True


def poll(port: int, until: float) -> list[Entry]:
    """A regular client that polls, with a new connection for each request."""
    entries = []
    while time.monotonic() < until:
        began = time.monotonic()
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/v1/jobs?limit=5")
            status = connection.getresponse().status
            connection.close()
        except OSError:
            status = 0
        entries.append(
            {"regular": "poll", "ms": round((time.monotonic() - began) * 1000, 1), "status": status}
        )
        time.sleep(0.02)
    return entries


def upload(port: int, until: float) -> list[Entry]:
    """A regular client on a slow connection uploads at ten times the minimum rate.

    It sends noise as PNG, as large as the time allows.
    """
    side = int((max(1.0, until - time.monotonic() - 5) * MIN_RATE * 10 / 3) ** 0.5)
    picture = codec.encode(
        Image.frombytes("RGB", (side, side), random.Random(0).randbytes(side * side * 3))
    )
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    body = head + picture + b"\r\n--x--\r\n"
    began = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.putrequest("POST", "/v1/images")
        connection.putheader("Content-Length", str(len(body)))
        connection.putheader("Content-Type", "multipart/form-data; boundary=x")
        connection.endheaders()
        for start in range(0, len(body), int(MIN_RATE)):
            connection.send(body[start : start + int(MIN_RATE)])
            time.sleep(0.1)
        status = connection.getresponse().status
    except OSError:
        status = 0
    return [
        {"regular": "upload", "ms": round((time.monotonic() - began) * 1000, 1), "status": status}
    ]


def download(port: int, job: str, until: float) -> list[Entry]:
    """A regular client on a slow connection reads the result until the time is over."""
    began, received = time.monotonic(), 0
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(30)
        connection.connect(("127.0.0.1", port))
        connection.sendall(
            f"GET /v1/jobs/{job}/result HTTP/1.0\r\nHost: localhost\r\n\r\n".encode()
        )
        status = int(connection.recv(12)[9:])
        try:
            while time.monotonic() < until and (piece := connection.recv(int(MIN_RATE))):
                received += len(piece)
                time.sleep(0.1)
        except OSError:
            status = 0
    is_complete = received >= RESULT_BYTES or time.monotonic() >= until
    return [
        {
            "regular": "download",
            "ms": round((time.monotonic() - began) * 1000, 1),
            "status": status if is_complete else 0,
        }
    ]


def create_finished_job(api: ApiProcess) -> str:
    """Create a job with a result of a megabyte, as a worker would leave it."""
    store, blobs = JobStore(api.redis_url), Blobs(api.data / "blobs")
    result = random.Random(0).randbytes(RESULT_BYTES)
    store.reserve(digest_of(result))
    digest = blobs.put(result)
    job = store.create(
        new_job_id(), JobInput(content=digest, styles=[digest], spec=StyleSpec().model_dump())
    )
    store.claim("token", "campaign")
    output = Output(id=digest, content_type="image/png", width=1, height=1, size_bytes=RESULT_BYTES)
    store.succeed(job.id, "token", output, ModelUsed(name="vgg16", sha256="0" * 64), {})
    store.close()
    return job.id


async def run_slow_clients(
    api: ApiProcess, job: str, count: int, rng: random.Random, spread: float, until: float
) -> list[Entry]:
    """Run all slow clients; they connect spread over the first `spread` seconds."""
    entries: list[Entry] = []
    kinds = [KINDS[number % len(KINDS)] for number in range(count)]
    slow = [
        SlowClient(kind, api.port, job, rng.uniform(0, spread), rng.uniform(0.8, 1.2))
        for kind in kinds
    ]
    await asyncio.gather(*(client.run(until, entries) for client in slow))
    return entries


def run(
    seed: int, history: Path, count: int, seconds: float, timeout: float, without: str | None
) -> None:
    """Run the campaign and write the history."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    # Fewer files than clients, as with the usual limit of 1024: the API must raise it.
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, max(64, count // 2)), hard))
    settings = {
        "API_CLIENT_TIMEOUT_SECONDS": str(timeout),
        "API_MIN_CLIENT_BYTES_PER_SECOND": str(int(MIN_RATE)),
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        ApiProcess(Path(folder), without, **settings) as api,
    ):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        job = create_finished_job(api)
        process = psutil.Process(api.pid)
        before = {"files": process.num_fds(), "bytes": process.memory_info().rss}
        with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
            # This starts all three processes before the campaign begins.
            list(pool.map(poll, [api.port] * 3, [time.monotonic() + 2] * 3))
            until = time.monotonic() + seconds
            regular: list[Future[list[Entry]]] = [
                pool.submit(poll, api.port, until),
                pool.submit(upload, api.port, until),
                pool.submit(download, api.port, job, until),
            ]
            entries = asyncio.run(
                run_slow_clients(api, job, count, random.Random(seed), timeout / 2, until)
            )
            entries += [entry for future in regular for entry in future.result()]
        peak = process.memory_info().rss
        _wait_for_files(process, before["files"])
        after = {"files": process.num_fds(), "bytes": peak}
        entries.append(
            {"server": {"before": before, "after": after, "answers": bool(_is_ready(api.port))}}
        )
        entries.append({"options": {"timeout": timeout, "count": count, "seconds": seconds}})
    history.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def _wait_for_files(process: psutil.Process, before: int) -> None:
    until = time.monotonic() + 10
    while process.num_fds() > before + 20 and time.monotonic() < until:
        time.sleep(0.1)


def _is_ready(port: int) -> bool:
    with contextlib.suppress(OSError):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/livez")
        return connection.getresponse().status == 200
    return False


def _read_history(
    history: Path,
) -> tuple[Entry, Entry, dict[str, list[Entry]], dict[str, list[Entry]]]:
    slow, regular = defaultdict(list), defaultdict(list)
    options: Entry = {}
    server: Entry = {}
    for line in history.read_text().splitlines():
        entry = json.loads(line)
        if "slow" in entry:
            slow[entry["slow"]].append(entry)
        elif "regular" in entry:
            regular[entry["regular"]].append(entry)
        options = entry.get("options", options)
        server = entry.get("server", server)
    return options, server, slow, regular


def violations(history: Path) -> list[str]:
    """Check the history; return a sentence per violation."""
    options, server, slow, regular = _read_history(history)
    found = []
    for kind in KINDS:
        allowed = options["timeout"] * ALLOWED[kind] + SLACK_SECONDS
        too_long = [entry for entry in slow[kind] if entry["seconds"] > allowed]
        if too_long:
            longest = max(entry["seconds"] for entry in too_long)
            found.append(
                f"{kind}: {len(too_long)} were open for over {allowed:.1f} s, up to {longest} s"
            )
        if not any(entry["ended"] == "disconnected" for entry in slow[kind]):
            found.append(f"{kind}: none was disconnected")
        refused = [entry for entry in slow[kind] if entry["ended"] == "refused"]
        if refused:
            found.append(f"{kind}: {len(refused)} connections were refused")
    for what, status in (("poll", 200), ("upload", 201), ("download", 200)):
        bad = [entry for entry in regular[what] if entry["status"] != status]
        if bad or not regular[what]:
            statuses = sorted({entry["status"] for entry in bad})
            found.append(f"regular {what}: {len(bad)} of {len(regular[what])} failed: {statuses}")
    # Of a hundred polls or fewer, p99 is the longest one: another program can delay a single one.
    share = 0.99 if len(regular["poll"]) > 100 else 0.95
    slowest = percentile([entry["ms"] for entry in regular["poll"]], share)
    if slowest >= REGULAR_MS:
        found.append(f"regular poll: p{100 * share:.0f} {slowest} ms")
    if not server["answers"]:
        found.append("the service does not answer afterwards")
    if server["after"]["files"] > server["before"]["files"] + 20:
        found.append(f"files: {server['before']['files']} before, {server['after']['files']} after")
    return found


@click.command()
@click.option("--seed", default=1, show_default=True)
@click.option("--count", default=2000, show_default=True, help="Slow clients at once.")
@click.option("--seconds", default=60.0, show_default=True)
@click.option(
    "--history",
    type=click.Path(path_type=Path),
    default=Path("slow_clients.jsonl"),
    show_default=True,
)
@click.option(
    "--timeout", default=15.0, show_default=True, help="IMPASTO_API_CLIENT_TIMEOUT_SECONDS."
)
@click.option(
    "--without",
    type=click.Choice(["protocol"]),
    help="Remove this guard: there must be violations.",
)
def main(
    seed: int, count: int, seconds: float, history: Path, timeout: float, without: str | None
) -> None:
    """Run the campaign, check and report; exit code 1 if there are violations."""
    run(seed, history, count, seconds, timeout, without)
    _, server, slow, regular = _read_history(history)
    print(f"seed {seed}, {count} slow clients for {seconds:g} s, timeout {timeout:g} s")
    for kind in KINDS:
        durations = [entry["seconds"] for entry in slow[kind] if entry["ended"] == "disconnected"]
        after = (
            f"after {percentile(durations, 0.5)} s (median), {max(durations)} s (longest)"
            if durations
            else ""
        )
        print(f"{kind:8} disconnected {len(durations)} times {after}")
    took = [entry["ms"] for entry in regular["poll"]]
    p50, p99 = percentile(took, 0.5), percentile(took, 0.99)
    print(f"regular  {len(took)} polls: p50 {p50} ms, p99 {p99} ms, longest {max(took)} ms")
    for what in ("upload", "download"):
        print(f"regular  {what} {[(entry['status'], entry['ms']) for entry in regular[what]]}")
    print(f"server   before {server['before']}, after {server['after']}")
    report_violations(violations(history))


if __name__ == "__main__":
    main()
