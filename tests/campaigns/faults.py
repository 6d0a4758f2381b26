"""The network between every process and Valkey fails in all ways: no job is lost or done twice, and nothing hangs.

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
from history import History, events, judged, percentile
from proxy import FAULTS, Fault, Proxy

FAULT_SECONDS = (0.3, 4.0)
LONG: Fault = "swallow"
LONG_EVERY, LONG_SECONDS = (
    10,
    15.0,
)  # the sixth, the sixteenth and so on are longer than a hang may be
PEACE_SECONDS = (1.0, 4.0)
CROWD = 300  # that come at once when a long one begins
HANG_SECONDS = 10.0
PATIENCE_SECONDS = 120.0

CONTROLS = {
    # The store is asked without a limit of time.
    "timeouts": (
        "import redis\n"
        "stock = redis.Redis.from_url.__func__\n"
        "def patient(kind, url, **options):\n"
        "    return stock(kind, url, **{**options, 'socket_timeout': None})\n"
        "redis.Redis.from_url = classmethod(patient)\n"
        "import redis.asyncio\n"
        "stock_of_loops = redis.asyncio.Redis.from_url.__func__\n"
        "def as_patient(kind, url, **options):\n"
        "    return stock_of_loops(kind, url, **{**options, 'socket_timeout': None})\n"
        "redis.asyncio.Redis.from_url = classmethod(as_patient)"
    ),
    # Everybody waits for a store that says nothing, and for a thread to wait in.
    "breaker": "import core.redis_client as c\nc.CircuitBreaker.__enter__ = lambda line: None",
}


class Timed(kills.Caller):
    """A caller that tells how long each answer took."""

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
        request, later = answer.request, answer.headers.get("Retry-After")
        told = {"path": request.url.path, "status": answer.status_code, "retry_after": later}
        self._history.tell("answer", method=request.method, seconds=took, **told)


class Client(kills.Client):
    """As in kills.py, with a timed caller."""

    kind: type[Timed] = Timed

    def __init__(
        self, fleet: Fleet, history: History, seed: int, jobs: int, over: threading.Event
    ) -> None:
        super().__init__(fleet, history, seed, jobs, over)
        self._caller._http.close()
        self._caller = self.kind(fleet.url, history)


def campaign(
    folder: Path, history: History, *, seed: int, faults: int, without: str | None = None
) -> None:
    """Run it and tell the history."""
    dice, over = random.Random(seed), threading.Event()
    history.tell("begin", seed=seed, faults=faults, without=without)
    proxy = Proxy(seed)
    fleet = Fleet(folder, tiny=True, through=proxy.port, changed=CONTROLS.get(without or "", ""))
    proxy.target = fleet.store_port
    with proxy, fleet, kills.Caller(fleet.url) as caller:
        _campaign(fleet, proxy, caller, history, dice, over, faults)


def _campaign(
    fleet: Fleet,
    proxy: Proxy,
    caller: kills.Caller,
    history: History,
    dice: random.Random,
    over: threading.Event,
    faults: int,
) -> None:
    for number, parameters in enumerate(kills.PARAMETERS):
        job = kills._followed(caller, caller.submit(parameters, f"reference-{number}"))
        history.tell("reference", parameters=number, pixels=caller.pixels(job))
    clients = [Client(fleet, history, number, 10**6, over) for number in range(kills.CLIENTS)]
    for client in clients:
        client.start()
    for number in range(faults):
        time.sleep(dice.uniform(*PEACE_SECONDS))
        fault, seconds = dice.choice(FAULTS), dice.uniform(*FAULT_SECONDS)
        if number % LONG_EVERY == LONG_EVERY // 2:
            fault, seconds = LONG, LONG_SECONDS
        proxy.suffer(fault)
        history.tell("fault", kind=fault)
        over_at = time.monotonic() + seconds
        if seconds == LONG_SECONDS:
            crowd(fleet, history, CROWD)
        time.sleep(max(0.0, over_at - time.monotonic()))
        proxy.suffer("none")
    over.set()
    until = time.monotonic() + PATIENCE_SECONDS
    for client in clients:
        client.join(max(0.0, until - time.monotonic()))
    kills._look_again(fleet, caller, history)
    kills._tidy_up(fleet, caller, history)


def crowd(fleet: Fleet, history: History, callers: int) -> None:
    """So many look at the newest jobs at once, one time each; until the last has an answer."""
    with httpx2.Client(
        base_url=fleet.url, timeout=60, trust_env=False, limits=httpx2.Limits()
    ) as http:

        def look() -> None:
            began = time.monotonic()
            status = http.get("/v1/jobs").status_code
            took = round(time.monotonic() - began, 3)
            history.tell("answer", method="GET", seconds=took, path="/v1/jobs", status=status)

        threads = [threading.Thread(target=look) for _ in range(callers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def violations(file: Path) -> list[str]:
    """What must not be, by the history alone: kills.py's list, hangs, and refusals that are none."""
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
    """Hurt and count."""
    with tempfile.TemporaryDirectory(prefix="impasto-faults-") as folder:
        history = History(file or Path(folder) / "history.jsonl")
        campaign(Path(folder) / "fleet", history, seed=seed, faults=faults, without=without)
        shown = kills.figures(history.file)
        answers = [event["seconds"] for event in events(history.file, "answer")]
        shown["faults"] = dict(Counter(event["kind"] for event in events(history.file, "fault")))
        shown["answers"] = dict(
            Counter(event["status"] for event in events(history.file, "answer"))
        )
        shown["seconds of an answer, p50, p99, most"] = [
            percentile(answers, 0.5),
            percentile(answers, 0.99),
            max(answers),
        ]
        for name, value in shown.items():
            click.echo(f"| {name} | {value} |")
        judged(violations(history.file))


if __name__ == "__main__":
    main()
