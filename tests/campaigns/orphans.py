"""How soon does a job resume after its worker's child died, or after the whole worker froze?

And how much work is done again?

python tests/campaigns/orphans.py --seed 1 --trials 200
python tests/campaigns/orphans.py --seed 1 --trials 6 --without child-monitor
"""

import json
import os
import random
import signal
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from fleet import Fleet
from history import History, events, percentile, report_violations
from kills import Caller

PARAMETERS = {"size": "64", "iterations": "5000", "scales": "1"}
FROZEN_SHARE = 0.2  # of the trials: freeze the whole worker, as if its machine had failed
LIMITS = {"died": 3.0, "frozen": 6.5}  # seconds, 99th percentile
LOST_SECONDS = 2.0  # of the run, that are done again

CONTROLS = {
    "child-monitor": (
        "import core.jobs.store as s; s.JobStore.requeue_jobs_of = lambda self, worker: 0"
    ),
    "checkpoints": (
        "import core.jobs.store as s; s.JobStore.save_checkpoint = lambda self, *_: 'ok'"
    ),
}


def _wait_for(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    end = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > end:
            raise TimeoutError(what)
        time.sleep(0.005)
    return value


class Trial:
    """One job, and the death of the process that runs it."""

    def __init__(self, fleet: Fleet, caller: Caller, store: Any) -> None:
        self._fleet, self._caller, self._store = fleet, caller, store

    def run(self, kind: str, key: str) -> dict[str, Any]:
        """Run the trial and return its measurements."""
        job_id = self._caller.submit(PARAMETERS, key)
        self._key = f"impasto:job:{job_id}"
        _wait_for(lambda: self._iteration() > 0, "the first progress")
        first = time.monotonic()
        _wait_for(
            lambda: self._iteration() > 30 and self._store.hexists(self._key, "checkpoint"),
            "progress",
        )
        time.sleep(0.5)
        child = int(self._store.hget(self._key, "worker").rpartition(":")[2])
        parent = next(
            one
            for one in self._fleet.workers
            if child in [process.pid for process in one.children()]
        )
        victims = [child] if kind == "died" else [parent.pid, child]
        reached, ran_seconds = self._iteration(), time.monotonic() - first
        for pid in victims:
            os.kill(pid, signal.SIGKILL if kind == "died" else signal.SIGSTOP)
        start = time.monotonic()
        _wait_for(lambda: self._store.hget(self._key, "attempt") == "2", "another attempt")
        claimed = time.monotonic() - start
        version = int(self._store.hget(self._key, "version"))
        _wait_for(lambda: int(self._store.hget(self._key, "version")) > version, "new progress")
        resumed = time.monotonic() - start
        progress = self._store.hget(self._key, "progress")
        self._caller.ask("POST", f"/v1/jobs/{job_id}/cancel")
        for pid in victims if kind == "frozen" else []:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        _wait_for(
            lambda: self._caller.ask("GET", f"/v1/jobs/{job_id}").json()["status"] == "canceled",
            "canceled",
        )
        _wait_for(self._is_complete, "a new child")
        resumed_at = _number(progress, "iteration")
        lost = ran_seconds * max(0.0, 1 - resumed_at / reached)
        return {
            "claimed": claimed,
            "resumed": resumed,
            "reached": reached,
            "resumed_at": resumed_at,
            "lost": lost,
        }

    def _iteration(self) -> int:
        return int(_number(self._store.hget(self._key, "progress"), "iteration"))

    def _is_complete(self) -> bool:
        """Whether each worker has a child, and each child sends heartbeats."""
        children = {child.pid for worker in self._fleet.workers for child in worker.children()}
        now = int(self._store.time()[0]) * 1000
        live = {
            int(name.rpartition(":")[2])
            for name in self._store.zrangebyscore("impasto:workers", now - 2000, "+inf")
        }
        return len(children) == len(self._fleet.workers) and children <= live


def _number(progress: str | None, name: str) -> float:
    return float(json.loads(progress)[name]) if progress else 0.0


def campaign(
    folder: Path, history: History, *, seed: int, trials: int, without: str | None = None
) -> None:
    """Run the campaign and write the history."""
    dice = random.Random(seed)
    history.record("begin", seed=seed, trials=trials, without=without)
    fleet = Fleet(folder, changed=CONTROLS.get(without or "", ""))
    with fleet, fleet.redis() as store, Caller(fleet.url) as caller:
        trial = Trial(fleet, caller, store)
        for number in range(trials):
            kind = "frozen" if dice.random() < FROZEN_SHARE else "died"
            try:
                history.record("trial", kind=kind, **trial.run(kind, f"{seed}-{number}"))
            except TimeoutError as error:
                history.record("stuck", kind=kind, what=str(error))
                break
        history.record("end")


def violations(file: Path) -> list[str]:
    """What the history shows that must not happen."""
    found = [f"{event['kind']}: no {event['what']}" for event in events(file, "stuck")]
    for kind, limit in LIMITS.items():
        seconds = [event["resumed"] for event in events(file, "trial") if event["kind"] == kind]
        if seconds and percentile(seconds, 0.99) > limit:
            found.append(
                f"{kind}: the 99th percentile is {percentile(seconds, 0.99):.2f} s, not {limit}"
            )
    found += [
        f"resumed at iteration {event['resumed_at']:.0f} of {event['reached']}: "
        f"{event['lost']:.1f} s lost"
        for event in events(file, "trial")
        if event["lost"] > LOST_SECONDS
    ]
    if not any(events(file, "end")):
        found.append("the campaign did not come to its end")
    return found


@click.command()
@click.option("--seed", default=1)
@click.option("--trials", default=200)
@click.option("--history", "file", type=click.Path(path_type=Path), default=None)
@click.option("--without", type=click.Choice([*CONTROLS]), default=None)
def main(seed: int, trials: int, file: Path | None, without: str | None) -> None:
    """Kill and measure."""
    with tempfile.TemporaryDirectory(prefix="impasto-orphans-") as folder:
        history = History(file or Path(folder) / "history.jsonl")
        campaign(Path(folder) / "fleet", history, seed=seed, trials=trials, without=without)
        for kind in LIMITS:
            trials_of = [event for event in events(history.file, "trial") if event["kind"] == kind]
            for name in ("claimed", "resumed"):
                if seconds := [event[name] for event in trials_of]:
                    p50, p99 = percentile(seconds, 0.5), percentile(seconds, 0.99)
                    title = f"{kind}, {name}, {len(seconds)} trials: p50, p99, most"
                    click.echo(f"| {title} | {p50:.2f}, {p99:.2f}, {max(seconds):.2f} s |")
        report_violations(violations(history.file))


if __name__ == "__main__":
    main()
