"""Every error response is a problem document without the input and without internals."""

import errno
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from api.http import problems
from core import errors
from core.auth.api_keys import ApiKeyStore


def _assert_problem(answer: Any, status: int, code: str) -> None:
    body = answer.json()
    assert (answer.status_code, answer.headers["content-type"]) == (
        status,
        "application/problem+json",
    )
    assert set(body) - {"checks", "warnings"} == {"type", "title", "status", "code", "detail"}
    assert (body["status"], body["code"]) == (status, code)
    assert body["detail"].endswith(".")


def test_an_unknown_path_or_method_returns_a_problem(client: TestClient) -> None:
    _assert_problem(client.get("/nowhere"), 404, "not_found")
    _assert_problem(client.put("/v1/jobs"), 405, "method_not_allowed")
    _assert_problem(client.get("/v1/jobs/job_" + "a" * 26), 404, "job_not_found")


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=zzz", "cursor=-1", "cursor=zzz", "status=zzz", "limit=1e999"]
)
def test_a_bad_query_parameter_is_refused_by_name_without_an_echo(
    client: TestClient, query: str
) -> None:
    answer = client.get(f"/v1/jobs?{query}")

    _assert_problem(answer, 422, "bad_input")
    assert answer.json()["detail"].startswith(query.split("=", maxsplit=1)[0])
    assert "zzz" not in answer.text


def test_every_parameter_of_a_url_is_refused_by_name_with_its_bounds(
    client: TestClient, keys: ApiKeyStore
) -> None:
    """All parameters of the OpenAPI document, with the bounds from there."""
    details = {}
    client.headers["Authorization"] = f"Bearer {keys.create('Operator', admin=True)[1]}"
    paths = client.get("/openapi.json").json()["paths"]
    ids = {
        "{job_id}": "job_" + "a" * 26,
        "{batch_id}": "batch_" + "a" * 26,
        "{digest}": "sha256:" + "0" * 64,
    }
    for path, methods in paths.items():
        for parameter in methods.get("get", {}).get("parameters", []):
            name, schema = parameter["name"], parameter["schema"]
            if parameter["in"] == "header" or "pattern" in schema:
                continue
            if path == "/v1/operator/audit" and name not in ("limit", "log"):
                continue  # any text
            address = path.replace("{index}", "zzz" if name == "index" else "0")
            for word, real in ids.items():
                address = address.replace(word, real)
            answer = client.get(address, params={name: "zzz"} if parameter["in"] == "query" else {})
            _assert_problem(answer, 422, "bad_input")
            assert "zzz" not in answer.text
            details[path, name] = detail = answer.json()["detail"]
            assert detail.startswith(f"{name} must be "), (path, name, detail)
            allowed = (
                []
                if name in ("cursor", "after", "index")
                else [schema.get("minimum"), schema.get("maximum")]
            )
            allowed += [schema.get("const"), *schema.get("enum", [])]
            assert all(str(one) in detail for one in allowed if one is not None), (
                path,
                name,
                detail,
            )
    assert len(details) == 15
    assert "png" not in details["/v1/jobs/{job_id}/timelapse", "format"]


@pytest.mark.parametrize(
    ("method", "path", "body", "words"),
    [
        ("POST", "/v1/jobs/{job}/retry", '{"continue": "zzz"}', "continue must be true or false."),
        (
            "POST",
            "/v1/jobs/{job}/retry",
            '{"spec": "zzz"}',
            "spec must be an object of parameters.",
        ),
        ("POST", "/v1/jobs/{job}/retry", '{"webhook": 1}', "webhook must be a URL."),
        (
            "POST",
            "/v1/jobs/{job}/retry",
            '{"zzz": 1}',
            "The JSON has an unknown field; see /docs.",
        ),
        ("POST", "/v1/jobs/{job}/retry", "{zzz", "The body is not valid JSON."),
        (
            "POST",
            "/v1/jobs/{job}/retry",
            '"zzz"',
            "Send a JSON object as the body; see /docs for its fields.",
        ),
        ("PATCH", "/v1/jobs/{job}", '{"pinned": "zzz"}', "pinned must be true or false."),
        (
            "PATCH",
            "/v1/jobs/{job}",
            "{}",
            "Send a JSON object with spec, pinned, or both.",
        ),
        (
            "POST",
            "/v1/estimate",
            '{"styles": ["x"]}',
            "content must be the digest of an upload, or its width",
        ),
        (
            "POST",
            "/v1/estimate",
            '{"content": {"width": 1, "height": 99}, "styles": ["x"]}',
            "content must be",
        ),
        (
            "POST",
            "/v1/estimate",
            '{"content": "x", "styles": []}',
            "styles must be a list of 1 to 8",
        ),
        (
            "POST",
            "/v1/estimate",
            '{"content": "x", "styles": [{"width": "zzz"}]}',
            "styles must be",
        ),
        (
            "POST",
            "/v1/estimate",
            '{"content": "x", "styles": ["x"], "masks": "zzz"}',
            "masks must be a list",
        ),
        (
            "POST",
            "/v1/estimate",
            '{"content": "x", "styles": ["x"], "init_image": 1}',
            "init_image must be",
        ),
        ("POST", "/v1/estimate", "", "Send a JSON object as the body"),
    ],
)
def test_every_field_of_a_body_is_refused_by_name(
    client: TestClient, method: str, path: str, body: str, words: str
) -> None:
    headers = {"Content-Type": "application/json"}
    answer = client.request(
        method, path.replace("{job}", "job_" + "a" * 26), content=body, headers=headers
    )

    _assert_problem(answer, 422, "bad_input")
    assert answer.json()["detail"].startswith(words)
    assert "zzz" not in answer.text


def test_an_unexpected_error_returns_500_without_its_message(
    app: FastAPI, client: TestClient
) -> None:
    @app.get("/v1/explode")
    def explode() -> None:
        raise RuntimeError("secret")

    app.router.routes.insert(0, app.router.routes.pop())
    answer = client.get("/v1/explode")

    _assert_problem(answer, 500, "internal")
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    ("number", "status", "code"), [(errno.EMFILE, 503, "unavailable"), (errno.EIO, 500, "internal")]
)
def test_too_many_open_files_return_503_and_a_broken_disk_returns_500(
    app: FastAPI, client: TestClient, number: int, status: int, code: str
) -> None:
    @app.get("/v1/open")
    def open_file() -> None:
        raise OSError(number, "secret")

    app.router.routes.insert(0, app.router.routes.pop())
    answer = client.get("/v1/open")

    _assert_problem(answer, status, code)
    assert (status == 503) == ("retry-after" in answer.headers)
    assert "secret" not in answer.text


def test_an_unavailable_store_returns_503_with_retry_after_on_every_route(
    app: FastAPI, client: TestClient, files: dict[str, Any]
) -> None:
    from api.job_feed import JobFeed
    from core.jobs.store import JobStore

    app.state.store.close()
    app.state.store = JobStore("redis://127.0.0.1:1/0")
    app.state.job_feed = JobFeed("redis://127.0.0.1:1/0", 1)
    job = "/v1/jobs/job_" + "a" * 26

    for answer in (
        client.get(job),
        client.get("/v1/jobs"),
        client.post(f"{job}/cancel"),
        client.delete(job),
        client.post("/v1/jobs", files=files),
        client.post("/v1/images", files={"image": files["content"]}),
        client.get("/readyz"),
    ):
        _assert_problem(answer, 503, "store_unavailable")
        assert int(answer.headers["retry-after"]) > 0
    assert client.get("/livez").status_code == 200


def test_every_error_that_can_reach_a_client_has_a_status() -> None:
    def walk(kind: type[errors.ImpastoError]) -> list[type[errors.ImpastoError]]:
        return [kind, *(found for child in kind.__subclasses__() for found in walk(child))]

    statuses = {
        kind.__name__: problems.problem(kind()).status_code for kind in walk(errors.ImpastoError)
    }

    assert tuple(
        statuses[name] for name in ("JobNotFound", "JobNotEnded", "ResultGone", "StorageFull")
    ) == (404, 409, 410, 503)
    assert {statuses[kind.__name__] for kind in walk(errors.BadInput)} == {413, 415, 422, 400}


def test_the_page_and_its_files_have_a_content_security_policy(client: TestClient) -> None:
    page = client.get("/")

    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'; script-src 'self';" in page.headers["content-security-policy"]
    assert [client.get(path).status_code for path in ("/web/app.js", "/web/style.css")] == [
        200,
        200,
    ]
    assert client.get("/web/..%2fsettings.py").status_code == 404
