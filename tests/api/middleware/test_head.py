"""HEAD wherever GET is."""

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

UNTOLD = {"date", "x-request-id"}


def _headers(answer: Any) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name not in UNTOLD}


def test_every_get_has_a_head_with_its_headers_and_no_body(
    client: TestClient,
    submit: Callable[..., Any],
    store: JobStore,
    blobs: Blobs,
    photo: Image.Image,
) -> None:
    """Of every GET in the OpenAPI document, and of the pages beside it; also where it is refused."""
    job = submit().json()["id"]
    store.claim("t", "worker")
    data = codec.encode(photo)
    output = Output(
        id=blobs.put(data), content_type="image/png", width=96, height=72, size_bytes=len(data)
    )
    store.succeed(job, "t", output, ModelUsed(name="vgg16", sha256="0"), {})
    document = client.get("/openapi.json").json()
    gets = [path for path, ways in document["paths"].items() if "get" in ways]
    paths = [
        path.format(job_id=given, batch_id="batch_x", index=0, digest=output.id)
        for path in gets
        for given in (job, "job_x")
    ]
    ends = (
        "/events",
        "/metrics",
    )  # a stream, which GET would read for ever; figures that grow with each request
    for path in [path for path in paths if not path.endswith(ends)] + [
        "/",
        "/docs",
        "/openapi.json",
        "/web/app.js",
    ]:
        get, head = client.get(path), client.head(path)

        assert (head.status_code, head.content) == (get.status_code, b""), path
        assert _headers(head) == _headers(get), path


def test_an_unchanged_job_is_304_by_head_too(
    client: TestClient, submit: Callable[..., Any]
) -> None:
    path = submit().headers["location"]
    tag = client.head(path).headers["etag"]

    assert client.head(path, headers={"If-None-Match": tag}).status_code == 304


@pytest.mark.parametrize("path", ["/v1/jobs/job_x/cancel", "/v1/batches", "/nowhere"])
def test_where_there_is_no_get_there_is_no_head(client: TestClient, path: str) -> None:
    get, head = client.get(path), client.head(path)

    assert (head.status_code, head.content) == (get.status_code, b"")
    assert get.status_code in (404, 405)


def test_who_may_use_get_may_use_head_and_the_answer_says_so(client: TestClient) -> None:
    answer = client.delete("/v1/jobs")

    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, POST")


def test_a_stream_is_let_go_after_its_headers(app: FastAPI, client: TestClient) -> None:
    let_go: list[bool] = []

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x"
                await asyncio.sleep(0.01)
        finally:
            let_go.append(True)

    @app.get("/v1/endless")
    async def stream() -> StreamingResponse:
        return StreamingResponse(endless(), media_type="text/event-stream")

    app.router.routes.insert(0, app.router.routes.pop())
    answer = client.head("/v1/endless")

    assert (answer.status_code, answer.content, let_go) == (200, b"", [True])
    assert answer.headers["content-type"].startswith("text/event-stream")
