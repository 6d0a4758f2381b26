"""Every request has an id and a log line."""

import logging
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from core.log import request_id
from core.storage.blobs import Blobs


@pytest.mark.parametrize("own", ["abc-DEF_123", "a" * 64])
def test_a_plain_id_of_the_client_is_used(client: TestClient, own: str) -> None:
    assert client.get("/livez", headers={"X-Request-Id": own}).headers["x-request-id"] == own


@pytest.mark.parametrize("own", ["", "a b", "a" * 65, "ä".encode(), '"};{', "a\tb"])
def test_any_other_id_is_replaced_by_a_new_one(client: TestClient, own: Any) -> None:
    first, second = (
        client.get("/livez", headers={"X-Request-Id": own}).headers["x-request-id"]
        for _ in range(2)
    )

    assert second != first
    assert len(first) == 16


def test_the_log_line_has_the_route_and_no_text_of_the_client(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "api.middleware.access_log"):
        client.get("/v1/jobs/secret?key=secret", headers={"X-Request-Id": "abc"})
        client.get("/secret")

    first, second = (record.fields for record in caplog.records)  # type: ignore[attr-defined]
    assert (first["method"], first["route"], first["status"]) == ("GET", "/v1/jobs/{job_id}", 404)
    assert (second["route"], second["status"]) == ("-", 404)
    assert 0 <= first["ms"] < 5000
    assert "secret" not in caplog.text


def test_log_records_of_the_request_have_its_id(app: FastAPI, client: TestClient) -> None:
    seen = []

    @app.get("/v1/probe")
    def probe() -> None:  # runs in a thread of the pool
        seen.append(request_id.get())

    client.get("/v1/probe", headers={"X-Request-Id": "abc"})

    assert (seen, request_id.get()) == (["abc"], None)


def test_an_upload_that_breaks_off_is_logged_as_499_and_leaves_nothing(
    app: FastAPI, blobs: Blobs, caplog: pytest.LogCaptureFixture
) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\nbytes'
    messages: list[Any] = [
        {"type": "http.request", "body": part, "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[Any] = []
    headers = [(b"host", b"localhost"), (b"content-type", b"multipart/form-data; boundary=x")]
    scope = {"type": "http", "method": "POST", "path": "/v1/images", "headers": headers}
    scope |= {"query_string": b"", "client": ("127.0.0.1", 1), "scheme": "http"}

    async def receive() -> Any:
        return messages.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    with caplog.at_level(logging.INFO, "api.middleware.access_log"):
        anyio.run(app, scope, receive, send)

    assert [record.fields["status"] for record in caplog.records] == [499]  # type: ignore[attr-defined]
    assert sent == []
    assert [*blobs.digests()] == []
