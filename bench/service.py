"""Measures what the service costs: checkpoints, frames, submission to start, cancellation.

    python bench/service.py checkpoint | frames | cancel | start | first | decode

Each command prints one table (bench/README.md).
"""

import io
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
from PIL import Image, ImageChops, ImageStat

from bench import api
from bench.optimize import SAMPLES, pair
from cli.local_service import LocalService, free_port
from core.config import Settings
from core.images.decoder import SandboxedDecoder
from core.jobs.models import JobInput, new_job_id
from core.jobs.store import LeaseStatus
from core.neural.transfer.planner import NOMINAL_THROUGHPUT, Planner
from core.neural.transfer.stylize import (
    Control,
    OnProgress,
    RunProgress,
    StepEvent,
    StyleResult,
    stylize,
)
from core.neural.weights.cache import WeightsCache
from core.storage.blobs import Blobs
from core.storage.checkpoints import Checkpoints
from core.style.limits import JobLimits
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
    """Seconds of a run with a worker's checkpoints, and without them, in turns."""
    network = WeightsCache(Settings().weights_dir).load("vgg19")
    inputs = pair(SAMPLES / "harbor.jpg", SAMPLES / "strokes.jpg", size)
    spec = StyleSpec(size=size, scales=1, iterations=iterations)
    stylize(inputs, spec.model_copy(update={"iterations": 2}), network)  # warm-up
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    pictures: set[bytes] = set()
    sizes: list[int] = []  # bytes of each checkpoint
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds):
            plain = stylize(inputs, spec, network, lambda _: Control.CONTINUE)
            checkpointed = _run_with_checkpoints(
                Path(folder), lambda callback: stylize(inputs, spec, network, callback), sizes
            )
            seconds["without"].append(plain.seconds)
            seconds["with"].append(checkpointed.seconds)
            pictures |= {plain.picture.tobytes(), checkpointed.picture.tobytes()}
            click.echo(f"round {number + 1} of {rounds}", err=True)
    without, with_ = (statistics.median(seconds[name]) for name in ("without", "with"))
    click.echo(
        "| size | without | with | ratio | checkpoints a run | MB each | same picture |\n"
        "|---|---|---|---|---|---|---|"
    )
    same = "yes" if len(pictures) == 1 else "NO"
    row = f"| {size} px | {without:.1f} s | {with_:.1f} s | {with_ / without:.3f} "
    click.echo(f"{row}| {len(sizes) / rounds:.1f} | {max(sizes, default=0) / 1e6:.0f} | {same} |")


def _run_with_checkpoints(
    folder: Path, run: Callable[[OnProgress], StyleResult], sizes: list[int]
) -> StyleResult:
    """Run with a checkpoint every two seconds; append the bytes of each to `sizes`."""
    checkpoints = Checkpoints(folder)

    def report(name: str) -> LeaseStatus:
        sizes.append(checkpoints.path(name).stat().st_size)
        return "ok"

    writer = CheckpointWriter(
        checkpoints, lambda count: checkpoints.name("job_bench", "t" * 32, count), report, 2.0
    )

    def callback(event: StepEvent) -> Control:
        if writer.is_due():
            writer.submit(event.checkpoint())
        return Control.CONTINUE

    result = run(callback)
    writer.delete_all()
    return result


class _Timed(Attempt):
    """An attempt that measures what frames cost the run and the reporting thread."""

    waited = 0.0  # seconds that the run waits for its frames
    busy = 0.0  # CPU seconds of the reporting thread

    def time_frames(self) -> None:
        """Measure, from now on."""
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
    """Cost of frames in a run without previews: seconds that the run waits, and CPU time."""
    network = WeightsCache(Settings().weights_dir).load("vgg19")
    with api.service(processes=0) as running:  # a store without an API
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
        checkpoints = Checkpoints(running.folder / "checkpoints")
        settings = WorkerSettings(preview_seconds=600)  # longer than the run: no preview
        attempt = _Timed(
            job,
            "t",
            store,
            blobs=blobs,
            checkpoints=checkpoints,
            settings=settings,
            limits=JobLimits(),
        )
        attempt.time_frames()
        attempt.run(lambda _: (network, Planner(network, NOMINAL_THROUGHPUT, None)))
        frame_count = len(store.list_frames(job.id))
        seconds = store.get(job.id).metrics["run_seconds"]
    click.echo(
        "| size | iterations | run | frames | run waits | thread |\n|---|---|---|---|---|---|"
    )
    shares = f"{attempt.waited / seconds:.2%} | {attempt.busy / seconds:.2%} of a core |"
    click.echo(f"| {size} px | {iterations} | {seconds:.0f} s | {frame_count} | {shares}")


@contextmanager
def _service() -> Iterator[httpx2.Client]:
    with tempfile.TemporaryDirectory() as folder:
        service = LocalService(Settings(data_dir=Path(folder)), "127.0.0.1", free_port())
        with service, httpx2.Client(base_url=service.url, timeout=30, trust_env=False) as client:
            yield client


def _submit(client: httpx2.Client, **parameters: str) -> dict[str, Any]:
    names = {"content": "harbor.jpg", "style": "strokes.jpg"}
    files = {field: (name, (SAMPLES / name).read_bytes()) for field, name in names.items()}
    response = client.post("/v1/jobs", files=files, data=parameters)
    response.raise_for_status()
    return dict(response.json())


def _upload(client: httpx2.Client, name: str, side_px: int, mark: int = 0) -> str:
    """Upload a sample as a JPEG of this long side; another `mark` gives another file."""
    with Image.open(SAMPLES / name) as image:
        size = (side_px, round(side_px * image.height / image.width))
        picture = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    picture.putpixel((0, 0), (mark, mark, mark))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=92)
    response = client.post("/v1/images", files={"image": data.getvalue()})
    response.raise_for_status()
    return str(response.json()["id"])


def _wait_until(
    client: httpx2.Client, job: dict[str, Any], condition: Callable[[dict[str, Any]], object]
) -> dict[str, Any]:
    while not condition(job):
        if job["completed_at"]:
            raise click.ClickException(f"the job has {job['status']} before; take a larger size")
        job = client.get(job["links"]["self"]).json()
        time.sleep(0.005)
    return job


@main.command()
@click.option("--size", default=512)
@click.option("--rounds", default=10)
def cancel(size: int, rounds: int) -> None:
    """Seconds from the cancel of a running job until it has ended, with its picture."""
    seconds = []
    with _service() as client:
        for number in range(rounds):
            job = _submit(client, size=str(size), scales="1")
            job = _wait_until(client, job, lambda job: job["progress"])
            time.sleep(0.13 * number)  # at different points of an iteration
            started_at = time.perf_counter()
            client.post(job["links"]["cancel"])
            job = _wait_until(client, job, lambda job: job["status"] == "canceled")
            seconds.append(time.perf_counter() - started_at)
            assert len(job["outputs"]) == 1, "a canceled job keeps its picture"
            time.sleep(1.5)
    median, longest = statistics.median(seconds), max(seconds)
    click.echo(
        f"| cancel at {size} px, {rounds} times: median, maximum | {median:.2f}, {longest:.2f} s |"
    )


@main.command()
@click.option("--rounds", default=200)
def start(rounds: int) -> None:
    """Milliseconds from a job's creation to its start on an idle service, by the store's clock."""
    waits = []
    with _service() as client:
        for _ in range(rounds):
            job = _submit(client, size="64", scales="1", iterations="2")
            job = _wait_until(client, job, lambda job: job["status"] == "succeeded")
            waits.append(_to_milliseconds(job["started_at"]) - _to_milliseconds(job["created_at"]))
            time.sleep(0.2)
    waits = sorted(waits[1:])  # the first job waits for the worker to load its network
    median, p99 = statistics.median(waits), waits[int(0.99 * len(waits))]
    click.echo(
        f"| submit to start, {len(waits)} jobs: median, p99, maximum "
        f"| {median:.0f}, {p99:.0f}, {waits[-1]:.0f} ms |"
    )


@main.command()
@click.option("--size", default=512)
@click.option("--photo-px", default=4000, show_default=True, help="Long side of both pictures.")
@click.option("--rounds", default=3)
def first(size: int, photo_px: int, rounds: int) -> None:
    """Seconds from the submission, by digests, until the client sees what happens.

    changed: a preview differs from the photo by more than 8 of 255 levels on average. painted: the
    style loss is a tenth of the photo's, which is about the weight of the style. Each job has a new
    photo, and all have the same painting.
    """
    steps = ("running", "preview", "changed", "painted", "first scale done")
    click.echo("| job | " + " | ".join(steps) + " |\n|---|---|---|---|---|---|")
    with _service() as client:
        job = _submit(client, size="64", scales="1", iterations="2")  # the network is loaded now
        _wait_until(client, job, lambda job: job["status"] == "succeeded")
        style = _upload(client, "strokes.jpg", photo_px)
        for number in range(rounds):
            content = _upload(client, "harbor.jpg", photo_px, mark=number)
            photo = _fetch(client, f"/v1/images/{content}")
            time.sleep(4)  # the worker is idle
            submitted_at, cells = time.perf_counter(), []
            body = {"content": content, "styles": [style], "spec": {"size": size}}
            job = client.post("/v1/jobs", json=body).raise_for_status().json()

            def is_changed(job: dict[str, Any], photo: Image.Image = photo) -> bool:
                preview = _fetch(client, job["links"]["preview"])
                difference = ImageChops.difference(preview, photo.resize(preview.size))
                return statistics.mean(ImageStat.Stat(difference).mean) > 8

            def is_painted(job: dict[str, Any]) -> bool:
                progress = job["progress"]  # null with the first preview
                return bool(progress) and progress["loss"]["style"] <= StyleSpec().beta / 10

            for condition in (
                lambda job: job["status"] == "running",
                lambda job: job["preview"] is not None,
                is_changed,
                is_painted,
                lambda job: job["progress"]["scale"] > 1,
            ):
                job = _wait_until(client, job, condition)
                cells.append(f"{time.perf_counter() - submitted_at:.2f} s")
            click.echo(f"| {number + 1} | {' | '.join(cells)} |")
            client.post(job["links"]["cancel"])
            _wait_until(client, job, lambda job: job["status"] == "canceled")


@main.command()
@click.option("--photo-px", default=4000, show_default=True, help="Long side of the photo.")
@click.option("--size", default=512, show_default=True, help="Of the job, in px.")
@click.option("--rounds", default=8, show_default=True)
def decode(photo_px: int, size: int, rounds: int) -> None:
    """Seconds until a worker has the pixels of a JPEG: whole, and as large as the job needs it."""
    with Image.open(SAMPLES / "harbor.jpg") as sample:
        factor = photo_px / max(sample.size)
        photo = sample.resize((round(sample.width * factor), round(sample.height * factor)))
    click.echo("| JPEG | whole | reduced |\n|---|---|---|")
    for name, progressive in (("baseline", False), ("progressive", True)):
        file = io.BytesIO()
        photo.save(file, "JPEG", quality=90, progressive=progressive)
        times: dict[int | None, list[float]] = {None: [], 2 * size: []}
        with SandboxedDecoder() as decoder:
            decoder.decode(file.getvalue(), inspected=True)
            for min_side_px in [*times] * rounds:
                started_at = time.perf_counter()
                decoder.decode(file.getvalue(), inspected=True, min_side_px=min_side_px)
                times[min_side_px].append(time.perf_counter() - started_at)
        cells = [f"{statistics.median(one):.3f} s" for one in times.values()]
        click.echo(f"| {name} | {' | '.join(cells)} |")


def _fetch(client: httpx2.Client, path: str) -> Image.Image:
    data = client.get(path).raise_for_status().content
    return Image.open(io.BytesIO(data)).convert("RGB")


def _to_milliseconds(timestamp: str) -> float:
    return datetime.fromisoformat(timestamp).timestamp() * 1000


if __name__ == "__main__":
    main()
