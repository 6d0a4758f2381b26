"""The broker is emptied while jobs are queued and the worker is idle: the reaper wakes it again.

python tests/campaigns/lost_wakeups.py --jobs 100
python tests/campaigns/lost_wakeups.py --jobs 10 --without reaper
"""

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from fleet import Fleet, Program
from history import History, events, report_violations
from kills import Caller

from core.celery_app import QUEUE
from core.jobs.models import Status

PARAMETERS = {"size": "64", "iterations": "10", "scales": "1"}
LIMIT_SECONDS = 10.0  # from the loss until the worker has claimed a job
READ_SECONDS = 2.0  # longer than one blocking read of the broker, which takes 1 s
CONTROLS = {
    "reaper": (
        "import api.background.notifications as n\n"
        "n.notify_idle_workers = lambda store, celery: None\n"
    )
}


@contextmanager
def _suspended(worker: Program) -> Iterator[None]:
    """Suspend an idle worker and its child. After a while it waits for no message any more."""
    pids = [worker.pid, *(child.pid for child in worker.children())]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(READ_SECONDS)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def campaign(
    folder: Path,
    history: History,
    *,
    jobs: int,
    without: str | None = None,
    timeout_seconds: float = 300,
) -> None:
    """Run the campaign and write the history."""
    history.record("begin", jobs=jobs, without=without)
    fleet = Fleet(folder, workers=1, changed=CONTROLS.get(without or "", ""))
    with fleet, fleet.redis() as store, Caller(fleet.url) as caller:
        with _suspended(fleet.workers[0]):
            ids = [caller.submit(PARAMETERS, f"job-{number}") for number in range(jobs)]
            lost = store.llen(QUEUE)
            store.delete(QUEUE, "unacked", "unacked_index")
        start = time.monotonic()
        history.record("emptied", messages=lost)
        while (
            _status(caller, ids[0]) is Status.QUEUED
            and time.monotonic() - start < 3 * LIMIT_SECONDS
        ):
            time.sleep(0.02)
        history.record("woken", after=time.monotonic() - start)
        ended = set[str]()
        while len(ended) < jobs and time.monotonic() - start < timeout_seconds:
            ended |= {job_id for job_id in set(ids) - ended if _status(caller, job_id).has_ended}
            time.sleep(0.2)
        history.record("end", ended=len(ended), jobs=jobs)


def _status(caller: Caller, job_id: str) -> Status:
    return Status(caller.ask("GET", f"/v1/jobs/{job_id}").json()["status"])


def violations(file: Path) -> list[str]:
    """What the history shows that must not happen."""
    found = ["no message was lost" for event in events(file, "emptied") if not event["messages"]]
    found += [
        f"woken after {event['after']:.1f} s"
        for event in events(file, "woken")
        if event["after"] > LIMIT_SECONDS
    ]
    ends = [*events(file, "end")]
    found += [
        f"{event['ended']} of {event['jobs']} ended"
        for event in ends
        if event["ended"] < event["jobs"]
    ]
    return found if ends else ["the campaign did not come to its end"]


@click.command()
@click.option("--seed", default=1, help="Accepted like in other campaigns; nothing is random.")
@click.option("--jobs", default=100)
@click.option("--history", "file", type=click.Path(path_type=Path), default=None)
@click.option("--without", type=click.Choice([*CONTROLS]), default=None)
def main(seed: int, jobs: int, file: Path | None, without: str | None) -> None:
    """Lose the messages of queued jobs, and wait until the jobs have ended."""
    with tempfile.TemporaryDirectory(prefix="impasto-wakeups-") as folder:
        history = History(file or Path(folder) / "history.jsonl")
        history.record("seed", seed=seed)
        campaign(
            Path(folder) / "fleet",
            history,
            jobs=jobs,
            without=without,
            timeout_seconds=60 if without else 300,
        )
        for event in events(history.file, "emptied", "woken", "end"):
            click.echo(f"| {event.pop('event')} | {event} |")
        report_violations(violations(history.file))


if __name__ == "__main__":
    main()
