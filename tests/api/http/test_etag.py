"""If-None-Match (RFC 9110) on every route that sends an ETag."""

from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from api.http import etag
from core.images import codec
from core.jobs.models import Frame, JobProgress, ModelUsed, Output
from core.jobs.store import JobStore
from core.storage.blobs import Blobs


@pytest.mark.parametrize(
    ("sent", "has"),
    [
        ('"a-1"', True),
        ('W/"a-1"', True),
        ('"x", W/"a-1" ,"y"', True),
        ("*", True),
        (" * ", True),
        ("", False),
        ('"a-11"', False),
        ('"xa-1"', False),
        ("a-1", False),
        ('"a-1', False),
        ('"*"', False),
        ('"x", "y"', False),
    ],
)
@pytest.mark.parametrize("tag", ['"a-1"', 'W/"a-1"'])
def test_if_none_match_compares_whole_tags_weakly(sent: str, tag: str, *, has: bool) -> None:
    assert etag.matches(sent, tag) is has


@pytest.fixture
def paths(
    client: TestClient, submit: Any, store: JobStore, blobs: Blobs, photo: Image.Image
) -> list[str]:
    """The paths of a job with result, preview and frames, of a batch, and of the page."""
    submitted = submit().json()
    job = store.claim("t", "worker")
    assert job is not None
    picture, small = blobs.put(codec.encode(photo)), blobs.put(codec.encode(photo, "jpeg"))
    for digest in (picture, small):
        store.reserve(digest)
    counts = {"scale": 1, "scales": 1, "iteration": 1, "iterations": 9}
    at = JobProgress(
        value=0.5, iterations_per_second=None, seconds_left=None, loss={"total": 1.0}, **counts
    )
    store.add_frame(job.id, "t", Frame(index=0, iteration=1, scale=1, seconds=0.1, digest=small))
    store.report_progress(job.id, "t", at, small)
    output = Output(id=picture, content_type="image/png", width=96, height=72, size_bytes=1)
    store.succeed(job.id, "t", output, ModelUsed(name="vgg16", sha256="w"), {})
    own, photo_id = submitted["links"]["self"], submitted["input"]["content"]
    batch = client.post("/v1/batches", json={"contents": [photo_id], "styles": [photo_id]})
    pictures = [
        f"{own}/{part}"
        for part in ("result", "result?format=webp", "preview", "frames/0", "timelapse")
    ]
    return [
        own,
        batch.headers["location"],
        *pictures,
        f"/v1/images/{photo_id}",
        "/",
        f"/j/{job.id}",
    ]


def test_every_etag_is_accepted_as_if_none_match(client: TestClient, paths: list[str]) -> None:
    for path in paths:
        tag = client.get(path).headers["etag"]
        strong = tag.removeprefix("W/")
        for known in (tag, strong, f"W/{strong}", f'"x", {tag}', "*"):
            answer = client.get(path, headers={"If-None-Match": known})
            assert (answer.status_code, answer.content, answer.headers["etag"]) == (
                304,
                b"",
                tag,
            ), (path, known)
        assert (
            client.get(path, headers=[("If-None-Match", '"x"'), ("If-None-Match", tag)]).status_code
            == 304
        ), path
        for other in (f'"x{strong[1:]}', strong[:-1], strong.strip('"')):
            assert client.get(path, headers={"If-None-Match": other}).status_code == 200, (
                path,
                other,
            )


def test_a_body_that_changes_by_itself_has_a_weak_tag(
    client: TestClient, store: JobStore, submit: Any, paths: list[str]
) -> None:
    """The seconds until a job starts change without a new version."""
    store.heartbeat("worker")
    waiting = submit().headers["location"]
    first = client.get(waiting)
    store._redis.set("impasto:average_seconds", "1000")
    second = client.get(waiting)

    assert second.json()["queue"] != first.json()["queue"]
    assert second.headers["etag"] == first.headers["etag"]
    assert [client.get(path).headers["etag"].startswith("W/") for path in (waiting, paths[1])] == [
        True,
        True,
    ]


def test_the_document_lists_if_none_match(client: TestClient) -> None:
    documented = client.get("/openapi.json").json()["paths"]
    listed = {
        path
        for path, methods in documented.items()
        for parameter in methods.get("get", {}).get("parameters", [])
        if parameter["name"] == "if-none-match"
    }
    ends = ("", "/result", "/preview", "/frames/{index}", "/timelapse")
    jobs = {f"/v1/jobs/{{job_id}}{end}" for end in ends}
    assert listed == jobs | {"/v1/batches/{batch_id}", "/v1/images/{digest}", "/v1/form"}
