"""A worker that was frozen longer than its lease wakes up and says what it has to say: nobody listens.

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
from history import History, events, judged
from processes import Valkey

from core import errors
from core.jobs import store
from core.jobs.models import JobInput, JobProgress, ModelUsed, Output, new_job_id
from core.jobs.store import JobStore, LeaseStatus
from core.storage.blobs import Blobs
from core.style.spec import StyleSpec
from worker.lease import Lease
from worker.reporter import Reporter

AT_ONCE = 20
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


# Everything that a worker can say of a job that is its own.
WORDS: dict[str, Callable[[JobStore, Blobs, str, str], LeaseStatus]] = {
    "progress": lambda told, blobs, job, token: told.report_progress(
        job, token, _progress(99), blobs.put(b"zombie")
    ),
    "keep": lambda told, blobs, job, token: told.save_checkpoint(job, token, "zombie"),
    "succeed": lambda told, blobs, job, token: told.succeed(
        job, token, _output(blobs, "zombie"), MODEL, {}
    ),
    "fail": lambda told, blobs, job, token: told.fail(job, token, errors.Diverged()),
    "end_canceled": lambda told, blobs, job, token: told.end_canceled(
        job, token, _output(blobs, "zombie")
    ),
    "release": lambda told, blobs, job, token: told.release(job, token),
    "renew": lambda told, blobs, job, token: told.renew(job, token),
}


def be_a_worker(url: str, folder: Path, lease_seconds: float, order: list[str]) -> None:
    """Claim a job, hold its lease, be frozen, wake up, say everything, tell what was answered."""
    told, blobs = JobStore(url, lease_seconds=lease_seconds), Blobs(folder)
    token = os.urandom(16).hex()
    while (job := told.claim(token, f"zombie:{os.getpid()}")) is None:
        time.sleep(0.05)
    heard = "ok"
    with (
        Lease(told, job.id, token) as lease,
        Reporter(told, job.id, token, lease, lambda _: "") as reporter,
    ):
        reporter.report(_progress(1))
        before = time.monotonic()  # from the next line on it may be frozen at any time
        sys.stdout.write(json.dumps({"job": job.id}) + "\n")
        sys.stdout.flush()
        while time.monotonic() - before < lease_seconds / 2:  # until it was frozen
            before = time.monotonic()
            time.sleep(0.02)
        until = time.monotonic() + 3
        try:
            while time.monotonic() < until and not lease.should_stop():
                time.sleep(0.02)
        except errors.LeaseLost:
            heard = "stale"
    answers = {word: WORDS[word](told, blobs, job.id, token) for word in order}
    sys.stdout.write(json.dumps({"answers": answers, "lease": heard}) + "\n")


class Zombie:
    """A process that will be frozen and wake up."""

    def __init__(
        self, url: str, folder: Path, lease_seconds: float, order: list[str], changed: str
    ) -> None:
        code = f"{changed}\nimport sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        code += "from pathlib import Path\nfrom zombies import be_a_worker\n"
        code += f"be_a_worker({url!r}, Path({str(folder)!r}), {lease_seconds}, {order!r})"
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True
        )

    def told(self) -> dict[str, Any]:
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
        "    loose = code.replace(\"job[1] ~= 'running' or job[2] ~= token\", \"job[1] ~= 'running'\")\n"
        "    loose = loose.replace('if mine[2] ~= token then', 'if false then')\n"
        "    return version + 'x', loose.replace(version, version + 'x')\n"
        "s.load_library = load_library"
    )
}


def campaign(
    folder: Path,
    history: History,
    *,
    seed: int,
    trials: int,
    lease_seconds: float = store.LEASE_SECONDS,
    without: str | None = None,
) -> None:
    """Run it and tell the history."""
    dice, blobs = random.Random(seed), Blobs(folder / "blobs")
    history.tell("begin", seed=seed, trials=trials, without=without)
    server = Valkey(folder)
    server.start()
    try:
        told = JobStore(server.url, lease_seconds=lease_seconds)
        while trials > 0:
            count = min(AT_ONCE, trials)
            orders = [dice.sample([*WORDS], len(WORDS)) for _ in range(count)]
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
                _round(told, blobs, zombies, history, dice)
            finally:
                for zombie in zombies:
                    zombie.end()
            trials -= count
        told.close()
    finally:
        server.kill()
    history.tell("end")


def _round(
    told: JobStore, blobs: Blobs, zombies: list[Zombie], history: History, dice: random.Random
) -> None:
    job_input = JobInput(
        content=blobs.put(b"photo"), styles=[blobs.put(b"painting")], spec=StyleSpec().model_dump()
    )
    for _ in zombies:
        for digest in job_input.digests():
            told.reserve(digest)
        told.create(new_job_id(), job_input)
    jobs = [zombie.told()["job"] for zombie in zombies]
    for zombie in zombies:
        zombie.freeze()
    back: set[str] = set()
    until = time.monotonic() + 60
    while not back.issuperset(jobs) and time.monotonic() < until:  # the reaper, and another worker
        told.reap_expired_leases()
        while job := told.claim(token := os.urandom(16).hex(), "living"):
            back.add(job.id)
            if dice.random() < 0.5:
                told.reserve(blobs.put(b"living"))
                told.succeed(job.id, token, _output(blobs, "living"), MODEL, {})
        time.sleep(0.05)
    before = {job: told.get(job).model_dump(mode="json") for job in jobs}
    for zombie in zombies:
        zombie.wake()
    for zombie, job in zip(zombies, jobs, strict=True):
        answers = zombie.told()
        changed = before[job] != told.get(job).model_dump(mode="json")
        history.tell("trial", job=job, status=before[job]["status"], changed=changed, **answers)
        told.delete(job)  # the next round would find it, its living worker's lease run out


def violations(file: Path) -> list[str]:
    """What must not be, by the history alone."""
    found = []
    for event in events(file, "trial"):
        heard = {word: answer for word, answer in event["answers"].items() if answer != "stale"}
        if heard:
            found.append(f"{event['job']} ({event['status']}): {heard}")
        if event["lease"] != "stale":
            found.append(f"{event['job']}: the lease told nothing to the run")
        if event["changed"]:
            found.append(f"{event['job']} changed")
    if not any(events(file, "end")):
        found.append("the campaign did not come to its end")
    return found


@click.command()
@click.option("--seed", default=1)
@click.option("--trials", default=200)
@click.option("--history", "file", type=click.Path(path_type=Path), default=None)
@click.option("--without", type=click.Choice([*CONTROLS]), default=None)
def main(seed: int, trials: int, file: Path | None, without: str | None) -> None:
    """Freeze and wake."""
    with tempfile.TemporaryDirectory(prefix="impasto-zombies-") as folder:
        history = History(file or Path(folder) / "history.jsonl")
        campaign(Path(folder), history, seed=seed, trials=trials, without=without)
        told = [*events(history.file, "trial")]
        refused = sum(answer == "stale" for event in told for answer in event["answers"].values())
        click.echo(
            f"| zombies | {len(told)} |\n| refused | {refused} of {len(told) * len(WORDS)} |"
        )
        judged(violations(history.file))


if __name__ == "__main__":
    main()
