"""Many clients upload far more than the limit: all are refused early; memory and disk do not grow.

    python tests/campaigns/fat_uploads.py --seed 1 [--count 200] [--megabytes 50] [--history FILE]
        [--without GUARD]

The seed selects each client's kind: `declared` sends a body whose Content-Length is too large;
`chunked` sends a body without a length; `job` sends one picture of a job, whose body may hold many.
Guards that --without can disable: limit (count the bytes while reading), disk (instead of memory).
"""

import asyncio
import json
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from history import report_violations
from watched_api import WatchedApi

from core.images import validation

GROWTH_KB = 64 * 1024
_BLOCK = 65_536
# The API must refuse after it has read this much. Each client sends it and then waits, because what
# it could send beyond into the kernel's buffers says nothing about the API.
ENOUGH_BYTES = {
    "declared": 0,
    "chunked": validation.MAX_BYTES + _BLOCK,
    "job": validation.MAX_BYTES + _BLOCK,
}
GRACE_SECONDS = 60

WITHOUT = {
    "limit": (
        "import api.submissions.multipart; from anyio import to_thread\n"
        "async def _write(self, data):\n"
        "    self.size += len(data)\n"
        "    await to_thread.run_sync(self.file.write, data)\n"
        "api.submissions.multipart._UploadedFile.write = _write"
    ),
    "disk": (
        "import io, pathlib; from core.storage import blobs\n"
        "class _Memory(io.BytesIO):\n"
        "    path = pathlib.Path('nowhere')\n"
        "blobs.Blobs.pending = lambda self: _Memory()"
    ),
}

Entry = dict[str, Any]


async def _upload(port: int, kind: str, size_bytes: int) -> Entry:
    """Send what must suffice, wait for the answer, and send the rest if there is none."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answered = asyncio.ensure_future(reader.readuntil(b"\r\n\r\n"))
    field, path = ("content", "/v1/jobs") if kind == "job" else ("image", "/v1/images")
    disposition = f'form-data; name="{field}"; filename="x.jpg"'
    part = f"--frontier\r\nContent-Disposition: {disposition}\r\n\r\n".encode()
    part += b"\xff\xd8\xff"  # a JPEG's first bytes
    length = (
        "Transfer-Encoding: chunked"
        if kind == "chunked"
        else f"Content-Length: {len(part) + size_bytes}"
    )
    kind_of_body = "Content-Type: multipart/form-data; boundary=frontier"
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{kind_of_body}\r\n{length}\r\n\r\n"
    sent, began, status, waited = 0, time.monotonic(), 0, False
    try:
        writer.write(head.encode())
        for block in [part, *[bytes(_BLOCK)] * (size_bytes // _BLOCK)]:
            if sent >= ENOUGH_BYTES[kind] and not waited:
                waited = bool(await asyncio.wait([answered], timeout=GRACE_SECONDS))
            if answered.done():
                break
            writer.write(b"%x\r\n%s\r\n" % (len(block), block) if kind == "chunked" else block)
            await writer.drain()
            sent += len(block)
        status = int((await asyncio.wait_for(answered, 60)).split()[1])
    except (OSError, EOFError, TimeoutError):
        answered.cancel()
    finally:
        writer.close()
    return {"kind": kind, "status": status, "sent": sent, "seconds": time.monotonic() - began}


async def _upload_all(port: int, kinds: list[str], size_bytes: int) -> list[Entry]:
    return await asyncio.gather(*(_upload(port, kind, size_bytes) for kind in kinds))


def run(seed: int, count: int, megabytes: int, without: str | None) -> list[Entry]:
    """Run the campaign; return its history."""
    kinds = random.Random(seed).choices(sorted(ENOUGH_BYTES), k=count)
    with WatchedApi(WITHOUT.get(without or "", "")) as api:
        # Warm up: these are refused as bad pictures, and all code is loaded afterwards.
        asyncio.run(_upload_all(api.port, sorted(ENOUGH_BYTES), 1_000_000))
        begin = {
            "kind": "begin",
            "seed": seed,
            "count": count,
            "without": without,
            "peak_kb": api.peak_kb,
        }
        seen = asyncio.run(_upload_all(api.port, kinds, megabytes * 1_000_000))
        deadline = time.monotonic() + 30
        while api.parts() and time.monotonic() < deadline:
            time.sleep(0.05)
        left = [*api.parts(), *sorted(api.digests())]
        end = {
            "kind": "end",
            "alive": api.get("/v1/system") == 200,
            "peak_kb": api.peak_kb,
            "left": left,
        }
        return [
            begin,
            *seen,
            end | {"log": [line for line in api.log.splitlines() if "Traceback" in line]},
        ]


def violations(history: Path) -> list[str]:
    """Return the violations that the history shows."""
    begin, *seen, end = [json.loads(line) for line in history.read_text().splitlines()]
    found = [
        f"{entry['kind']}: {entry['status']}, not 413" for entry in seen if entry["status"] != 413
    ]
    late = [entry for entry in seen if entry["sent"] > ENOUGH_BYTES[entry["kind"]] + _BLOCK]
    found += [
        f"{entry['kind']}: no answer after {ENOUGH_BYTES[entry['kind']] / 1e6:.0f} MB"
        for entry in late
    ]
    growth = end["peak_kb"] - begin["peak_kb"]
    if growth > GROWTH_KB:
        found.append(f"the API grew by {growth / 1024:.0f} MiB")
    if not end["alive"]:
        found.append("the API is dead")
    if len(seen) != begin["count"]:
        found.append("uploads are missing")
    return (
        found
        + [f"left on disk: {name}" for name in end["left"]]
        + [f"the log says: {line}" for line in end["log"]]
    )


def _figures(history: list[Entry]) -> Iterator[str]:
    begin, *seen, end = history
    yield "| kind | clients | 413 | most sent, MB | slowest answer, s |\n|---|---|---|---|---|"
    for kind in ENOUGH_BYTES:
        of_kind = [entry for entry in seen if entry["kind"] == kind]
        if of_kind:
            refused = sum(entry["status"] == 413 for entry in of_kind)
            most, slowest = (max(entry[what] for entry in of_kind) for what in ("sent", "seconds"))
            yield f"| {kind} | {len(of_kind)} | {refused} | {most / 1e6:.1f} | {slowest:.1f} |"
    growth = (end["peak_kb"] - begin["peak_kb"]) / 1024
    before = begin["peak_kb"] / 1024
    left = len(end["left"])
    yield f"API: {before:.0f} MiB at most before, {growth:+.1f} MiB after; files left: {left}"


@click.command()
@click.option("--seed", default=1)
@click.option("--count", default=200, help="Clients at once.")
@click.option("--megabytes", default=50, help="What each wants to send.")
@click.option("--history", type=click.Path(path_type=Path), default=Path("fat_uploads.jsonl"))
@click.option("--without", type=click.Choice(sorted(WITHOUT)))
def main(seed: int, count: int, megabytes: int, history: Path, without: str | None) -> None:
    """Run the campaign, write its history, and check it."""
    entries = run(seed, count, megabytes, without)
    history.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    click.echo("\n".join(_figures(entries)))
    report_violations(violations(history))


if __name__ == "__main__":
    main()
