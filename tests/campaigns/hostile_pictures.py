"""Send hostile pictures to a real API: each gets its expected answer, and nothing is harmed.

    python tests/campaigns/hostile_pictures.py --seed 1 [--count 20000] [--short] [--history FILE]
        [--without GUARD]

First it uploads the files of hostile_files.py, some also as a job's painting, then `count` mutants
of good files. Then it uploads expensive files, one at a time and many at once, while a bystander
lists the jobs. Code injected into the decoder plays one that a file crashes, fills or takes over.
Guards that --without can disable: sandbox, limits, walk (the check of the structure), child, queue.
"""

import http.client
import json
import random
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import hostile_files
from history import percentile, report_violations
from hostile_files import BAD, File
from watched_api import WatchedApi

from core import errors
from core.images import codec
from core.images.decoder import UPLOAD_LIMITS

ALLOWED = {
    (201, ""),
    (413, "upload_too_large"),
    (415, "unsupported_image"),
    BAD,
    (422, "image_too_large"),
}
GROWTH_KB = 16 * 1024
# By the clock: on busy cores, ten seconds of CPU time take longer.
ANSWER_SECONDS = 2.0 * UPLOAD_LIMITS.cpu_seconds + 1
BYSTANDER_P99_SECONDS = 1.0
CROWD = 60  # expensive uploads at once

# If one of these attempts to escape succeeds, the file is decoded as a good picture, which is not
# the expected answer.
INJECTED = """
import ctypes, io, os, socket
import PIL.Image
_pillow_open = PIL.Image.open
def _succeeds(attempt):
    try:
        attempt()
    except BaseException:
        return False
    return True
def _open(file, *rest, **more):
    data = file.getvalue() if isinstance(file, io.BytesIO) else b""
    if b"CRASH" in data:
        ctypes.string_at(0)
    if b"EAT" in data:
        bytearray(3 * 2**30)
    while b"LOOP" in data:
        pass
    attempts = (
        lambda: open({folder!r} + "/escaped", "w").close(),
        lambda: socket.create_connection(("127.0.0.1", {port})),
        lambda: os.fork() or os._exit(0),
        lambda: os.kill(os.getppid(), 0),
    )
    if b"TAKE OVER" in data and not any([_succeeds(attempt) for attempt in attempts]):
        raise SyntaxError
    return _pillow_open(file, *rest, **more)
PIL.Image.open = _open
"""

WITHOUT = {
    "sandbox": "from core.images import sandbox; sandbox.restrict_process = lambda *_, **__: False",
    "limits": (
        "from core.images import sandbox; _restrict = sandbox.restrict_process\n"
        "sandbox.restrict_process = lambda *_, **options: _restrict(-1, 600, **options)"
    ),
    "walk": (
        "from core.images import codec, png, validation\n"
        "validation._IS_COMPLETE.clear()\n"
        "codec._refuse_missing_data = lambda *_: None\n"
        "png.is_complete = png.has_bounded_metadata = lambda _: True"
    ),
    "child": (
        "from core.images import codec, decoder\n"
        "decoder.inspect_upload = lambda path, *_, **__: decoder.Inspection(\n"
        "    codec.decode(path.read_bytes(), mask=True).size)\n"
        "decoder.warm_up = lambda: True"
    ),
    "queue": (
        "import threading; from anyio import to_thread\n"
        "from core.images import decoder; import api.submissions.pictures as p\n"
        "_two = threading.BoundedSemaphore(2)\n"
        "def _inspect_two_at_a_time(path):\n"
        "    with _two:\n"
        "        return decoder.inspect_upload(path, mask=True)\n"
        "async def _inspect(picture, *_, **__):\n"
        "    return await to_thread.run_sync(_inspect_two_at_a_time, picture.path)\n"
        "p.inspect_picture = _inspect"
    ),
}

Entry = dict[str, Any]


class Client:
    """One connection that sends files and records the answers."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._used = 0.0

    def upload(self, file: File, kind: str) -> Entry:
        """Upload a file as a picture."""
        return self._send("/v1/images", [("image", file)], file, kind)

    def submit_as_style(self, file: File) -> Entry:
        """Submit a job with the file as its painting."""
        photo = File("", hostile_files.saved(hostile_files.colors(), "PNG"), hostile_files.OK)
        return self._send("/v1/jobs", [("content", photo), ("style", file)], file, "style")

    def _send(self, path: str, parts: list[tuple[str, File]], file: File, kind: str) -> Entry:
        entry: Entry = {
            "kind": kind,
            "name": file.name,
            "bytes": len(file.data),
            "pinned": list(file.verdict),
        }
        body = b"".join(_part(name, part) for name, part in parts) + b"--frontier--\r\n"
        # A server closes a connection that has been idle for long.
        if time.monotonic() - self._used > 1:
            self._connection.close()
        began = time.monotonic()
        try:
            self._connection.request(
                "POST",
                path,
                body,
                {
                    "Content-Type": "multipart/form-data; boundary=frontier",
                    "Content-Length": len(body),
                },
            )
            response = self._connection.getresponse()
            answer = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            self._connection.close()
            return entry | {
                "status": 0,
                "code": type(error).__name__,
                "seconds": time.monotonic() - began,
            }
        self._used = time.monotonic()
        entry |= {
            "status": response.status,
            "code": answer.get("code", ""),
            "seconds": time.monotonic() - began,
        }
        entry["retry_after"] = response.headers.get("Retry-After")
        if response.status in (201, 202):
            named = answer.get("input") or {"content": answer["id"], "styles": []}
            entry |= {
                "digests": [named["content"], *named["styles"]],
                "decodes": _decodes(file.data),
            }
        return entry


def _part(field: str, file: File) -> bytes:
    name = file.filename.encode("utf-8").replace(b'"', b"%22")
    head = b'--frontier\r\nContent-Disposition: form-data; name="%s"; filename="%s"\r\n' % (
        field.encode(),
        name,
    )
    return head + b"Content-Type: %s\r\n\r\n" % file.label.encode() + file.data + b"\r\n"


def _decodes(data: bytes) -> bool:
    """Return whether a worker can decode an accepted file, if only as a mask."""
    try:
        codec.decode(data, mask=True)
    except errors.ImpastoError:
        return False
    return True


def _mutants(seed: int, count: int) -> Iterator[File]:
    random_ = random.Random(seed)
    sources = list(hostile_files.encodings().values())
    sources += [
        hostile_files.saved(hostile_files.noise(seed), kind) for kind in ("JPEG", "PNG", "WEBP")
    ]
    for number in range(count):
        yield File(f"mutant {number}", hostile_files.mutant(random_, sources), (0, ""))


def _send_all(
    port: int, files: Iterable[tuple[File, str]], connections: int, seen: list[Entry]
) -> None:
    """Send the files over several connections, each as soon as one is free."""
    waiting, lock = iter(files), threading.Lock()

    def send() -> None:
        client = Client(port)
        while True:
            with lock:
                file, kind = next(waiting, (None, ""))
            if file is None:
                return
            seen.append(
                client.submit_as_style(file) if kind == "style" else client.upload(file, kind)
            )

    threads = [threading.Thread(target=send) for _ in range(connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _run_bystander(port: int, over: threading.Event, seen: list[Entry]) -> None:
    """List the jobs again and again, and record the time of each answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    while not over.wait(0.02):
        began = time.monotonic()
        try:
            connection.request("GET", "/v1/jobs?limit=1")
            response = connection.getresponse()
            response.read()
            status = response.status
        except (OSError, http.client.HTTPException):
            status = 0
            connection.close()
        seen.append({"kind": "bystander", "status": status, "seconds": time.monotonic() - began})


def _send_crowd(port: int, seen: list[Entry]) -> None:
    """Send many expensive pictures at once."""
    heavy = hostile_files.saved(codec.Image.new("RGB", (5000, 5000)), "WEBP", lossless=True)
    over = threading.Event()
    bystander = threading.Thread(target=_run_bystander, args=(port, over, seen))
    bystander.start()
    files = [(File("a crowd of 25 MP", heavy, hostile_files.OK), "crowd")] * CROWD
    _send_all(port, files, CROWD, seen)
    over.set()
    bystander.join()


def run(
    seed: int, count: int, connections: int, *, short: bool, without: str | None
) -> list[Entry]:
    """Run the campaign; return its history."""
    api = WatchedApi()
    injected = INJECTED.format(folder=str(api.folder), port=api.port)
    api.changed = "\n".join([injected, WITHOUT.get(without or "", "")])
    with api:
        pinned = list(hostile_files.pinned(heavy=False))
        good = [(file, "warm") for file in pinned if file.verdict == hostile_files.OK][:20]
        seen: list[Entry] = []
        _send_all(api.port, good, connections, seen)
        begin = {
            "kind": "begin",
            "seed": seed,
            "count": count,
            "without": without,
            "peak_kb": api.peak_kb,
        }
        styles = pinned[:: 40 if short else 4]
        _send_all(api.port, [(file, "pinned") for file in pinned], connections, seen)
        _send_all(api.port, [(file, "style") for file in styles], connections, seen)
        _send_all(api.port, ((file, "mutant") for file in _mutants(seed, count)), connections, seen)
        if not short:
            heavy = (file for file in hostile_files.pinned(heavy=True) if file not in pinned)
            _send_all(api.port, ((file, "pinned") for file in heavy), 1, seen)
            _send_crowd(api.port, seen)
        return [begin, *seen, _end(api)]


def _end(api: WatchedApi) -> Entry:
    deadline = time.monotonic() + 15
    while api.parts() and time.monotonic() < deadline:
        time.sleep(0.05)
    alive = api.get("/livez") == 200
    return {
        "kind": "end",
        "alive": alive,
        "peak_kb": api.peak_kb if alive else 0,
        "parts": api.parts(),
        "blobs": sorted(api.digests()),
        "escaped": (api.folder / "escaped").exists(),
        "log": [
            line
            for line in api.log.splitlines()
            if any(word in line for word in ("Traceback", "Error", "Warning", "without"))
        ],
    }


def violations(history: Path) -> list[str]:
    """Return the violations that the history shows."""
    entries = [json.loads(line) for line in history.read_text().splitlines()]
    begin, *seen, end = entries
    found = [violation for entry in seen for violation in _check_entry(entry)]
    named = {digest for entry in seen for digest in entry.get("digests", [])}
    if not end["alive"]:
        found.append("the API is dead")
    if end["peak_kb"] - begin["peak_kb"] > GROWTH_KB:
        found.append(f"the API grew by {(end['peak_kb'] - begin['peak_kb']) / 1024:.0f} MiB")
    if end["escaped"]:
        found.append("a decoder wrote a file")
    found += [f"a pending file was left: {name}" for name in end["parts"]]
    found += [f"no answer named the blob {digest}" for digest in sorted(set(end["blobs"]) - named)]
    found += [
        f"an accepted picture is missing: {digest}" for digest in sorted(named - set(end["blobs"]))
    ]
    found += [f"the log says: {line}" for line in end["log"]]
    waits = sorted(entry["seconds"] for entry in seen if entry["kind"] == "bystander")
    if waits and percentile(waits, 0.99) > BYSTANDER_P99_SECONDS:
        found.append(f"a bystander waited {percentile(waits, 0.99):.2f} s (p99)")
    if sum(entry["kind"] == "mutant" for entry in seen) != begin["count"]:
        found.append("mutants are missing")
    return found


def _check_entry(entry: Entry) -> Iterator[str]:
    kind, got = entry["kind"], (entry["status"], entry.get("code", ""))
    what = f"{entry.get('name', kind)}: {got}"
    if kind == "bystander":
        if got[0] != 200:
            yield what
        return
    if kind == "crowd":
        if got[0] != 201 and (got[0] != 503 or not entry["retry_after"]):
            yield what
        return
    expected = tuple(entry["pinned"])
    if kind == "style" and expected == hostile_files.OK:
        expected = (202, "")
    if got != expected if kind != "mutant" else got not in ALLOWED:
        yield f"{what}, not {expected}"
    if not entry.get("decodes", True):
        yield f"{what}, but does not decode again"
    if entry["seconds"] > ANSWER_SECONDS:
        yield f"{what} after {entry['seconds']:.1f} s"


def _figures(history: list[Entry]) -> Iterator[str]:
    begin, *seen, end = history
    yield "| kind | sent | accepted | refused | p50 ms | p99 ms | max ms |"
    yield "|---|---|---|---|---|---|---|"
    for kind in ("pinned", "style", "mutant", "crowd", "bystander"):
        of_kind = [entry for entry in seen if entry["kind"] == kind]
        if of_kind:
            waits = [1000 * entry["seconds"] for entry in of_kind]
            accepted = sum(200 <= entry["status"] < 300 for entry in of_kind)
            shares = " | ".join(f"{percentile(waits, share):.0f}" for share in (0.5, 0.99, 1))
            yield f"| {kind} | {len(of_kind)} | {accepted} | {len(of_kind) - accepted} | {shares} |"
    growth = (end["peak_kb"] - begin["peak_kb"]) / 1024
    before, blobs = begin["peak_kb"] / 1024, len(end["blobs"])
    yield f"API: {before:.0f} MiB at most before, {growth:+.1f} MiB after; blobs: {blobs}"


@click.command()
@click.option("--seed", default=1)
@click.option("--count", default=20_000, help="Mutants.")
@click.option("--connections", default=4)
@click.option("--short", is_flag=True, help="Skip the files that take seconds each.")
@click.option("--history", type=click.Path(path_type=Path), default=Path("hostile_pictures.jsonl"))
@click.option("--without", type=click.Choice(sorted(WITHOUT)))
def main(
    seed: int, count: int, connections: int, short: bool, history: Path, without: str | None
) -> None:
    """Run the campaign, write its history, and check it."""
    entries = run(seed, count, connections, short=short, without=without)
    history.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    click.echo("\n".join(_figures(entries)))
    report_violations(violations(history))


if __name__ == "__main__":
    main()
