"""Kill -9 of Valkey under write load: no acknowledged submission is lost.

python tests/campaigns/acknowledged.py --seed 1 --kills 200
python tests/campaigns/acknowledged.py --seed 1 --kills 5 --without aof   (or always)
"""

import random
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
from history import History, events, report_violations
from processes import Valkey

from core import errors
from core.jobs.models import JobInput, SubmissionContext, new_job_id
from core.jobs.store import JobStore
from core.style.spec import StyleSpec

WRITERS = 4
JOBS_PER_OWNER = 10_000
PAUSE_SECONDS = 0.8  # on average, between a start and a kill
INPUT = JobInput(
    content="sha256:" + "a" * 64, styles=["sha256:" + "b" * 64], spec=StyleSpec().model_dump()
)

# Without an append-only file, and with an fsync per second instead of per write.
CONTROLS = {"aof": {"appendonly": "no"}, "always": {"appendfsync": "everysec"}}


def _write(url: str, writer: int, history: History, stop: threading.Event) -> None:
    store, written = JobStore(url, accepts_unsafe=True), 0
    while not stop.is_set():
        job_id = new_job_id()
        # An owner may have 50,000 records.
        context = SubmissionContext(owner=f"{writer}-{written // JOBS_PER_OWNER}")
        try:
            for digest in INPUT.digests():
                store.reserve(digest)
            store.create(job_id, INPUT, context=context)
        except (errors.Unavailable, errors.NotFound):  # not acknowledged: it may be stored or not
            time.sleep(0.02)
            continue
        history.record("acknowledged", job=job_id)
        written += 1
    store.close()


def campaign(
    folder: Path, history: History, *, seed: int, kills: int, without: str | None = None
) -> None:
    """Run the campaign and write its history."""
    rng, stop = random.Random(seed), threading.Event()
    server = Valkey(folder, **CONTROLS.get(without or "", {}))
    history.record("begin", seed=seed, kills=kills, without=without)
    server.start()
    pool = ThreadPoolExecutor(WRITERS)
    try:
        writers = [
            pool.submit(_write, server.url, writer, history, stop) for writer in range(WRITERS)
        ]
        for _ in range(kills):
            time.sleep(rng.expovariate(1 / PAUSE_SECONDS))
            server.kill()
            history.record("kill", back_after=server.start())
        stop.set()
        for writer in writers:
            writer.result()  # raises what has ended a writer early
        store = JobStore(server.url)
        acknowledged = [event["job"] for event in events(history.file, "acknowledged")]
        history.record("lost", jobs=[job for job in acknowledged if not _exists(store, job)])
        store.close()
    finally:
        stop.set()
        pool.shutdown()
        server.kill()


def _exists(store: JobStore, job_id: str) -> bool:
    try:
        store.get(job_id)
    except errors.JobNotFound:
        return False
    return True


def violations(file: Path) -> list[str]:
    """Return the violations that the history shows."""
    ends = [*events(file, "lost")]
    found = [f"{job} was acknowledged and is lost" for event in ends for job in event["jobs"]]
    return found if ends else ["the campaign did not finish"]


@click.command()
@click.option("--seed", default=1)
@click.option("--kills", default=200)
@click.option("--history", "file", type=click.Path(path_type=Path), default=None)
@click.option("--without", type=click.Choice([*CONTROLS]), default=None)
def main(seed: int, kills: int, file: Path | None, without: str | None) -> None:
    """Kill Valkey under write load and count the lost submissions."""
    with tempfile.TemporaryDirectory(prefix="impasto-acknowledged-") as folder:
        history = History(file or Path(folder) / "history.jsonl")
        campaign(Path(folder), history, seed=seed, kills=kills, without=without)
        back = sorted(event["back_after"] for event in events(history.file, "kill"))
        acknowledged = [*events(history.file, "acknowledged")]
        click.echo(f"| kills | {len(back)} |\n| acknowledged | {len(acknowledged)} |")
        click.echo(f"| restart: median, max | {back[len(back) // 2]:.2f}, {back[-1]:.2f} s |")
        report_violations(violations(history.file))


if __name__ == "__main__":
    main()
