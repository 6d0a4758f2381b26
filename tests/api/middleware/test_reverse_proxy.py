"""The root path: from the settings or from a trusted proxy, in every address that is answered."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from api_process import ApiProcess
from fastapi import FastAPI
from PIL import Image
from pydantic import ValidationError
from starlette.testclient import TestClient

from api.app import create_app
from api.http.root_path import SERVICE_SEGMENTS
from api.settings import ApiSettings
from core.config import Settings
from core.jobs.models import Frame
from core.jobs.store import JobStore
from core.storage.blobs import Blobs
from core.webhooks.policy import WebhookPolicy
from core.webhooks.signing import event_body

PREFIX = {"X-Forwarded-Prefix": "/impasto"}
# Texts that are no root path, or an ambiguous one.
BAD = [
    "https://evil.example",
    "//evil.example",
    "/a//b",
    "/a\r\nSet-Cookie: x",
    "/a\n",
    "/a b",
    "/../a",
    "/a/..",
    "/a?b",
    "/a#b",
    "/a%2fb",
    "/a, /b",
    '/"><script>',
    "impasto",
    "/é",
    "/" + "a" * 300,
    *(f"/{segment}" for segment in sorted(SERVICE_SEGMENTS)),
    "/v1/jobs",
]


@pytest.fixture
def connect_from(valkey: Any, tmp_path: Path, connect: Any) -> Callable[..., TestClient]:
    """A function that connects from an address to an app with these settings."""

    def start(address: str = "127.0.0.1", **own: Any) -> TestClient:
        app = create_app(Settings(redis_url=valkey.url, data_dir=tmp_path), ApiSettings(**own))
        app.state.webhooks = WebhookPolicy("whsec_" + "A" * 32)
        app.state.notify = lambda: True
        client: TestClient = connect(app)
        client._transport.client = (address, 1)  # type: ignore[attr-defined]
        return client

    return start


def _submit(client: TestClient, files: dict[str, Any], headers: dict[str, str], path: str) -> Any:
    data = {"size": "64", "webhook": "https://example.org/"}
    return client.post(path, files=files, data=data, headers=headers)


@pytest.mark.parametrize("stripped", [True, False])
@pytest.mark.parametrize("source", ["header", "setting"])
def test_every_address_begins_with_the_root_path(
    source: str,
    stripped: bool,
    connect_from: Callable[..., TestClient],
    files: dict[str, Any],
    photo: Image.Image,
    store: JobStore,
    blobs: Blobs,
    run_job: Callable[[Image.Image], bytes],
) -> None:
    """Whether the proxy has stripped it from the path of the request or not."""
    client = connect_from(root_path="/impasto/" if source == "setting" else "")
    headers = PREFIX if source == "header" else {}
    seen = "" if stripped else "/impasto"

    def get(address: str) -> Any:
        """Follow an address as a client does, which the proxy answers."""
        assert address.startswith("/impasto/v1/"), address
        answer = client.get(address.removeprefix("/impasto" if stripped else ""), headers=headers)
        assert answer.status_code == 200, address
        return answer

    submitted = _submit(client, files, headers, f"{seen}/v1/jobs")
    job_id = submitted.json()["id"]
    assert submitted.headers["location"] == f"/impasto/v1/jobs/{job_id}"
    batch = _submit(client, files, headers, f"{seen}/v1/batches")
    assert get(batch.headers["location"]).json()["links"]["cancel"].startswith("/impasto/v1/")
    upload = client.post(f"{seen}/v1/images", files={"image": files["style"]}, headers=headers)
    get(upload.headers["location"])
    newest = get("/impasto/v1/jobs?limit=1").json()
    assert [job["id"] for job in get(newest["next"]).json()["jobs"]] == [job_id]

    store.claim("t", "worker")
    frame = Frame(index=0, iteration=1, scale=1, seconds=1, digest=blobs.put(b"x"))
    store.reserve(frame.digest)
    store.add_frame(job_id, "t", frame)
    run_job(photo)  # it continues this claim
    job = get(submitted.headers["location"]).json()
    assert {*job["links"]} >= {"self", "retry", "result", "preview", "frames"}
    for name in ("self", "result", "preview", "frames", "events"):
        get(job["links"][name])
    assert job["links"]["retry"].startswith("/impasto/")
    assert f'"self":"/impasto/v1/jobs/{job_id}"' in get(job["links"]["events"]).text
    get(get(job["links"]["frames"]).json()["frames"][0]["url"])
    event = json.loads(event_body(store.get(job_id)))
    assert event["data"]["links"]["result"] == job["links"]["result"]

    document = client.get(f"{seen}/openapi.json", headers=headers).json()
    assert document["servers"] == [{"url": "/impasto"}]
    assert "/v1/jobs" in document["paths"]
    slashed = client.get(f"{seen}/docs/", headers=headers, follow_redirects=False)
    assert slashed.headers["location"] == "http://localhost/impasto/docs"


def test_clients_with_different_root_paths_share_a_job_but_no_links(
    connect_from: Callable[..., TestClient], files: dict[str, Any]
) -> None:
    """Jobs and their events are encoded once for many requests."""
    client = connect_from()
    path = f"/v1/jobs/{_submit(client, files, {}, '/v1/jobs').json()['id']}"
    client.post(f"{path}/cancel")

    for headers, shown in (({}, path), (PREFIX, f"/impasto{path}"), ({}, path)):
        assert client.get(path, headers=headers).json()["links"]["self"] == shown
        assert f'"self":"{shown}"' in client.get(f"{path}/events", headers=headers).text


@pytest.mark.parametrize("path", ["/", "/j/job_x", "/web/app.js", "/docs", "/livez"])
@pytest.mark.parametrize("keys", ["off", "required"])
def test_a_proxy_that_strips_nothing_gets_the_same_answers(
    path: str, keys: str, connect_from: Callable[..., TestClient]
) -> None:
    client = connect_from(keys=keys)
    plain, proxied = client.get(path), client.get(f"/impasto{path}", headers=PREFIX)

    assert (proxied.status_code, proxied.content) == (200, plain.content)
    policy = "content-security-policy"
    assert proxied.headers[policy] == plain.headers[policy]


def test_the_root_path_opens_no_route_without_a_key(
    connect_from: Callable[..., TestClient],
) -> None:
    client = connect_from(keys="required", root_path="/impasto")

    for path in ("/v1/jobs", "/impasto/v1/jobs", "/impasto/impasto/v1/jobs", "/impastov1/jobs"):
        assert client.get(path).status_code == 401
    redirect = client.get("/impasto", follow_redirects=False)
    assert redirect.headers["location"] == "http://localhost/impasto/"


@pytest.mark.parametrize("prefix", BAD)
def test_a_prefix_that_is_no_plain_path_has_no_effect(
    prefix: str, connect_from: Callable[..., TestClient]
) -> None:
    trusted = connect_from()
    headers = [(b"X-Forwarded-Prefix", prefix.encode("latin-1"))]

    assert _shown_root_path(trusted, headers) == ""
    with pytest.raises(ValidationError, match="root_path"):
        ApiSettings(root_path=prefix)


def test_two_prefixes_have_no_effect(connect_from: Callable[..., TestClient]) -> None:
    headers = [(b"X-Forwarded-Prefix", b"/a"), (b"X-Forwarded-Prefix", b"/b")]

    assert _shown_root_path(connect_from(), headers) == ""


@pytest.mark.parametrize(
    ("trusted", "address", "shown"),
    [
        (None, "127.0.0.1", "/impasto"),
        (None, "::1", "/impasto"),
        (None, "192.0.2.3", "/default"),
        ("192.0.2.0/24", "192.0.2.3", "/impasto"),
        ("192.0.2.0/24", "127.0.0.1", "/default"),
    ],
)
def test_the_prefix_counts_only_from_a_trusted_address(
    trusted: str | None,
    address: str,
    shown: str,
    connect_from: Callable[..., TestClient],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The address is that of the connection, whatever address it forwards."""
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
    if trusted is not None:
        monkeypatch.setenv("FORWARDED_ALLOW_IPS", trusted)
    client = connect_from(address, root_path="/default")
    forwarded = [(b"X-Forwarded-For", b"127.0.0.1"), (b"X-Forwarded-Prefix", b"/impasto")]

    assert _shown_root_path(client, forwarded) == shown


def test_the_process_reads_the_prefix_before_it_replaces_the_proxys_address(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    headers = {"X-Forwarded-For": "203.0.113.7", **PREFIX}
    # A short name: the path of a socket has 108 bytes at most.
    with ApiProcess(tmp_path_factory.mktemp("api") / "api") as service:
        answer = httpx2.get(f"{service.url}/openapi.json", headers=headers, trust_env=False)

    assert answer.json()["servers"] == [{"url": "/impasto"}]


def _shown_root_path(client: TestClient, headers: list[tuple[bytes, bytes]]) -> str:
    servers = client.get("/openapi.json", headers=headers).json().get("servers", [{"url": ""}])
    return str(servers[0]["url"])


def test_the_segments_that_a_root_path_must_not_have_are_those_of_the_routes(app: FastAPI) -> None:
    """Otherwise a request could be taken for one whose prefix the proxy has not stripped."""
    undocumented = [str(getattr(route, "path", "/")) for route in app.routes]
    paths = [*undocumented, *app.openapi()["paths"]]

    # web-{version} has a hash, which no root path equals.
    assert {path.split("/")[1] for path in paths} - {"", "web-{version}"} == SERVICE_SEGMENTS
