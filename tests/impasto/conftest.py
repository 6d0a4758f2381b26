"""A real API process on a real Valkey; the test itself plays the worker."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from api_process import ApiProcess
from PIL import Image

from core.images import codec
from core.jobs.models import Frame, Job, JobProgress, ModelUsed, Output, new_job_id
from core.jobs.store import JobStore
from core.storage.blobs import Blobs
from impasto import Client


class Worker:
    """Does what a worker does, one step per call."""

    def __init__(self, store: JobStore, blobs: Blobs, picture: Image.Image) -> None:
        self._store, self._blobs, self._picture = store, blobs, picture
        self.job: Job | None = None
        self._token = ""

    def claim(self) -> None:
        self._store.heartbeat("worker")
        self._token = new_job_id()
        self.job = self._store.claim(self._token, "worker")

    def progress(self, value: float) -> None:
        assert self.job is not None
        counts = {"scale": 1, "scales": 1, "iteration": int(10 * value), "iterations": 10}
        at = JobProgress(
            value=value, iterations_per_second=2.0, seconds_left=3.0, loss={"total": 1.0}, **counts
        )
        self._store.report_progress(
            self.job.id, self._token, at, self._blobs.put(codec.encode(self._picture, "jpeg"))
        )

    def frame(self) -> None:
        assert self.job is not None
        digest = self._blobs.put(codec.encode(self._picture, "jpeg"))
        self._store.reserve(digest)
        self._store.add_frame(
            self.job.id,
            self._token,
            Frame(index=0, iteration=5, scale=1, seconds=0.1, digest=digest),
        )

    def succeed(self) -> bytes:
        """Return the file of the result."""
        assert self.job is not None
        output, model, data = self._store_result(self.job)
        self._store.succeed(self.job.id, self._token, output, model, {})
        return data

    def end_canceled(self) -> bytes:
        """Return the file of the picture so far."""
        assert self.job is not None
        output, _, data = self._store_result(self.job)
        self._store.end_canceled(self.job.id, self._token, output)
        return data

    def _store_result(self, job: Job) -> tuple[Output, ModelUsed, bytes]:
        model = ModelUsed(name="vgg16", sha256="0" * 64)
        data = codec.encode(self._picture, "png", {"job": job.id, **job.input.provenance(model)})
        width, height = self._picture.size
        digest = self._blobs.put(data)
        output = Output(
            id=digest, content_type="image/png", width=width, height=height, size_bytes=len(data)
        )
        return output, model, data


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    with ApiProcess(tmp_path_factory.mktemp("service")) as running:
        yield running


@pytest.fixture
def at_service(service: ApiProcess) -> Iterator[JobStore]:
    """The service's store, without the jobs of earlier tests."""
    store = JobStore(service.redis_url)
    store._redis.flushall()
    yield store
    store.close()


@pytest.fixture
def worker(service: ApiProcess, at_service: JobStore, photo: Image.Image) -> Worker:
    return Worker(at_service, Blobs(service.data / "blobs"), photo)


@pytest.fixture
def client(service: ApiProcess, at_service: JobStore) -> Iterator[Client]:
    with Client(service.url) as connected:
        yield connected


@pytest.fixture
def pictures(tmp_path: Path, photo: Image.Image, painting: Image.Image) -> tuple[Path, Path]:
    photo.save(tmp_path / "photo.jpg", quality=95)
    painting.save(tmp_path / "painting.png")
    return tmp_path / "photo.jpg", tmp_path / "painting.png"
