"""The pictures of a submission."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from starlette.testclient import TestClient

from core.jobs.store import JobStore
from core.storage.blobs import Blobs


def test_no_stored_picture_is_read_on_the_event_loop(
    client: TestClient,
    store: JobStore,
    files: dict[str, Any],
    notifications: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Hashing 20 MB would delay every other request."""
    seen: list[bool] = []
    real = Blobs._verify

    def verify(blobs: Blobs, digest: str, file: Any) -> None:
        loop = None
        with suppress(RuntimeError):
            loop = asyncio.get_running_loop()
        seen.append(loop is not None)
        real(blobs, digest, file)

    content, style = (
        client.post("/v1/images", files={"image": data}).json()["id"] for data in files.values()
    )
    monkeypatch.setattr(Blobs, "_verify", verify)
    body = {"content": content, "styles": [style, style], "masks": [style, content]}
    spec = {"spec": {"size": 64, "style_weights": [1, 0]}}
    job = client.post("/v1/jobs", json=body | spec)
    patched = client.patch(job.headers["location"], json={"spec": {"style_weights": [1, 1]}})
    pair = {"contents": [content], "styles": [style], "spec": {"size": 64}}
    batch = client.post("/v1/batches", json=pair)
    store.heartbeat("worker")
    client.post("/v1/estimate", json=body | spec)
    shown = client.get(f"/v1/images/{content}")

    assert [answer.status_code for answer in (job, patched, batch, shown)] == [202, 200, 202, 200]
    assert len(seen) > 10
    assert not any(seen)
