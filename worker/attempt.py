"""One attempt at one job: claim, load, paint, publish. Runs in the pool's child process, with the network resident.

Knows no Celery. Every change to the job carries the token of the claim, so an attempt that has lost its job to another
worker changes nothing.
"""

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from functools import lru_cache
from typing import TypeVar

from PIL import Image

from core import errors, images
from core.blobs import Blobs, digest_of
from core.jobs import Job, JobProgress, NetworkUsed, Output
from core.neural.planner import Planner, pace_of
from core.neural.stylize import Painting, Progress, stylize
from core.neural.subject import Subject
from core.neural.vgg import Network
from core.neural.weights import WeightsCache
from core.settings import Settings
from core.spec import ModelName, parse_spec
from core.store import JobStore, Standing
from worker.lease import Lease
from worker.settings import WorkerSettings

RETRY_SECONDS = 0.5

log = logging.getLogger(__name__)

shutting_down = threading.Event()  # set by tasks.py when the worker is asked to go


T = TypeVar("T")


class Painter:
    """What stays between jobs: connections, and the network on its device."""

    def __init__(self, settings: Settings, worker: WorkerSettings) -> None:
        self._worker = worker
        self._store = JobStore(settings.redis_url)
        self._blobs = Blobs(settings.blobs_dir)
        self._weights = WeightsCache(settings.weights_dir)
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._load = lru_cache(maxsize=2)(self._loaded)

    def network(self, model: ModelName) -> tuple[Network, Planner]:
        """The resident network, loaded at its first use, and who plans its runs."""
        return self._load(self._weights.resolve(model))

    def _loaded(self, name: ModelName) -> tuple[Network, Planner]:
        network = self._weights.load(name, self._worker.device, self._worker.precision)
        pace = pace_of(network, self._weights.folder / "pace.json")
        free_bytes = int(self._worker.memory_gb * 1e9) or None
        return network, Planner(network, pace, free_bytes)

    def run_next(self) -> str | None:
        """Claim the next job and bring it to an end, or hand it back; its id, or None if there was none."""
        token = secrets.token_hex(16)
        job = self._store.claim(token, self._name)
        if job is None:
            return None
        log.info("%s: attempt %d", job.id, job.attempt)
        try:
            with Lease(self._store, job.id, token, self._keep_preview) as lease:
                standing = self._attempt(job, token, lease)
            log.info("%s: attempt %d ended: %s", job.id, job.attempt, standing)
        except errors.LeaseLost:
            log.warning("%s: no longer ours", job.id)
        except errors.ShuttingDown:
            self._until_stored(lambda: self._store.release(job.id, token))
            log.info("%s: handed back", job.id)
        return job.id

    def _attempt(self, job: Job, token: str, lease: Lease) -> Standing:
        watch = _Watch(lease, self._worker)
        try:
            painting, network, load_seconds = self._paint(job, watch)
            if painting.stopped:
                return self._until_stored(lambda: self._store.end_canceled(job.id, token))
            model = NetworkUsed(name=network.name, sha256=network.sha256)
            output = self._keep_result(job, painting, model)
            self._until_stored(lambda: self._store.progress(job.id, token, watch.told()))
            took = {"load_seconds": load_seconds, "run_seconds": painting.seconds}
            planned = {"planned_seconds": painting.plan.seconds, "planned_bytes": painting.plan.memory_bytes}
            metrics = took | planned | _named(painting.losses)
            return self._until_stored(lambda: self._store.succeed(job.id, token, output, model, metrics))
        except errors.Unavailable:
            raise  # our trouble, not the job's: it comes back when the lease has run out
        except errors.Diverged as error:
            refused: errors.ImpastoError = errors.Diverged(error.message)
            self._keep_last_good(job, token, watch, error.picture)
        except errors.ImpastoError as error:
            # Without its traceback, which would keep the run's tensors until the garbage collector comes.
            refused = type(error)(error.message)
        except Exception:
            log.exception("%s: failed", job.id)
            refused = errors.ImpastoError()
        return self._until_stored(lambda: self._store.fail(job.id, token, refused))

    def _paint(self, job: Job, watch: "_Watch") -> tuple[Painting, Network, float]:
        began = time.monotonic()
        wanted = job.input
        subject = Subject(
            self._picture(wanted.content),
            [*map(self._picture, wanted.styles)],
            [images.decode_mask(self._blobs.get(mask)) for mask in wanted.masks],
            self._picture(wanted.init_image) if wanted.init_image else None,
        )
        spec = parse_spec(wanted.spec)
        network, planner = self.network(spec.model)
        load_seconds = time.monotonic() - began
        return stylize(subject, spec, network, watch, planner), network, load_seconds

    def _picture(self, digest: str) -> Image.Image:
        return images.decode(self._blobs.get(digest))

    def _keep_last_good(self, job: Job, token: str, watch: "_Watch", picture: Image.Image | None) -> None:
        """What a run had before it went wrong stays to be seen, as the preview."""
        if picture is not None:
            small = images.thumbnail(picture, self._worker.preview_px)
            digest = self._until_stored(lambda: self._keep_preview(small))
            self._until_stored(lambda: self._store.progress(job.id, token, watch.told(), digest))

    def _keep_result(self, job: Job, painting: Painting, model: NetworkUsed) -> Output:
        data = images.encode(painting.picture, "png", {"job": job.id, **job.input.provenance(model)})
        width, height = painting.picture.size
        digest = self._until_stored(lambda: self._keep(data))
        return Output(id=digest, content_type="image/png", width=width, height=height, size_bytes=len(data))

    def _keep_preview(self, preview: Image.Image) -> str:
        return self._keep(images.encode(preview, "jpeg"))

    def _keep(self, data: bytes) -> str:
        self._store.hold(digest_of(data))
        return self._blobs.put(data)

    def _until_stored(self, step: Callable[[], T]) -> T:
        """What a run has made is not thrown away because store or disk are away: ask until they take it."""
        while True:
            try:
                return step()
            except errors.Unavailable as error:
                if shutting_down.is_set():
                    raise  # the lease will run out, and another worker begin again
                log.warning("%s", error.message)
                time.sleep(RETRY_SECONDS)


class _Watch:
    """Carries the run's progress to the lease, and the lease's word to the run."""

    def __init__(self, lease: Lease, settings: WorkerSettings) -> None:
        self._lease, self._settings = lease, settings
        self._next_preview = 0.0
        self._newest: JobProgress | None = None

    def told(self) -> JobProgress:
        """The last progress, after there was one."""
        assert self._newest is not None, "a run that has a picture has told of it"
        return self._newest

    def __call__(self, progress: Progress, render: Callable[[], Image.Image]) -> bool:
        if shutting_down.is_set():
            raise errors.ShuttingDown()
        preview = None
        if time.monotonic() >= self._next_preview:
            preview = images.thumbnail(render(), self._settings.preview_px)
            self._next_preview = time.monotonic() + self._settings.preview_seconds
        self._newest = _job_progress(progress)
        self._lease.report(self._newest, preview)
        return self._lease.must_stop()


def _job_progress(progress: Progress) -> JobProgress:
    return JobProgress(
        value=round(progress.value, 4),
        scale=progress.scale,
        scales=progress.scales,
        iteration=progress.iteration,
        iterations=progress.iterations,
        iterations_per_second=round(progress.iterations_per_second, 2),
        seconds_left=round(progress.seconds_left, 1),
        loss=progress.losses,
    )


def _named(losses: dict[str, float]) -> dict[str, float]:
    return {f"loss_{name}": value for name, value in losses.items()}
