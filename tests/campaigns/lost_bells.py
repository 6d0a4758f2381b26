"""The broker is emptied while jobs wait: the reaper rings again, and all of them end.

python tests/campaigns/lost_bells.py --jobs 100
python tests/campaigns/lost_bells.py --jobs 10 --without reaper
"""

import tempfile
import time
from pathlib import Path

import click
from fleet import Fleet
from history import History, events, report_violations
from kills import Caller

from core.celery_app import QUEUE
from core.jobs.models import Status

PARAMETERS = {"size": "64", "iterations": "10", "scales": "1"}
LIMIT_SECONDS = 10.0  # until the bells ring again
CONTROLS = {
    "reaper": "import api.background.reaper as r; r.Reaper._ring_lost_bells = lambda self: None"
}


def campaign(
    folder: Path, history: History, *, jobs: int, without: str | None = None, patience: float = 300
) -> None:
    """Run it and tell the history."""
    history.record("begin", jobs=jobs, without=without)
    fleet = Fleet(folder, workers=1, changed=CONTROLS.get(without or "", ""))
    with fleet, fleet.redis() as store, Caller(fleet.url) as caller:
        long = caller.submit({**PARAMETERS, "iterations": "5000"}, "long")  # holds the worker
        while caller.ask("GET", f"/v1/jobs/{long}").json()["status"] == "queued":
            time.sleep(0.02)
        ids = [caller.submit(PARAMETERS, f"job-{number}") for number in range(jobs)]
        emptied = store.llen(QUEUE)
        store.delete(QUEUE, "unacked", "unacked_index")
        began = time.monotonic()
        history.record("emptied", bells=emptied)
        while store.llen(QUEUE) == 0 and time.monotonic() - began < 3 * LIMIT_SECONDS:
            time.sleep(0.02)
        history.record("rung", after=time.monotonic() - began, bells=store.llen(QUEUE))
        caller.ask("POST", f"/v1/jobs/{long}/cancel")
        ended = set()
        while len(ended) < jobs and time.monotonic() - began < patience:
            ended |= {one for one in set(ids) - ended if Status(_status(caller, one)).has_ended}
            time.sleep(0.2)
        history.record("end", ended=len(ended), jobs=jobs)


def _status(caller: Caller, job_id: str) -> str:
    return str(caller.ask("GET", f"/v1/jobs/{job_id}").json()["status"])


def violations(file: Path) -> list[str]:
    """What must not be, by the history alone."""
    found = [
        f"rung again after {event['after']:.1f} s"
        for event in events(file, "rung")
        if event["after"] > LIMIT_SECONDS
    ]
    ends = events(file, "end")
    found += [
        f"{event['ended']} of {event['jobs']} ended"
        for event in ends
        if event["ended"] < event["jobs"]
    ]
    return found if any(events(file, "end")) else ["the campaign did not come to its end"]


@click.command()
@click.option("--seed", default=1, help="Nothing here is by chance.")
@click.option("--jobs", default=100)
@click.option("--history", "file", type=click.Path(path_type=Path), default=None)
@click.option("--without", type=click.Choice([*CONTROLS]), default=None)
def main(seed: int, jobs: int, file: Path | None, without: str | None) -> None:
    """Empty and wait."""
    with tempfile.TemporaryDirectory(prefix="impasto-bells-") as folder:
        history = History(file or Path(folder) / "history.jsonl")
        history.record("seed", seed=seed)
        campaign(
            Path(folder) / "fleet",
            history,
            jobs=jobs,
            without=without,
            patience=60 if without else 300,
        )
        for event in events(history.file, "emptied", "rung", "end"):
            click.echo(f"| {event.pop('event')} | {event} |")
        report_violations(violations(history.file))


if __name__ == "__main__":
    main()
