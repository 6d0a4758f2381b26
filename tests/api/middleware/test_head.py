"""HEAD works wherever GET does."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fastapi import FastAPI
from PIL import Image
from starlette.responses import StreamingResponse
from starlette.testclient import TestClient

from core.images import codec
from core.jobs.models import ModelUsed, Output
from core.jobs.store import JobStore
from core.storage.blobs import Blobs

IGNORED = {"date", "x-request-id"}


def _headers(answer: Any) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name not in IGNORED}


def test_head_has_the_headers_of_get_and_no_body(
    client: TestClient,
    submit: Callable[..., Any],
    store: JobStore,
    blobs: Blobs,
    photo: Image.Image,
) -> None:
    """For every GET of the OpenAPI document, and for the pages; also where GET is refused."""
    job = submit().json()["id"]
    store.claim("t", "worker")
    data = codec.encode(photo)
    output = Output(
        id=blobs.put(data), content_type="image/png", width=96, height=72, size_bytes=len(data)
    )
    store.succeed(job, "t", output, ModelUsed(name="vgg16", sha256="0"), {})
    document = client.get("/openapi.json").json()
    gets = [path for path, methods in document["paths"].items() if "get" in methods]
    paths = [
        path.format(job_id=job_id, batch_id="batch_x", index=0, digest=output.id)
        for path in gets
        for job_id in (job, "job_x")
    ]
    # GET would read the event stream forever, and the metrics change with each request.
    excluded = ("/events", "/metrics")
    paths = [path for path in paths if not path.endswith(excluded)]
    for path in [*paths, "/", "/docs", "/openapi.json", "/web/app.js"]:
        get, head = client.get(path), client.head(path)

        assert (head.status_code, head.content) == (get.status_code, b""), path
        assert _headers(head) == _headers(get), path


def test_head_of_an_unchanged_job_is_304(client: TestClient, submit: Callable[..., Any]) -> None:
    path = submit().headers["location"]
    tag = client.head(path).headers["etag"]

    assert client.head(path, headers={"If-None-Match": tag}).status_code == 304


@pytest.mark.parametrize("path", ["/v1/jobs/job_x/cancel", "/v1/batches", "/nowhere"])
def test_a_route_without_get_has_no_head(client: TestClient, path: str) -> None:
    get, head = client.get(path), client.head(path)

    assert (head.status_code, head.content) == (get.status_code, b"")
    assert get.status_code in (404, 405)


def test_a_405_lists_head_beside_get(client: TestClient) -> None:
    answer = client.delete("/v1/jobs")

    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, POST")


def test_head_cancels_a_stream_after_its_headers(app: FastAPI, client: TestClient) -> None:
    canceled: list[bool] = []

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x"
                await asyncio.sleep(0.01)
        finally:
            canceled.append(True)

    @app.get("/v1/endless")
    async def stream() -> StreamingResponse:
        return StreamingResponse(endless(), media_type="text/event-stream")

    app.router.routes.insert(0, app.router.routes.pop())
    answer = client.head("/v1/endless")

    assert (answer.status_code, answer.content, canceled) == (200, b"", [True])
    assert answer.headers["content-type"].startswith("text/event-stream")
