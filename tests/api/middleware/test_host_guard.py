"""Which host names are accepted, and what pages of other origins may do."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.app import create_app
from api.middleware.host_guard import resolve_host_names
from api.settings import ApiSettings
from core import errors
from core.config import Settings, read_settings

ALLOWED_ORIGIN = "https://allowed.example"


def _client(valkey: Any, folder: Path, **own: Any) -> TestClient:
    app = create_app(Settings(redis_url=valkey.url, data_dir=folder), ApiSettings(**own))
    return TestClient(app, base_url="http://localhost", raise_server_exceptions=False)


@pytest.fixture
def cors_client(valkey: Any, tmp_path: Path) -> Iterator[TestClient]:
    """A service that allows the pages of one other origin."""
    client = _client(valkey, tmp_path, cors_origins=[ALLOWED_ORIGIN])
    yield client
    client.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.0.0.9"])
def test_on_loopback_only_the_names_of_loopback_are_allowed(host: str) -> None:
    names = resolve_host_names(host, [])

    assert names is not None
    assert names >= {"localhost", "127.0.0.1", "[::1]"}
    assert "elsewhere.example" not in names


def test_on_a_public_address_any_name_is_allowed_unless_names_are_listed() -> None:
    assert resolve_host_names("0.0.0.0", []) is None  # noqa: S104 - nothing listens
    names = resolve_host_names("0.0.0.0", ["Pictures.example"])  # noqa: S104
    assert names is not None
    assert {"pictures.example", "localhost"} <= names


@pytest.mark.parametrize(
    ("host", "status"), [("localhost:1", 200), ("127.0.0.1", 200), ("rebound.example", 403)]
)
def test_another_name_that_resolves_to_loopback_is_refused(
    client: TestClient, host: str, status: int
) -> None:
    assert client.get("/v1/jobs", headers={"Host": host}).status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 202),
        ({"Origin": "http://localhost"}, 202),
        ({"Sec-Fetch-Site": "same-origin", "Origin": "https://seen-by-a-proxy.example"}, 202),
        ({"Sec-Fetch-Site": "none"}, 202),
        ({"Origin": "http://elsewhere.example"}, 403),
        ({"Origin": "http://localhost.elsewhere.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_a_page_of_another_origin_cannot_submit(
    client: TestClient,
    files: dict[str, Any],
    notifications: list[int],
    headers: dict[str, str],
    status: int,
) -> None:
    answer = client.post("/v1/jobs", files=files, data={"size": "64"}, headers=headers)

    assert answer.status_code == status
    assert status == 202 or answer.json()["code"] == "cross_origin_forbidden"
    assert (status == 202) == len(notifications)


def test_a_page_of_another_origin_may_send_get_but_not_read_the_response(
    client: TestClient,
) -> None:
    answer = client.get(
        "/v1/jobs", headers={"Origin": "http://elsewhere.example", "Sec-Fetch-Site": "cross-site"}
    )

    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_a_page_of_an_allowed_origin_may_submit_and_read(
    cors_client: TestClient, files: dict[str, Any]
) -> None:
    headers = {"Origin": ALLOWED_ORIGIN, "Sec-Fetch-Site": "cross-site"}
    answer = cors_client.post("/v1/jobs", files=files, data={"size": "64"}, headers=headers)

    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (
        202,
        ALLOWED_ORIGIN,
    )
    assert {"Location", "Retry-After", "ETag"} <= set(
        answer.headers["access-control-expose-headers"].split(", ")
    )
    assert "Origin" in answer.headers["vary"]
    assert "access-control-allow-credentials" not in answer.headers


def test_a_preflight_lists_what_an_allowed_origin_may_send(cors_client: TestClient) -> None:
    preflight = {
        "Access-Control-Request-Method": "DELETE",
        "Access-Control-Request-Headers": "if-none-match",
    }
    yes = cors_client.options("/v1/jobs/x", headers={"Origin": ALLOWED_ORIGIN, **preflight})
    no = cors_client.options(
        "/v1/jobs/x", headers={"Origin": "https://elsewhere.example", **preflight}
    )

    assert (yes.status_code, yes.headers["access-control-allow-origin"]) == (200, ALLOWED_ORIGIN)
    assert (no.status_code, no.json()["code"]) == (400, "bad_request")
    assert "access-control-allow-origin" not in no.headers


def test_with_allowed_origins_every_response_varies_by_origin(cors_client: TestClient) -> None:
    for headers in ({}, {"Origin": ALLOWED_ORIGIN}, {"Origin": "https://elsewhere.example"}):
        assert "Origin" in cors_client.get("/v1/jobs", headers=headers).headers["vary"]
    other = cors_client.get("/v1/jobs", headers={"Origin": "https://elsewhere.example"})
    assert "access-control-allow-origin" not in other.headers
    assert (
        cors_client.post("/v1/jobs", headers={"Origin": "https://elsewhere.example"}).status_code
        == 403
    )


def test_a_compressed_body_is_refused(client: TestClient) -> None:
    answer = client.post("/v1/jobs", content=b"{}", headers={"Content-Encoding": "gzip"})

    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_encoding")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("CORS_ORIGINS", "*"),
        ("CORS_ORIGINS", "https://a.example/"),
        ("CORS_ORIGINS", "a.example"),
        ("ALLOWED_HOSTS", "a.example:80"),
        ("ALLOWED_HOSTS", "*"),
    ],
)
def test_invalid_lists_in_the_settings_are_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(f"IMPASTO_API_{variable}", value)
    with pytest.raises(errors.BadSettings, match=variable):
        read_settings(ApiSettings)


def test_lists_in_the_settings_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMPASTO_API_CORS_ORIGINS", "https://a.example, http://b.example:8080")
    monkeypatch.setenv("IMPASTO_API_ALLOWED_HOSTS", "a.example,[::1]")
    own = read_settings(ApiSettings)

    assert (
        own.cors_origins,
        own.allowed_hosts,
    ) == (["https://a.example", "http://b.example:8080"], ["a.example", "[::1]"])
