"""The pictures of a submission."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from core.images import codec, decoder
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


def test_a_picture_that_was_uploaded_is_not_decoded_again(
    client: TestClient,
    store: JobStore,
    files: dict[str, Any],
    notifications: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    content, style = (
        client.post("/v1/images", files={"image": data}).json()["id"] for data in files.values()
    )

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(decoder, "inspect_upload", refuse)
    spec = {"spec": {"size": 64}}
    body = {"content": content, "styles": [style], **spec}
    jobs = [client.post("/v1/jobs", json=body | {"masks": [content]}) for _ in range(2)]
    batch = client.post("/v1/batches", json={"contents": [content], "styles": [style], **spec})

    assert [answer.status_code for answer in (*jobs, batch)] == [202, 202, 202]


@pytest.mark.parametrize("alpha", [254, 0], ids=["translucent", "invisible"])
def test_a_transparent_picture_is_decoded_for_each_background(
    client: TestClient, files: dict[str, Any], notifications: list[int], alpha: int
) -> None:
    """The upload does not refuse what only a mask may be."""
    cutout = codec.encode(Image.new("RGBA", (64, 64), (200, 60, 40, alpha)))
    content, style = (
        client.post("/v1/images", files={"image": data}).json()["id"]
        for data in (cutout, files["style"])
    )
    spec = {"size": 64, "background": "white"}
    answer = client.post("/v1/jobs", json={"content": content, "styles": [style], "spec": spec})

    assert answer.status_code == (202 if alpha else 422)


def test_a_black_mask_is_refused_however_often_it_was_uploaded(
    client: TestClient, files: dict[str, Any], notifications: list[int]
) -> None:
    black = codec.encode(Image.new("RGB", (64, 64)))
    content, style, mask = (
        client.post("/v1/images", files={"image": data}).json()["id"]
        for data in (*files.values(), black)
    )
    body = {"content": content, "styles": [style], "masks": [mask], "spec": {"size": 64}}
    for _ in range(2):
        problem = client.post("/v1/jobs", json=body).json()
        assert (problem["code"], problem["reason"]) == ("bad_image", "black_mask")
    used = client.post("/v1/jobs", json=body | {"content": mask, "masks": [content]})
    assert used.status_code == 202
