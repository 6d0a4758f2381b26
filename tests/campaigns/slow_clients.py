"""Thousands of clients that send or read too slowly, while honest ones use the service: the slow are cut, nobody waits.

    python tests/campaigns/slow_clients.py --seed 1 [--count 2000] [--seconds 60] [--without protocol]

The kinds: `silent`; `head`, a header now and then; `body`, a tenth of the lowest rate; `read` and `result`, which ask
for a lot and take a tenth of the rate. One that is cut comes again at once. Honest are a client that polls, and two on
a slow line, which upload and download at ten times the lowest rate.
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
RATE = 1000.0
RESULT_BYTES = 1_000_000
HONEST_P99_MS = 500.0

# Bytes that are moved give patience back, a tenth of a second each second; and the clocks of both sides are read late.
ALLOWED = {"silent": 1.0, "head": 1.0, "body": 1.2, "read": 1.2, "result": 1.2}
SLACK_SECONDS = 3.0

Entry = dict[str, Any]


class Slow:
    """One slow client: opens, is slow, notes when it is cut, comes again."""

    def __init__(self, kind: str, port: int, job: str, delay: float, beat: float) -> None:
        self._kind, self._port, self._job = kind, port, job
        self._delay, self._beat = delay, beat

    async def run(self, until: float, seen: list[Entry]) -> None:
        """Until the time is over; the last connection is noted as still open."""
        await asyncio.sleep(self._delay)
        while time.monotonic() < until:
            began = time.monotonic()
            try:
                ended = await self._once(until)
            except OSError as error:
                ended = "refused" if isinstance(error, ConnectionRefusedError) else "cut"
            lived = round(time.monotonic() - began, 2)
            seen.append({"slow": self._kind, "seconds": lived, "ended": ended})

    async def _once(self, until: float) -> str:
        line = socket.socket()
        line.setblocking(False)
        if self._kind in ("read", "result"):
            line.setsockopt(
                socket.SOL_SOCKET, socket.SO_RCVBUF, 4096
            )  # what lies in our kernel has been taken
        loop = asyncio.get_running_loop()
        try:
            await loop.sock_connect(line, ("127.0.0.1", self._port))
            await loop.sock_sendall(line, self._opening())
            while time.monotonic() < until:
                if await self._slowly(line, loop):
                    return "cut"
            return "open"
        finally:
            line.close()

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

    async def _slowly(self, line: socket.socket, loop: asyncio.AbstractEventLoop) -> bool:
        """One beat; whether the other side has closed."""
        tenth = int(RATE / 10 * self._beat)
        if self._kind in ("read", "result"):
            await asyncio.sleep(self._beat)
            taken = await loop.sock_recv(line, tenth)
            # A reset is known at once, but what came before it can still be read.
            return not taken or line.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
        if self._kind != "silent":
            await loop.sock_sendall(line, b"A: b\r\n" if self._kind == "head" else b"a" * tenth)
        try:
            async with asyncio.timeout(self._beat):
                while await loop.sock_recv(line, 4096):
                    pass
        except TimeoutError:
            return False
        return True


def poll(port: int, until: float) -> list[Entry]:
    """An honest client: a new connection for each request."""
    seen = []
    while time.monotonic() < until:
        began = time.monotonic()
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/v1/jobs?limit=5")
            status = connection.getresponse().status
            connection.close()
        except OSError:
            status = 0
        seen.append(
            {"honest": "poll", "ms": round((time.monotonic() - began) * 1000, 1), "status": status}
        )
        time.sleep(0.02)
    return seen


def upload(port: int, until: float) -> list[Entry]:
    """An honest client on a slow line: noise as PNG, at ten times the lowest rate, as large as the time allows."""
    side = int((max(1.0, until - time.monotonic() - 5) * RATE * 10 / 3) ** 0.5)
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
        for start in range(0, len(body), int(RATE)):
            connection.send(body[start : start + int(RATE)])
            time.sleep(0.1)
        status = connection.getresponse().status
    except OSError:
        status = 0
    return [
        {"honest": "upload", "ms": round((time.monotonic() - began) * 1000, 1), "status": status}
    ]


def download(port: int, job: str, until: float) -> list[Entry]:
    """An honest client on a slow line reads the result for as long as there is time."""
    began, taken = time.monotonic(), 0
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.settimeout(30)
        line.connect(("127.0.0.1", port))
        line.sendall(f"GET /v1/jobs/{job}/result HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        status = int(line.recv(12)[9:])
        try:
            while time.monotonic() < until and (piece := line.recv(int(RATE))):
                taken += len(piece)
                time.sleep(0.1)
        except OSError:
            status = 0
    whole = taken >= RESULT_BYTES or time.monotonic() >= until
    return [
        {
            "honest": "download",
            "ms": round((time.monotonic() - began) * 1000, 1),
            "status": status if whole else 0,
        }
    ]


def finished_job(api: ApiProcess) -> str:
    """A job with a result of a megabyte, as a worker would have left it."""
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


async def crowd(
    api: ApiProcess, job: str, count: int, rng: random.Random, spread: float, until: float
) -> list[Entry]:
    """All the slow ones at once; they come one after the other for the first `spread` seconds."""
    seen: list[Entry] = []
    kinds = [KINDS[number % len(KINDS)] for number in range(count)]
    slow = [
        Slow(kind, api.port, job, rng.uniform(0, spread), rng.uniform(0.8, 1.2)) for kind in kinds
    ]
    await asyncio.gather(*(client.run(until, seen) for client in slow))
    return seen


def run(
    seed: int, history: Path, count: int, seconds: float, patience: float, without: str | None
) -> None:
    """The campaign; what was seen goes to the history."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    # Fewer files than clients, as with the 1024 that many systems give: the API must ask for more.
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, max(64, count // 2)), hard))
    settings = {
        "API_CLIENT_TIMEOUT_SECONDS": str(patience),
        "API_MIN_CLIENT_BYTES_PER_SECOND": str(int(RATE)),
    }
    with (
        tempfile.TemporaryDirectory() as folder,
        ApiProcess(Path(folder), without, **settings) as api,
    ):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        job = finished_job(api)
        process = psutil.Process(api.pid)
        before = {"files": process.num_fds(), "bytes": process.memory_info().rss}
        with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
            list(
                pool.map(poll, [api.port] * 3, [time.monotonic() + 2] * 3)
            )  # all three are there before it begins
            until = time.monotonic() + seconds
            honest: list[Future[list[Entry]]] = [
                pool.submit(poll, api.port, until),
                pool.submit(upload, api.port, until),
                pool.submit(download, api.port, job, until),
            ]
            seen = asyncio.run(crowd(api, job, count, random.Random(seed), patience / 2, until))
            seen += [entry for done in honest for entry in done.result()]
        peak = process.memory_info().rss
        _wait_for_files(process, before["files"])
        after = {"files": process.num_fds(), "bytes": peak}
        seen.append(
            {"server": {"before": before, "after": after, "answers": bool(_answers(api.port))}}
        )
        seen.append({"given": {"patience": patience, "count": count, "seconds": seconds}})
    history.write_text("".join(json.dumps(entry) + "\n" for entry in seen))


def _wait_for_files(process: psutil.Process, before: int) -> None:
    until = time.monotonic() + 10
    while process.num_fds() > before + 20 and time.monotonic() < until:
        time.sleep(0.1)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    return False


def _sorted(history: Path) -> tuple[Entry, Entry, dict[str, list[Entry]], dict[str, list[Entry]]]:
    slow, honest = defaultdict(list), defaultdict(list)
    given: Entry = {}
    server: Entry = {}
    for line in history.read_text().splitlines():
        entry = json.loads(line)
        if "slow" in entry:
            slow[entry["slow"]].append(entry)
        elif "honest" in entry:
            honest[entry["honest"]].append(entry)
        given, server = entry.get("given", given), entry.get("server", server)
    return given, server, slow, honest


def violations(history: Path) -> list[str]:
    """What must not have been: by the history alone."""
    given, server, slow, honest = _sorted(history)
    found = []
    for kind in KINDS:
        allowed = given["patience"] * ALLOWED[kind] + SLACK_SECONDS
        late = [entry for entry in slow[kind] if entry["seconds"] > allowed]
        if late:
            longest = max(entry["seconds"] for entry in late)
            found.append(
                f"{kind}: {len(late)} were open for more than {allowed:.1f} s, up to {longest} s"
            )
        if not any(entry["ended"] == "cut" for entry in slow[kind]):
            found.append(f"{kind}: none was cut")
        refused = [entry for entry in slow[kind] if entry["ended"] == "refused"]
        if refused:
            found.append(f"{kind}: {len(refused)} connections were refused")
    for what, status in (("poll", 200), ("upload", 201), ("download", 200)):
        bad = [entry for entry in honest[what] if entry["status"] != status]
        if bad or not honest[what]:
            found.append(
                f"honest {what}: {len(bad)} of {len(honest[what])} failed: {sorted({e['status'] for e in bad})}"
            )
    p99 = percentile([entry["ms"] for entry in honest["poll"]], 0.99)
    if p99 >= HONEST_P99_MS:
        found.append(f"honest poll: p99 {p99} ms")
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
    "--patience", default=15.0, show_default=True, help="IMPASTO_API_CLIENT_TIMEOUT_SECONDS."
)
@click.option(
    "--without",
    type=click.Choice(["protocol"]),
    help="Take this guard out: there must be violations.",
)
def main(
    seed: int, count: int, seconds: float, history: Path, patience: float, without: str | None
) -> None:
    """Run, judge, tell; exit code 1 if there are violations."""
    run(seed, history, count, seconds, patience, without)
    _, server, slow, honest = _sorted(history)
    print(f"seed {seed}, {count} slow clients for {seconds:g} s, patience {patience:g} s")
    for kind in KINDS:
        lived = [entry["seconds"] for entry in slow[kind] if entry["ended"] == "cut"]
        after = (
            f"after {percentile(lived, 0.5)} s (median), {max(lived)} s (longest)" if lived else ""
        )
        print(f"{kind:8} cut {len(lived)} times {after}")
    took = [entry["ms"] for entry in honest["poll"]]
    p50, p99 = percentile(took, 0.5), percentile(took, 0.99)
    print(f"honest   {len(took)} polls: p50 {p50} ms, p99 {p99} ms, longest {max(took)} ms")
    for what in ("upload", "download"):
        print(f"honest   {what} {[(entry['status'], entry['ms']) for entry in honest[what]]}")
    print(f"server   before {server['before']}, after {server['after']}")
    report_violations(violations(history))


if __name__ == "__main__":
    main()
