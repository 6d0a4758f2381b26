"""An API in this process, on a real Valkey, with a doorbell that counts."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from api.app import create_app
from api.settings import ApiSettings
from core import images
from core.settings import Settings


@pytest.fixture
def app(valkey: Any, tmp_path: Path) -> FastAPI:
    return create_app(Settings(redis_url=valkey.url, data_dir=tmp_path), ApiSettings())


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    """Not entered as a context: no reaper runs beside the test."""
    client = TestClient(app, base_url="http://localhost", raise_server_exceptions=False)
    yield client
    client.close()
    app.state.store.close()


@pytest.fixture
def rings(app: FastAPI) -> list[int]:
    """One entry for each ring of the doorbell."""
    rung: list[int] = []

    def ring() -> bool:
        rung.append(1)
        return True

    app.state.ring = ring
    return rung


@pytest.fixture
def files(photo: Image.Image, painting: Image.Image) -> dict[str, Any]:
    """A photo and a painting for a multipart form."""
    return {"content": ("a.jpg", images.encode(photo, "jpeg")), "style": ("b.png", images.encode(painting))}


@pytest.fixture
def submit(client: TestClient, files: dict[str, Any], rings: list[int]) -> Callable[..., Any]:
    """POST /v1/jobs with knobs; the response."""

    def post(**knobs: str) -> Any:
        return client.post("/v1/jobs", files=files, data={"size": "64", **knobs})

    return post
