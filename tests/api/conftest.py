"""An API in this process with a real Valkey. The test plays the worker."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from api import dependencies
from api.app import create_app
from api.middleware.auth import Caller
from api.settings import ApiSettings
from core.auth.api_keys import ApiKeyStore
from core.config import Settings
from core.images import codec
from core.jobs.models import JobProgress, ModelUsed, Output
from core.jobs.store import JobStore
from core.storage.blobs import Blobs


@pytest.fixture
def app(valkey: Any, tmp_path: Path) -> FastAPI:
    return create_app(Settings(redis_url=valkey.url, data_dir=tmp_path), ApiSettings())


@pytest.fixture
def connect() -> Iterator[Callable[[FastAPI], TestClient]]:
    """Return a function that connects a client to an app, with one event loop for all requests.

    The app's lifespan does not run, so no reaper runs beside the test.
    """
    clients: list[TestClient] = []

    def client_of(app: FastAPI) -> TestClient:
        client = TestClient(app, base_url="http://localhost", raise_server_exceptions=False)
        client.portal = portal
        clients.append(client)
        return client

    with start_blocking_portal() as portal:
        yield client_of
        for client in clients:
            state: Any = client.app.state  # type: ignore[attr-defined]
            portal.call(state.job_feed.stop)
            client.close()
            state.store.close()


@pytest.fixture
def client(app: FastAPI, connect: Callable[[FastAPI], TestClient]) -> TestClient:
    return connect(app)


@pytest.fixture
def keys(valkey: Any) -> Iterator[ApiKeyStore]:
    store = ApiKeyStore(valkey.url)
    yield store
    store.close()


@pytest.fixture
def switch_caller(app: FastAPI) -> Callable[[str], None]:
    """Return a function that makes another owner the caller of all further requests."""

    def switch(owner: str) -> None:
        app.dependency_overrides[dependencies._caller] = lambda: Caller(owner)

    return switch


@pytest.fixture
def notifications(app: FastAPI) -> list[int]:
    """Replace the notification of workers; returns a list with one entry for each."""
    calls: list[int] = []

    def notify() -> bool:
        calls.append(1)
        return True

    app.state.notify = notify
    return calls


@pytest.fixture
def files(photo: Image.Image, painting: Image.Image) -> dict[str, Any]:
    """A photo and a painting for a multipart form."""
    return {
        "content": ("a.jpg", codec.encode(photo, "jpeg")),
        "style": ("b.png", codec.encode(painting)),
    }


@pytest.fixture
def submit(
    client: TestClient, files: dict[str, Any], notifications: list[int]
) -> Callable[..., Any]:
    """Return a function that sends POST /v1/jobs with these form fields."""

    def post(**parameters: str) -> Any:
        return client.post("/v1/jobs", files=files, data={"size": "64", **parameters})

    return post


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
