"""What the service adds to the painting: checkpoints, frames, the way from submission to start, the end of a cancel.

    python bench/service.py checkpoint | frames | cancel | start

Each prints one table. bench/README.md.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import httpx2
from PIL import Image

from bench import api
from bench.optimize import SAMPLES, pair
from cli.local_service import LocalService, free_port
from core.config import Settings
from core.jobs.models import JobInput, new_job_id
from core.jobs.store import LeaseStatus
from core.neural.transfer.planner import NOMINAL_THROUGHPUT, Planner
from core.neural.transfer.stylize import RunProgress, StepEvent, StyleResult, stylize
from core.neural.weights.cache import WeightsCache
from core.storage.blobs import Blobs
from core.storage.checkpoints import Checkpoints
from core.style.spec import StyleSpec
from worker.attempt import Attempt
from worker.checkpoint_writer import CheckpointWriter
from worker.settings import WorkerSettings


@click.group()
def main() -> None:
    """Measure the service."""


@main.command()
@click.option("--size", default=512)
@click.option("--iterations", default=40)
@click.option("--rounds", default=3)
def checkpoint(size: int, iterations: int, rounds: int) -> None:
    """Seconds of a run with checkpoints as a worker takes them, and without; in turns."""
    network = WeightsCache(Settings().weights_dir).load("vgg16")
    subject = pair(SAMPLES / "harbor.jpg", SAMPLES / "strokes.jpg", size)
    spec = StyleSpec(size=size, scales=1, iterations=iterations)
    stylize(subject, spec.model_copy(update={"iterations": 2}), network)  # to warm up
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    pictures: set[bytes] = set()
    told: list[int] = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            plain = stylize(subject, spec, network, lambda _: None)
            kept = _with_checkpoints(
                Path(folder), lambda watch: stylize(subject, spec, network, watch), told
            )
            seconds["without"].append(plain.seconds)
            seconds["with"].append(kept.seconds)
            pictures |= {plain.picture.tobytes(), kept.picture.tobytes()}
            click.echo(f"round {number + 1} of {rounds}", err=True)
        bytes_each = max(told)
    without, with_ = (statistics.median(seconds[name]) for name in ("without", "with"))
    click.echo(
        "| size | without | with | ratio | checkpoints a run | MB each | same picture |\n|---|---|---|---|---|---|---|"
    )
    same = "yes" if len(pictures) == 1 else "NO"
    row = f"| {size} px | {without:.1f} s | {with_:.1f} s | {with_ / without:.3f} "
    click.echo(f"{row}| {len(told) / rounds:.1f} | {bytes_each / 1e6:.0f} | {same} |")


def _with_checkpoints(
    folder: Path, paint: Callable[[Callable[[StepEvent], None]], StyleResult], told: list[int]
) -> StyleResult:
    """The run; `told` gets the size of each checkpoint."""
    checkpoints = Checkpoints(folder)

    def tell(name: str) -> LeaseStatus:
        told.append(checkpoints.path(name).stat().st_size)
        return "ok"

    keeper = CheckpointWriter(
        checkpoints, lambda count: checkpoints.name("job_bench", "t" * 32, count), tell, 2.0
    )

    def watch(moment: StepEvent) -> None:
        if keeper.is_due():
            keeper.submit(moment.checkpoint())

    painting = paint(watch)
    keeper.delete_all()
    return painting


class _Timed(Attempt):
    """An attempt that looks at the clock: what frames cost the painting, and the thread beside it."""

    waited = busy = 0.0  # seconds of the painting; CPU seconds of the thread

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self._record = self._frames.record
        self._frames.record = self._timed_record  # type: ignore[method-assign]

    def _make_preview(self, event: StepEvent) -> Image.Image | None:
        began = time.perf_counter()
        preview = super()._make_preview(event)
        self.waited += time.perf_counter() - began
        return preview

    def _timed_record(self, progress: RunProgress, picture: Image.Image) -> None:
        began = time.thread_time()
        self._record(progress, picture)
        self.busy += time.thread_time() - began


@main.command()
@click.option("--size", default=512)
@click.option("--iterations", default=60)
def frames(size: int, iterations: int) -> None:
    """Of a run without previews: how long the painting waits for its frames, and the CPU time of keeping them."""
    network = WeightsCache(Settings().weights_dir).load("vgg16")
    with api.service(processes=0) as running:  # a store, and nobody at its door
        blobs, store = Blobs(running.folder / "blobs"), running.store
        digests = [
            blobs.put((SAMPLES / name).read_bytes()) for name in ("harbor.jpg", "strokes.jpg")
        ]
        for digest in digests:
            store.reserve(digest)
        spec = StyleSpec(size=size, scales=1, iterations=iterations).for_pictures()
        store.create(
            new_job_id(), JobInput(content=digests[0], styles=digests[1:], spec=spec.model_dump())
        )
        job = store.claim("t", "bench")
        assert job is not None
        checkpoints, settings = (
            Checkpoints(running.folder / "checkpoints"),
            WorkerSettings(preview_seconds=600),
        )
        attempt = _Timed(job, "t", store, blobs=blobs, checkpoints=checkpoints, settings=settings)
        attempt.run(lambda _: (network, Planner(network, NOMINAL_THROUGHPUT, None)))
        ended, kept = store.get(job.id), len(store.list_frames(job.id))
    seconds = ended.metrics["run_seconds"]
    click.echo(
        "| size | iterations | run | frames | painting waits | thread |\n|---|---|---|---|---|---|"
    )
    shares = f"{attempt.waited / seconds:.2%} | {attempt.busy / seconds:.2%} of a core |"
    click.echo(f"| {size} px | {iterations} | {seconds:.0f} s | {kept} | {shares}")


@contextmanager
def _service() -> Iterator[httpx2.Client]:
    with tempfile.TemporaryDirectory() as folder:
        service = LocalService(Settings(data_dir=Path(folder)), "127.0.0.1", free_port())
        with service, httpx2.Client(base_url=service.url, timeout=30, trust_env=False) as client:
            yield client


def _submit(client: httpx2.Client, **parameters: str) -> dict[str, Any]:
    names = {"content": "harbor.jpg", "style": "strokes.jpg"}
    files = {field: (name, (SAMPLES / name).read_bytes()) for field, name in names.items()}
    answer = client.post("/v1/jobs", files=files, data=parameters)
    answer.raise_for_status()
    return dict(answer.json())


def _until(
    client: httpx2.Client, job: dict[str, Any], condition: Callable[[dict[str, Any]], object]
) -> dict[str, Any]:
    while not condition(job):
        job = client.get(job["links"]["self"]).json()
        time.sleep(0.002)
    return job


@main.command()
@click.option("--size", default=512)
@click.option("--rounds", default=10)
def cancel(size: int, rounds: int) -> None:
    """Seconds from the cancel of a running job until it has ended, with its picture."""
    found = []
    with _service() as client:
        for number in range(rounds):
            job = _until(
                client, _submit(client, size=str(size), scales="1"), lambda job: job["progress"]
            )
            time.sleep(0.13 * number)  # at different moments of an iteration
            began = time.perf_counter()
            client.post(job["links"]["cancel"])
            job = _until(client, job, lambda job: job["status"] == "canceled")
            found.append(time.perf_counter() - began)
            assert len(job["outputs"]) == 1, "a canceled job keeps its picture"
            time.sleep(1.5)
    click.echo(
        f"| cancel at {size} px, {rounds} times: median, most | {statistics.median(found):.2f}, {max(found):.2f} s |"
    )


@main.command()
@click.option("--rounds", default=50)
def start(rounds: int) -> None:
    """Milliseconds from the record of a job to its start, on an idle service; by the store's clock."""
    found = []
    with _service() as client:
        for _ in range(rounds):
            job = _submit(client, size="64", scales="1", iterations="2")
            job = _until(client, job, lambda job: job["status"] == "succeeded")
            found.append(_milliseconds(job["started_at"]) - _milliseconds(job["created_at"]))
            time.sleep(0.2)
    found = sorted(found)[1:]  # the first finds the worker still loading
    p99 = found[int(0.99 * len(found))]
    click.echo(
        f"| submit to start, {len(found)} jobs: median, p99 | {statistics.median(found):.0f}, {p99:.0f} ms |"
    )


def _milliseconds(time_of_day: str) -> float:
    return datetime.fromisoformat(time_of_day).timestamp() * 1000


if __name__ == "__main__":
    main()
