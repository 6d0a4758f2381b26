"""Workers are frozen for longer than their lease; then the store refuses all that they report.

python tests/campaigns/zombies.py --seed 1 --trials 200
python tests/campaigns/zombies.py --seed 1 --trials 10 --without fencing
"""

import json
import os
import random
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from history import History, events, report_violations
from processes import Valkey

from core import errors
from core.jobs.models import JobInput, JobProgress, ModelUsed, Output, new_job_id
from core.jobs.store import LEASE_SECONDS, JobStore, LeaseStatus
from core.storage.blobs import Blobs
from core.style.spec import StyleSpec
from worker.lease import Lease
from worker.reporter import Reporter

BATCH = 20  # zombies at a time
ANSWER_SECONDS = 60
MODEL = ModelUsed(name="vgg16", sha256="0" * 64)


def _progress(iteration: int) -> JobProgress:
    return JobProgress(
        value=0.5,
        scale=1,
        scales=1,
        iteration=iteration,
        iterations=100,
        iterations_per_second=1,
        seconds_left=1,
        loss={},
    )


def _output(blobs: Blobs, text: str) -> Output:
    return Output(
        id=blobs.put(text.encode()),
        content_type="image/png",
        width=1,
        height=1,
        size_bytes=len(text),
    )


# Every call that a worker can make for its own job.
CALLS: dict[str, Callable[[JobStore, Blobs, str, str], LeaseStatus]] = {
    "progress": lambda store, blobs, job, token: store.report_progress(
        job, token, _progress(99), blobs.put(b"zombie")
    ),
    "keep": lambda store, blobs, job, token: store.save_checkpoint(job, token, "zombie"),
    "succeed": lambda store, blobs, job, token: store.succeed(
        job, token, _output(blobs, "zombie"), MODEL, {}
    ),
    "fail": lambda store, blobs, job, token: store.fail(job, token, errors.Diverged()),
    "end_canceled": lambda store, blobs, job, token: store.end_canceled(
        job, token, _output(blobs, "zombie")
    ),
    "release": lambda store, blobs, job, token: store.release(job, token),
    "renew": lambda store, blobs, job, token: store.renew(job, token),
}


def be_a_worker(url: str, folder: Path, lease_seconds: float, order: list[str]) -> None:
    """Claim a job, get frozen, wake up, make every call and print the answers."""
    store, blobs = JobStore(url, lease_seconds=lease_seconds), Blobs(folder)
    token = os.urandom(16).hex()
    while (job := store.claim(token, f"zombie:{os.getpid()}")) is None:
        time.sleep(0.05)
    lease_status = "ok"
    with (
        Lease(store, job.id, token) as lease,
        Reporter(store, job.id, token, lease, lambda _: "") as reporter,
    ):
        reporter.report(_progress(1))
        before = time.monotonic()  # it may be frozen at any time from the next line on
        sys.stdout.write(json.dumps({"job": job.id}) + "\n")
        sys.stdout.flush()
        while time.monotonic() - before < lease_seconds / 2:  # until it has been frozen
            before = time.monotonic()
            time.sleep(0.02)
        until = time.monotonic() + 3
        try:
            while time.monotonic() < until and not lease.has_to_stop():
                time.sleep(0.02)
        except errors.LeaseLost:
            lease_status = "stale"
    answers = {call: CALLS[call](store, blobs, job.id, token) for call in order}
    sys.stdout.write(json.dumps({"answers": answers, "lease": lease_status}) + "\n")


class Zombie:
    """A worker process to freeze and wake up."""

    def __init__(
        self, url: str, folder: Path, lease_seconds: float, order: list[str], changed: str
    ) -> None:
        code = f"{changed}\nimport sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        code += "from pathlib import Path\nfrom zombies import be_a_worker\n"
        code += f"be_a_worker({url!r}, Path({str(folder)!r}), {lease_seconds}, {order!r})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
        )

    def read_line(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], ANSWER_SECONDS)
        if not ready:
            raise TimeoutError("a zombie does not answer")
        return dict(json.loads(self._process.stdout.readline()))

    def freeze(self) -> None:
        self._process.send_signal(signal.SIGSTOP)

    def wake(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


CONTROLS = {
    "fencing": (
        "import core.jobs.store as s\n"
        "stock = s.load_library\n"
        "def load_library():\n"
        "    version, code = stock()\n"
        "    loose = code.replace(' or owner_token ~= token then', ' then')\n"
        "    looser = loose.replace('if owner_token ~= token then', 'if false then')\n"
        "    assert code != loose != looser\n"
        "    return version + 'x', looser.replace(version, version + 'x')\n"
        "s.load_library = load_library"
    )
}


def campaign(
    folder: Path,
    history: History,
    *,
    seed: int,
    trials: int,
    lease_seconds: float = LEASE_SECONDS,
    without: str | None = None,
) -> None:
    """Run the campaign and write its history."""
    rng, blobs = random.Random(seed), Blobs(folder / "blobs")
    history.record("begin", seed=seed, trials=trials, without=without)
    server = Valkey(folder)
    server.start()
    try:
        store = JobStore(server.url, lease_seconds=lease_seconds)
        while trials > 0:
            count = min(BATCH, trials)
            orders = [rng.sample([*CALLS], len(CALLS)) for _ in range(count)]
            zombies = [
                Zombie(
                    server.url,
                    folder / "blobs",
                    lease_seconds,
                    order,
                    CONTROLS.get(without or "", ""),
                )
                for order in orders
            ]
            try:
                _round(store, blobs, zombies, history, rng)
            finally:
                for zombie in zombies:
                    zombie.end()
            trials -= count
        store.close()
    finally:
        server.kill()
    history.record("end")


def _round(
    store: JobStore, blobs: Blobs, zombies: list[Zombie], history: History, rng: random.Random
) -> None:
    job_input = JobInput(
        content=blobs.put(b"photo"), styles=[blobs.put(b"painting")], spec=StyleSpec().model_dump()
    )
    for _ in zombies:
        for digest in job_input.digests():
            store.reserve(digest)
        store.create(new_job_id(), job_input)
    jobs = [zombie.read_line()["job"] for zombie in zombies]
    for zombie in zombies:
        zombie.freeze()
    reclaimed: set[str] = set()
    until = time.monotonic() + 60
    while (
        not reclaimed.issuperset(jobs) and time.monotonic() < until
    ):  # plays the reaper and another worker
        store.reap_expired_leases()
        while job := store.claim(token := os.urandom(16).hex(), "living"):
            reclaimed.add(job.id)
            if rng.random() < 0.5:
                store.reserve(blobs.put(b"living"))
                store.succeed(job.id, token, _output(blobs, "living"), MODEL, {})
        time.sleep(0.05)
    before = {job: store.get(job).model_dump(mode="json") for job in jobs}
    for zombie in zombies:
        zombie.wake()
    for zombie, job in zip(zombies, jobs, strict=True):
        answers = zombie.read_line()
        changed = before[job] != store.get(job).model_dump(mode="json")
        history.record("trial", job=job, status=before[job]["status"], changed=changed, **answers)
        store.delete(job)  # otherwise its lease would expire in the next round


def violations(file: Path) -> list[str]:
    """Return the violations that the history shows."""
    found = []
    for event in events(file, "trial"):
        accepted = {call: answer for call, answer in event["answers"].items() if answer != "stale"}
        if accepted:
            found.append(f"{event['job']} ({event['status']}): {accepted}")
        if event["lease"] != "stale":
            found.append(f"{event['job']}: the run did not learn that its lease was lost")
        if event["changed"]:
            found.append(f"{event['job']} changed")
    if not any(events(file, "end")):
        found.append("the campaign did not finish")
    return found


@click.command()
@click.option("--seed", default=1)
@click.option("--trials", default=200)
@click.option("--history", "file", type=click.Path(path_type=Path), default=None)
@click.option("--without", type=click.Choice([*CONTROLS]), default=None)
def main(seed: int, trials: int, file: Path | None, without: str | None) -> None:
    """Freeze workers, wake them and check what the store accepts."""
    with tempfile.TemporaryDirectory(prefix="impasto-zombies-") as folder:
        history = History(file or Path(folder) / "history.jsonl")
        campaign(Path(folder), history, seed=seed, trials=trials, without=without)
        trials_made = [*events(history.file, "trial")]
        refused = sum(
            answer == "stale" for event in trials_made for answer in event["answers"].values()
        )
        click.echo(
            f"| zombies | {len(trials_made)} |\n"
            f"| refused | {refused} of {len(trials_made) * len(CALLS)} |"
        )
        report_violations(violations(history.file))


if __name__ == "__main__":
    main()
