"""One caller sends heavy work over many connections: how long does another's small request wait?

    python tests/campaigns/fair_turns.py --seed 1 [--work uploads|results] [--side 6000] [--count 5]
        [--history FILE] [--without turns]

`uploads` are large progressive JPEGs against a small PNG, `results` are large WebPs of ever new
widths against a small JPEG. The history counts how many heavy requests got a slot while the small
one waited, so that the verdict does not depend on the speed of the machine.
"""

import io
import json
import random
import secrets
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import click
from history import report_violations
from isolation import Client
from keyed_api import KeyedApi
from PIL import Image

from core.auth.api_keys import ApiKeyStore
from core.images import codec
from core.jobs.models import ModelUsed, Output
from core.jobs.store import JobStore
from core.storage.blobs import Blobs

CONNECTIONS = 16
# None gets a slot later; but one that has just got it may write to the log after the small one.
MAX_PASSED = 2

# Writes to the log when a request begins to wait and when it has its slot.
OBSERVED = (
    "import api.fair_queue as q\n"
    "_observed = q.FairQueue._wait_for_turn\n"
    "async def _observe(self, waiter):\n"
    "    print('turn waits', waiter.caller, flush=True)\n"
    "    await _observed(self, waiter)\n"
    "    print('turn starts', waiter.caller, flush=True)\n"
    "q.FairQueue._wait_for_turn = _observe\n"
)
WITHOUT = {
    "turns": (
        "import anyio, api.fair_queue as q\n"
        "_init = q.FairQueue.__init__\n"
        "def _init_limiter(self, things, slots, **options):\n"
        "    _init(self, things, slots, **options)\n"
        "    self.limiter = anyio.CapacityLimiter(slots)\n"
        "q.FairQueue.__init__ = _init_limiter\n"
        "q.FairQueue._wait_for_turn = lambda self, waiter: self.limiter.acquire()\n"
        "q.FairQueue._end_turn = lambda self, caller: self.limiter.release()\n"
    )
}

Entry = dict[str, Any]
Send = Callable[[Client], int]


class Setup:
    """Two callers with keys, and what each of them sends."""

    def __init__(self, api: KeyedApi, work: str, side: int, seed: int) -> None:
        self._api, self._random = api, random.Random(seed)
        keys = ApiKeyStore(api.redis_url)
        (self.heavy, self._heavy_secret), (self.small, self._small_secret) = (
            keys.create("heavy"),
            keys.create("small"),
        )
        keys.close()
        if work == "uploads":
            data = io.BytesIO()
            Image.new("RGB", (side, side), (90, 120, 60)).save(data, "JPEG", progressive=True)
            self.send_heavy: Send = lambda client: client.upload(data.getvalue())["status"]
            self.send_small: Send = lambda client: client.upload(self._picture(64))["status"]
        else:
            self.send_heavy = self._get_result(self.connect_heavy(), side, "webp")
            self.send_small = self._get_result(self.connect_small(), 256, "jpeg")

    def connect_heavy(self) -> Client:
        return Client(self._api.port, self._heavy_secret)

    def connect_small(self) -> Client:
        return Client(self._api.port, self._small_secret)

    def _get_result(self, client: Client, side: int, kind: str) -> Send:
        """Run a job as a worker would; return a function that gets its result in a new width."""
        digest = json.loads(client.upload(self._picture(64))["body"])["id"]
        job = json.loads(client.submit(digest)["body"])["id"]
        store, token = JobStore(self._api.redis_url), secrets.token_hex(8)
        store.claim(token, "worker")
        data = self._picture(side)
        output = Output(
            id=Blobs(self._api.folder / "data" / "blobs").put(data),
            content_type="image/png",
            width=side,
            height=side,
            size_bytes=len(data),
        )
        store.succeed(job, token, output, ModelUsed(name="vgg19", sha256="0"), {})
        store.close()
        widths = iter(range(side - 1, 15, -1))
        lock = threading.Lock()

        def get(client: Client) -> int:
            with lock:
                width = next(widths)
            path = f"/v1/jobs/{job}/result?format={kind}&width={width}"
            status: int = client.ask("GET", path)["status"]
            return status

        return get

    def _picture(self, side: int) -> bytes:
        noise = Image.frombytes("RGB", (64, 64), self._random.randbytes(64 * 64 * 3))
        return codec.encode(noise.resize((side, side)))


def run(seed: int, work: str, side: int, count: int, without: str | None) -> list[Entry]:
    """Run the campaign; return its history."""
    changed = WITHOUT.get(without or "", "") + OBSERVED
    # The heavy requests wait in the queue, instead of being refused by admission control.
    settings = {"API_SUBMISSIONS_PER_MINUTE": "100000", "API_MAX_WAIT_SECONDS": "600"}
    with (
        tempfile.TemporaryDirectory(prefix="impasto-campaign-") as folder,
        KeyedApi(Path(folder), changed, **settings) as api,
    ):
        setup = Setup(api, work, side, seed)
        answers: Counter[int] = Counter()
        over = threading.Event()

        def attack() -> None:
            client = setup.connect_heavy()
            while not over.is_set():
                with suppress(OSError, HTTPException):
                    answers[setup.send_heavy(client)] += 1

        threads = [threading.Thread(target=attack) for _ in range(CONNECTIONS)]
        for thread in threads:
            thread.start()
        log = Path(folder) / "api.log"
        until = time.monotonic() + 60
        while log.read_text().count(f"turn waits {setup.heavy.id}") < CONNECTIONS:
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.05)
        client, small = setup.connect_small(), []
        for _ in range(count):
            began = time.monotonic()
            status = setup.send_small(client)
            small.append({"status": status, "seconds": time.monotonic() - began})
        over.set()
        for thread in threads:
            thread.join()
        passed = _count_passed(log.read_text(), setup.heavy.id, setup.small.id)[-count:]
    for entry, number in zip(small, passed, strict=True):
        entry["passed"] = number
    begin = {"seed": seed, "work": work, "side": side, "without": without, "answers": answers}
    return [begin, *small]


def _count_passed(log: str, heavy: str, small: str) -> list[int]:
    """For each small request: how many heavy ones got a slot while it waited."""
    counts, waits = [], False
    for line in log.splitlines():
        if line.startswith(f"turn waits {small}"):
            waits = True
            counts.append(0)
        elif line.startswith(f"turn starts {small}"):
            waits = False
        elif waits and line.startswith(f"turn starts {heavy}"):
            counts[-1] += 1
    return counts


def violations(history: Path) -> list[str]:
    """Return the violations that the history shows."""
    _, *small = [json.loads(line) for line in history.read_text().splitlines()]
    found = [f"a small request got {entry['status']}" for entry in small if entry["status"] >= 300]
    found += [
        f"{entry['passed']} heavy requests passed a small one"
        for entry in small
        if entry["passed"] > MAX_PASSED
    ]
    return found or ([] if small else ["no small request was sent"])


def _figures(history: list[Entry]) -> Iterator[str]:
    begin, *small = history
    yield f"heavy {begin['work']}, answers by status: {dict(begin['answers'])}"
    yield "| small request | status | s | heavy ones that passed it |\n|---|---|---|---|"
    for number, entry in enumerate(small):
        yield f"| {number} | {entry['status']} | {entry['seconds']:.2f} | {entry['passed']} |"


@click.command()
@click.option("--seed", default=1)
@click.option("--work", type=click.Choice(["uploads", "results"]), default="uploads")
@click.option("--side", default=2500, help="Of the heavy pictures, in px.")
@click.option("--count", default=5, help="Small requests, one after another.")
@click.option("--history", type=click.Path(path_type=Path), default=Path("fair_turns.jsonl"))
@click.option("--without", type=click.Choice(sorted(WITHOUT)))
def main(seed: int, work: str, side: int, count: int, history: Path, without: str | None) -> None:
    """Run the campaign, write its history, and check it."""
    entries = run(seed, work, side, count, without)
    history.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    click.echo("\n".join(_figures(entries)))
    report_violations(violations(history))


if __name__ == "__main__":
    main()
