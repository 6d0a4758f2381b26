"""Failovers of a store with Sentinel under load: no accepted job is lost, and each one ends.

The primary is killed with -9, killed while its replica lags, or frozen.

python tests/campaigns/failover.py --seed 1 --failovers 60
python tests/campaigns/failover.py --seed 1 --failovers 12 --without replicas   (--min-replicas)
"""

import random
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from fleet import Fleet, Program
from history import History, events, percentile, report_violations
from kills import Caller
from sentinel_store import SentinelStore, wait_until

from core.jobs.models import Status
from core.redis_client import connect

CLIENTS = 4
JOBS_PER_SECOND = 6  # of each client, at most
KINDS = ("kill", "lag", "freeze")
LAG_SECONDS = 0.5
PAUSE_SECONDS = 1.0  # mean time between two failovers
PARAMETERS = {"size": "64", "iterations": "2", "scales": "1"}
END_SECONDS = 600
# The control: a job is accepted before a replica has it.
CONTROLS = {"replicas": {"STORE_REPLICAS": "0"}}


class SentinelFleet(Fleet):
    """API and workers on a store with Sentinel."""

    def __init__(self, folder: Path, store: SentinelStore, workers: int, **settings: str) -> None:
        super().__init__(folder, workers=workers, tiny=True, REDIS_URL=store.url, **settings)
        self._url = store.url

    def redis(self) -> Any:
        return connect(self._url)

    def _programs(self) -> Iterator[Program]:
        yield self.api
        yield from self.workers


def _submit(url: str, client: int, history: History, stop: threading.Event) -> None:
    number = 0
    with Caller(url) as caller:
        while not stop.wait(1 / JOBS_PER_SECOND):
            job = caller.submit(PARAMETERS, f"{client}-{number}")
            history.record("accepted", job=job)
            number += 1


def campaign(
    folder: Path,
    history: History,
    *,
    seed: int,
    failovers: int,
    without: str | None = None,
    replicas: int = 1,
    min_replicas: bool = False,
    kinds: tuple[str, ...] = KINDS,
    workers: int = 2,
) -> None:
    """Run the campaign and write its history."""
    rng, stop = random.Random(seed), threading.Event()
    settings = {"STORE_REPLICAS": "1", "API_MAX_JOBS_PER_CALLER": "100000"}
    options = {"min-replicas-to-write": "1"} if min_replicas else {}
    history.record("begin", seed=seed, failovers=failovers, without=without)
    with (
        SentinelStore(folder / "store", replicas=replicas, **options) as store,
        SentinelFleet(
            folder / "fleet", store, workers, **settings | CONTROLS.get(without or "", {})
        ) as fleet,
        Caller(fleet.url) as caller,
    ):
        clients = [
            threading.Thread(target=_submit, args=(fleet.url, number, history, stop), daemon=True)
            for number in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        for number in range(failovers):
            time.sleep(rng.expovariate(1 / PAUSE_SECONDS))
            kind = kinds[number % len(kinds)]
            if kind == "lag":
                store.hold_back(LAG_SECONDS)
            store.freeze() if kind == "freeze" else store.kill()
            history.record("failover", kind=kind)
            history.record("promoted", after=store.wait_for_failover())
            store.restart()
            _wait_until_accepted(history)
        stop.set()
        for client in clients:
            client.join(60)
        _record_ends(caller, history)


def _wait_until_accepted(history: History) -> None:
    promoted_at = max(event["at"] for event in events(history.file, "promoted"))
    wait_until(
        lambda: any(event["at"] > promoted_at for event in events(history.file, "accepted")),
        "a job is accepted",
    )


def _record_ends(caller: Caller, history: History) -> None:
    until = time.monotonic() + END_SECONDS
    for event in [*events(history.file, "accepted")]:
        while True:
            answer = caller.ask("GET", f"/v1/jobs/{event['job']}")
            status = answer.json()["status"] if answer.status_code == 200 else "lost"
            has_ended = status == "lost" or Status(status).has_ended
            if has_ended or time.monotonic() > until:
                break
            time.sleep(0.05)
        history.record("end", job=event["job"], status=status)
    history.record("done")


def violations(file: Path) -> list[str]:
    """Return the violations that the history shows."""
    found = [
        f"{event['job']} was accepted and is {event['status']}"
        for event in events(file, "end")
        if event["status"] != "succeeded"
    ]
    return found if any(events(file, "done")) else [*found, "the campaign did not finish"]


def figures(file: Path) -> dict[str, dict[str, list[float]]]:
    """By kind of failover: the seconds until the promotion, and until the next accepted job."""
    accepted = [event["at"] for event in events(file, "accepted")]
    found: dict[str, dict[str, list[float]]] = {}
    pairs = zip(events(file, "failover"), events(file, "promoted"), strict=True)
    for failover, promoted in pairs:
        own = found.setdefault(failover["kind"], {"promoted": [], "accepted": []})
        own["promoted"].append(promoted["after"])
        own["accepted"] += [at - failover["at"] for at in accepted if at > promoted["at"]][:1]
    return found


@click.command()
@click.option("--seed", default=1)
@click.option("--failovers", default=60)
@click.option("--history", "file", type=click.Path(path_type=Path), default=None)
@click.option("--without", type=click.Choice([*CONTROLS]), default=None)
@click.option("--replicas", default=1)
@click.option("--min-replicas", is_flag=True, help="Servers with min-replicas-to-write 1.")
@click.option("--kind", "kinds", type=click.Choice(KINDS), multiple=True, default=KINDS)
def main(
    seed: int,
    failovers: int,
    file: Path | None,
    without: str | None,
    replicas: int,
    min_replicas: bool,
    kinds: tuple[str, ...],
) -> None:
    """Let Sentinel replace the primary under load, and count the lost jobs."""
    with tempfile.TemporaryDirectory(prefix="impasto-failover-") as folder:
        history = History(file or Path(folder) / "history.jsonl")
        campaign(
            Path(folder),
            history,
            seed=seed,
            failovers=failovers,
            without=without,
            replicas=replicas,
            min_replicas=min_replicas,
            kinds=kinds,
        )
        click.echo(f"| accepted | {len([*events(history.file, 'accepted')])} |")
        for kind, own in figures(history.file).items():
            for name, seconds in own.items():
                click.echo(
                    f"| {kind}: {name} after (p50, max of {len(seconds)}) "
                    f"| {percentile(seconds, 0.5):.2f}, {max(seconds):.2f} s |"
                )
        report_violations(violations(history.file))


if __name__ == "__main__":
    main()
