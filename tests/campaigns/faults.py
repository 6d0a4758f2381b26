"""Network faults between all processes and Valkey: no job is lost or run twice, nothing hangs.

python tests/campaigns/faults.py --seed 1 --faults 100
python tests/campaigns/faults.py --seed 1 --faults 10 --without timeouts
python tests/campaigns/faults.py --seed 1 --faults 10 --without breaker
"""

import random
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import click
import httpx2
import kills
from fleet import Fleet
from history import History, events, percentile, report_violations
from proxy import FAULTS, Fault, Proxy

FAULT_SECONDS = (0.3, 4.0)
LONG: Fault = "swallow"
# The 6th, 16th, 26th ... fault lasts longer than HANG_SECONDS.
LONG_EVERY, LONG_SECONDS = 10, 15.0
PAUSE_SECONDS = (1.0, 4.0)  # between two faults
CROWD = 300  # simultaneous requests at the start of a long fault
HANG_SECONDS = 10.0
TIMEOUT_SECONDS = 120.0

CONTROLS = {
    # Requests to the store have no timeout.
    "timeouts": (
        "import redis\n"
        "stock = redis.Redis.from_url.__func__\n"
        "def without_timeout(kind, url, **options):\n"
        "    return stock(kind, url, **{**options, 'socket_timeout': None})\n"
        "redis.Redis.from_url = classmethod(without_timeout)\n"
        "import redis.asyncio\n"
        "async_stock = redis.asyncio.Redis.from_url.__func__\n"
        "def async_without_timeout(kind, url, **options):\n"
        "    return async_stock(kind, url, **{**options, 'socket_timeout': None})\n"
        "redis.asyncio.Redis.from_url = classmethod(async_without_timeout)"
    ),
    # Each request waits for the silent store, and for a free thread.
    "breaker": "import core.redis_client as c\nc.CircuitBreaker.__enter__ = lambda line: None",
}


class Timed(kills.Caller):
    """A caller that records the duration of each response."""

    def __init__(self, url: str, history: History) -> None:
        super().__init__(url)
        self._http.close()
        self._http = httpx2.Client(base_url=url, timeout=3 * HANG_SECONDS, trust_env=False)
        self._http.event_hooks = {"request": [self._began], "response": [self._ended]}
        self._history, self._at = history, 0.0

    def _began(self, _: Any) -> None:
        self._at = time.monotonic()

    def _ended(self, answer: httpx2.Response) -> None:
        took = round(time.monotonic() - self._at, 3)
        request = answer.request
        facts = {
            "path": request.url.path,
            "status": answer.status_code,
            "retry_after": answer.headers.get("Retry-After"),
        }
        self._history.record("answer", method=request.method, seconds=took, **facts)


class Client(kills.Client):
    """The client of kills.py with a timed caller."""

    kind: type[Timed] = Timed

    def __init__(
        self, fleet: Fleet, history: History, seed: int, jobs: int, stop: threading.Event
    ) -> None:
        super().__init__(fleet, history, seed, jobs, stop)
        self._caller._http.close()
        self._caller = self.kind(fleet.url, history)


def campaign(
    folder: Path, history: History, *, seed: int, faults: int, without: str | None = None
) -> None:
    """Run the campaign and write its history."""
    rng, stop = random.Random(seed), threading.Event()
    history.record("begin", seed=seed, faults=faults, without=without)
    proxy = Proxy(seed)
    fleet = Fleet(folder, tiny=True, through=proxy.port, changed=CONTROLS.get(without or "", ""))
    proxy.target = fleet.store_port
    with proxy, fleet, kills.Caller(fleet.url) as caller:
        _campaign(fleet, proxy, caller, history, rng, stop, faults)


def _campaign(
    fleet: Fleet,
    proxy: Proxy,
    caller: kills.Caller,
    history: History,
    rng: random.Random,
    stop: threading.Event,
    faults: int,
) -> None:
    for number, parameters in enumerate(kills.PARAMETERS):
        job = kills.wait_until_ended(caller, caller.submit(parameters, f"reference-{number}"))
        history.record("reference", parameters=number, pixels=caller.pixels(job))
    clients = [Client(fleet, history, number, 10**6, stop) for number in range(kills.CLIENTS)]
    for client in clients:
        client.start()
    for number in range(faults):
        time.sleep(rng.uniform(*PAUSE_SECONDS))
        fault, seconds = rng.choice(FAULTS), rng.uniform(*FAULT_SECONDS)
        if number % LONG_EVERY == LONG_EVERY // 2:
            fault, seconds = LONG, LONG_SECONDS
        proxy.inject(fault)
        history.record("fault", kind=fault)
        over_at = time.monotonic() + seconds
        if seconds == LONG_SECONDS:
            crowd(fleet, history, CROWD)
        time.sleep(max(0.0, over_at - time.monotonic()))
        proxy.inject("none")
    stop.set()
    until = time.monotonic() + TIMEOUT_SECONDS
    for client in clients:
        client.join(max(0.0, until - time.monotonic()))
    kills.record_final_states(fleet, caller, history)
    kills.delete_all_jobs(fleet, caller, history)


def crowd(fleet: Fleet, history: History, callers: int) -> None:
    """Send this many requests at once and wait for all responses.

    Each takes a thread for a call of the store. Lists take turns, so they would not show it.
    """
    with httpx2.Client(
        base_url=fleet.url, timeout=60, trust_env=False, limits=httpx2.Limits()
    ) as http:

        def send() -> None:
            began = time.monotonic()
            path = f"/v1/jobs/job_{'a' * 26}/frames"
            status = http.get(path).status_code
            took = round(time.monotonic() - began, 3)
            history.record("answer", method="GET", seconds=took, path=path, status=status)

        threads = [threading.Thread(target=send) for _ in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def violations(file: Path) -> list[str]:
    """Return the violations of kills.py, hangs, and server errors other than 503."""
    found = kills.violations(file)
    for event in events(file, "answer"):
        if event["seconds"] > HANG_SECONDS:
            found.append(f"{event['method']} hung for {event['seconds']} s")
        if event["status"] >= 500 and event["status"] != 503:
            found.append(f"{event['method']} was answered {event['status']}")
    return found


@click.command()
@click.option("--seed", default=1)
@click.option("--faults", default=100)
@click.option("--history", "file", type=click.Path(path_type=Path), default=None)
@click.option("--without", type=click.Choice([*CONTROLS]), default=None)
def main(seed: int, faults: int, file: Path | None, without: str | None) -> None:
    """Inject faults and check every job and response."""
    with tempfile.TemporaryDirectory(prefix="impasto-faults-") as folder:
        history = History(file or Path(folder) / "history.jsonl")
        campaign(Path(folder) / "fleet", history, seed=seed, faults=faults, without=without)
        shown = kills.figures(history.file)
        answers = [event["seconds"] for event in events(history.file, "answer")]
        shown["faults"] = dict(Counter(event["kind"] for event in events(history.file, "fault")))
        shown["answers"] = dict(
            Counter(event["status"] for event in events(history.file, "answer"))
        )
        shown["seconds of a response, p50, p99, max"] = [
            percentile(answers, 0.5),
            percentile(answers, 0.99),
            max(answers),
        ]
        for name, value in shown.items():
            click.echo(f"| {name} | {value} |")
        report_violations(violations(history.file))


if __name__ == "__main__":
    main()
