"""An update and a rollback, process by process, under load: no job is lost or run twice.

The version before is the commit before: the branch point from origin/main, or else HEAD~1.

python tests/campaigns/mixed_versions.py --seed 1
python tests/campaigns/mixed_versions.py --seed 1 --without lanes
"""

import io
import random
import signal
import subprocess
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from fleet import Fleet, Program, patch_on_import
from history import History, events, report_violations
from kills import Caller

ROOT = Path(__file__).parents[2]
TIMEOUT_SECONDS = 90.0  # of a step
JOBS_PER_STEP = 2  # that end before the next step
# Of two size classes, and of a length that a restart interrupts.
PARAMETERS = [
    {"size": "64", "iterations": "40", "scales": "1"},
    {"size": "64", "iterations": "150", "scales": "1"},
    {"size": "544", "iterations": "1", "scales": "1"},
]
OLD, NEW = "old", "new"
# What runs which version after each step. First the workers, then the API, and back again; the last
# step meets what the earlier version has left.
STEPS = [
    ("worker-0", NEW),
    ("api", NEW),
    ("worker-1", NEW),
    ("api", OLD),
    ("worker-0", OLD),
    ("worker-1", OLD),
    ("worker-0", NEW),
]
CONTROLS = {
    # Workers do not see jobs that an API of the version before has queued.
    "lanes": patch_on_import(
        "core.jobs.store",
        "usual = module.load_library\n"
        "def load():\n"
        "    version, code = usual()\n"
        "    changed = code.replace('  enter_queued(p)\\n', '')\n"
        "    name = version if changed == code else version[:-1] + '_'\n"
        "    return name, changed.replace(version, name)\n"
        "module.load_library = load\n",
    )
}


def find_earlier_commit() -> str | None:
    """Return the commit before this version; None in a clone without it."""
    head = _git("rev-parse", "HEAD")
    for revision in ("origin/main", "HEAD~1"):
        found = _git("merge-base", "HEAD", revision)
        if found not in (None, head):
            return found
    return None


def _git(*arguments: str) -> str | None:
    ran = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return ran.stdout.strip() if ran.returncode == 0 else None


def _extract(commit: str, folder: Path) -> None:
    packed = subprocess.run(
        ["git", "archive", commit], cwd=ROOT, capture_output=True, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        archive.extractall(folder, filter="data")


class Load(threading.Thread):
    """A client that submits job after job, with a few open ones."""

    MAX_OPEN = 4

    def __init__(self, caller: Caller, history: History, rng: random.Random, store: Any) -> None:
        super().__init__(daemon=True)
        self._caller, self._history, self._rng, self._store = caller, history, rng, store
        self._over = threading.Event()
        self.jobs: list[str] = []

    def run(self) -> None:
        while not self._over.wait(0.1):
            if len(self.jobs) - self.count_ended() < self.MAX_OPEN:
                number = len(self.jobs)
                job = self._caller.submit(self._rng.choice(PARAMETERS), f"key-{number}")
                self.jobs.append(job)
                self._history.record("accepted", job=job)

    def count_ended(self) -> int:
        return sum(int(count) for count in self._store.hgetall("impasto:ended").values())

    def stop(self) -> None:
        self._over.set()
        self.join()


def _wait_until(condition: Callable[[], object]) -> bool:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _switch(fleet: Fleet, program: Program, folder: Path | None) -> None:
    """Stop the program with SIGTERM; the fleet starts it again, in the other version."""
    program.run_from(folder)
    old = program.pid
    program.send(signal.SIGTERM)
    _wait_until(lambda: program.pid != old)
    _wait_until(fleet.is_serving)


def campaign(
    folder: Path, history: History, *, seed: int, commit: str, without: str | None = None
) -> None:
    """Run the campaign and write its history."""
    rng = random.Random(seed)
    history.record("begin", seed=seed, commit=commit, without=without)
    earlier = folder / "earlier"
    _extract(commit, earlier)
    fleet = Fleet(folder / "fleet", workers=2, tiny=True, changed=CONTROLS.get(without or "", ""))
    programs = {program.name: program for program in (fleet.api, *fleet.workers)}
    for program in programs.values():
        program.run_from(earlier)
    with fleet, Caller(fleet.url) as caller:
        load = Load(caller, history, rng, fleet.redis())
        load.start()
        for name, version in STEPS:
            _switch(fleet, programs[name], earlier if version == OLD else None)
            until = load.count_ended() + JOBS_PER_STEP
            progressed = _wait_until(lambda until=until: load.count_ended() >= until)
            history.record("step", program=name, version=version, progressed=progressed)
            if not progressed:
                break
        load.stop()
        _wait_until(lambda: load.count_ended() >= len(load.jobs))
        time.sleep(2)  # a second end of a job would show now
        store = fleet.redis()
        for job in load.jobs:
            status, attempt = store.hmget(f"impasto:job:{job}", "status", "attempt")
            history.record("final", job=job, status=status, attempt=attempt)
        history.record("ended", counts=store.hgetall("impasto:ended"))


def violations(file: Path) -> list[str]:
    """Return the violations that the history shows."""
    found = [
        f"nothing ends with {event['program']} in the {event['version']} version"
        for event in events(file, "step")
        if not event["progressed"]
    ]
    accepted = {event["job"] for event in events(file, "accepted")}
    final = {event["job"]: event for event in events(file, "final")}
    for job in sorted(accepted):
        end = final.get(job, {"status": None, "attempt": None})
        if end["status"] != "succeeded":
            found.append(f"{job} is {end['status']}")
        elif end["attempt"] != "1":
            found.append(f"{job} took {end['attempt']} attempts")
    counts = next(events(file, "ended"), {"counts": {}})["counts"]
    if counts != {"succeeded": str(len(accepted))}:
        found.append(f"{len(accepted)} jobs have ended as {counts}")
    return found


@click.command()
@click.option("--seed", default=1)
@click.option("--commit", default=None, help="The earlier version; default: the commit before.")
@click.option("--history", "file", type=click.Path(path_type=Path), default=None)
@click.option("--without", type=click.Choice([*CONTROLS]), default=None)
def main(seed: int, commit: str | None, file: Path | None, without: str | None) -> None:
    """Update and roll back under load and check every job."""
    commit = commit or find_earlier_commit()
    if commit is None:
        raise click.UsageError("This clone has no earlier commit; fetch more, or give --commit.")
    with tempfile.TemporaryDirectory(prefix="impasto-versions-") as folder:
        history = History(file or Path(folder) / "history.jsonl")
        campaign(Path(folder), history, seed=seed, commit=commit, without=without)
        steps = [*events(history.file, "step")]
        click.echo(f"| steps | {len(steps)} |")
        click.echo(f"| jobs | {len([*events(history.file, 'accepted')])} |")
        report_violations(violations(history.file))


if __name__ == "__main__":
    main()
