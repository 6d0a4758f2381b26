"""The worker's part of a job, for tests of the routes."""

from collections.abc import Callable

import pytest
from PIL import Image

from core.images import codec
from core.jobs.models import JobProgress, ModelUsed, Output
from core.jobs.store import JobStore
from core.storage.blobs import Blobs


@pytest.fixture
def progress() -> JobProgress:
    """The progress that `run_job` reports."""
    return JobProgress(
        value=0.5,
        scale=1,
        scales=2,
        iteration=5,
        iterations=10,
        iterations_per_second=2.0,
        seconds_left=3.0,
        loss={"total": 1.0},
    )


@pytest.fixture
def run_job(store: JobStore, blobs: Blobs, progress: JobProgress) -> Callable[[Image.Image], bytes]:
    """Claim the next job and finish it with a picture; returns the PNG of the result."""

    def run(picture: Image.Image) -> bytes:
        job = store.claim("t", "worker")
        assert job is not None
        data = codec.encode(picture, "png", {"program": "impasto"})
        output = Output(
            id=blobs.put(data), content_type="image/png", width=96, height=72, size_bytes=len(data)
        )
        store.report_progress(job.id, "t", progress, blobs.put(codec.encode(picture, "jpeg")))
        store.succeed(job.id, "t", output, ModelUsed(name="vgg16", sha256="0"), {})
        return data

    return run
