"""A picture that the disk has damaged is answered as gone wherever it is read."""

from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from core.images import codec
from core.jobs.models import Frame
from core.jobs.store import JobStore
from core.storage.blobs import Blobs

OTHER = codec.encode(Image.new("RGB", (96, 72), "red"), "jpeg")  # valid, but not what was stored


@pytest.fixture
def damage(blobs: Blobs) -> Callable[[str], None]:
    """Return a function that replaces the bytes of a blob by those of another picture."""
    return lambda digest: blobs.path(digest).write_bytes(OTHER) and None


def _is_gone(answer: Any) -> bool:
    assert (answer.status_code, answer.json()["code"]) == (410, "image_damaged")
    return "damaged" in answer.json()["detail"]


def test_a_damaged_upload_is_not_served_and_not_accepted(
    client: TestClient, files: Any, damage: Any, notifications: list[int]
) -> None:
    content, style = (
        client.post("/v1/images", files={"image": data}).json()["id"] for data in files.values()
    )
    damage(content)
    parameters = {"content": content, "styles": [style], "spec": {"size": 64}}
    batch = {"contents": [content], "styles": [style], "spec": {"size": 64}}

    for query in ("", "?width=41"):  # in no cache
        assert _is_gone(client.get(f"/v1/images/{content}{query}"))
    assert _is_gone(client.post("/v1/jobs", json=parameters))
    assert _is_gone(client.post("/v1/batches", json=batch))
    assert _is_gone(client.post("/v1/estimate", json=parameters))
    assert client.head(f"/v1/images/{content}").status_code == 410
    assert notifications == []
    client.post("/v1/images", files={"image": files["content"]})
    assert client.post("/v1/jobs", json=parameters).status_code == 202


def test_a_damaged_result_is_gone_in_every_form(
    client: TestClient,
    submit: Any,
    run_job: Any,
    store: JobStore,
    blobs: Blobs,
    photo: Image.Image,
    damage: Any,
) -> None:
    address = submit().headers["location"]
    run_job(photo)
    job = store.get(address.rpartition("/")[2])
    assert job.preview is not None
    damage(job.outputs[0].id)
    damage(job.preview)

    for query in ("", "?format=jpeg", "?width=40"):
        assert _is_gone(client.get(f"{address}/result{query}"))
    assert _is_gone(client.get(f"{address}/preview"))
    assert _is_gone(client.post(f"{address}/retry", json={"continue": True}))
    assert client.get(address).json()["status"] == "succeeded"


def test_the_answers_say_what_replaces_a_damaged_result_and_a_damaged_picture_of_a_record(
    client: TestClient, submit: Any, run_job: Any, store: JobStore, photo: Image.Image, damage: Any
) -> None:
    """A result cannot be uploaded again, and a record names its pictures."""
    job_id = submit().headers["location"].rpartition("/")[2]
    run_job(photo)
    job = store.get(job_id)
    result = codec.encode(photo, "png", job.input.model_dump())
    damage(job.input.content)
    again = client.post("/v1/jobs", files={"from": ("result.png", result)})
    damage(job.outputs[0].id)
    read = client.get(f"/v1/images/{job.outputs[0].id}")

    assert _is_gone(again)
    assert _is_gone(read)
    assert "send it beside from" in again.json()["detail"]
    assert "retry its job" in read.json()["detail"]


def test_a_damaged_frame_is_gone(
    client: TestClient, submit: Any, store: JobStore, blobs: Blobs, damage: Any
) -> None:
    address = submit().headers["location"]
    job = store.claim("t", "worker")
    assert job is not None
    digest = blobs.put(codec.encode(Image.new("RGB", (9, 9)), "jpeg"))
    store.reserve(digest, 60)
    frame = Frame(index=0, iteration=1, scale=1, seconds=1, digest=digest)
    store.add_frame(job.id, "t", frame)
    damage(digest)

    assert _is_gone(client.get(f"{address}/frames/0"))


def test_a_mask_that_was_damaged_since_gets_no_share(
    client: TestClient, files: Any, blobs: Blobs, store: JobStore, damage: Any, notifications: Any
) -> None:
    masks = [codec.encode(Image.new("RGB", (40, 40), color)) for color in ("white", "gray")]
    sent = [
        ("content", files["content"]),
        *[("style", files["style"])] * 2,
        *[("mask", ("m.png", mask)) for mask in masks],
    ]
    job = client.post("/v1/jobs", files=sent, data={"size": "64", "style_weights": "1,0"}).json()
    damage(store.get(job["id"]).input.masks[1])

    assert _is_gone(client.patch(job["links"]["self"], json={"spec": {"style_weights": [1, 1]}}))
