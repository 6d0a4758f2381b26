"""The headers that restrict what a browser does with a response."""

import base64
import gzip
import hashlib
import re
from pathlib import Path

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

WEB = Path(__file__).parents[3] / "api" / "web"


def _policy(answer: object) -> dict[str, str]:
    parts = answer.headers["content-security-policy"].split("; ")  # type: ignore[attr-defined]
    return {name: rest for name, _, rest in (part.partition(" ") for part in parts)}


@pytest.mark.parametrize(
    "path",
    ["/", "/j/job_x", "/web/app.js", "/docs", "/openapi.json", "/livez", "/v1/jobs", "/nowhere"],
)
def test_every_response_forbids_sniffing_embedding_and_scripts(
    client: TestClient, path: str
) -> None:
    answer = client.get(path)
    policy = _policy(answer)

    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cross-origin-resource-policy"] == "same-origin"
    assert answer.headers["cross-origin-opener-policy"] == "same-origin"
    assert "camera=()" in answer.headers["permissions-policy"]
    names = ("default-src", "base-uri", "form-action", "frame-ancestors")
    assert [policy[name] for name in names] == ["'none'"] * 4
    assert "unsafe-inline" not in policy.get("script-src", "")
    assert "unsafe-eval" not in answer.headers["content-security-policy"]


def test_data_that_is_opened_as_a_page_is_sandboxed(client: TestClient) -> None:
    assert _policy(client.get("/v1/jobs"))["sandbox"] == ""


def test_the_page_does_nothing_that_its_policy_forbids(client: TestClient) -> None:
    html, script = client.get("/").text, "".join(module.read_text() for module in WEB.glob("*.js"))

    # The form is data: a browser runs no script of that type.
    data, code = r'<script type="application/json"', r"<script(?![^>]*src=)"
    assert not re.search(rf"(?!{data}){code}|<style|\son\w+=|\sstyle=|javascript:", html)
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", script
    )
    job_page = client.get("/j/job_x")
    assert (job_page.text, _policy(job_page)) == (
        html.replace('="./', '="../'),
        _policy(client.get("/")),
    )
    assert all(address[0] in ".#" for address in re.findall(r"(?:src|href)=\"([^\"]+)\"", html))


def test_a_browser_revalidates_every_file_of_the_page(client: TestClient) -> None:
    """So that modules of two versions of the page never meet."""
    for path in ("/", "/j/job_x", "/web/app.js", "/web/gallery/index.json"):
        answer = client.get(path)

        assert answer.headers["cache-control"] == "no-cache"
        again = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304
        assert again.headers["cache-control"] == "no-cache"


def test_the_page_is_small() -> None:
    """Without its images, with both dictionaries. The operator's page has its own budget."""
    files = {file.name: file.read_bytes() for file in WEB.iterdir() if file.is_file()}
    operator = [file for name, file in files.items() if name.startswith("operator")]
    page = [file for name, file in files.items() if not name.startswith("operator")]

    assert sum(len(gzip.compress(file)) for file in page) < 94.5 * 1024
    assert sum(map(len, page)) < 266 * 1024
    assert sum(map(len, operator)) < 26 * 1024
    assert (WEB / "font" / "fraunces.woff2").stat().st_size < 30 * 1024


def test_the_policy_of_the_docs_allows_exactly_their_scripts(client: TestClient) -> None:
    page = client.get("/docs")
    scripts = _policy(page)["script-src"].split(" ")

    for inline in re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL):
        assert (
            f"'sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()}'"
            in scripts
        )
    assert "'self'" in scripts


def test_the_docs_load_nothing_from_another_host(client: TestClient) -> None:
    """Neither the page nor its policy has an address of another host."""
    page = client.get("/docs")
    loaded = re.findall(r"(?:src|href)=\"([^\"]+)\"", page.text)

    assert set(loaded) == {"docs/ui/swagger-ui-bundle.js", "docs/ui/swagger-ui.css", "data:,"}
    assert {client.get(f"/{path}").status_code for path in loaded if path != "data:,"} == {200}
    assert "//" not in page.headers["content-security-policy"]
    assert "SwaggerUIBundle" in client.get("/docs/ui/swagger-ui-bundle.js").text


def test_the_response_to_an_unexpected_error_has_the_headers(
    app: FastAPI, client: TestClient
) -> None:
    @app.get("/v1/explode")
    def explode() -> None:
        raise RuntimeError

    answer = client.get("/v1/explode")

    assert (answer.status_code, answer.headers["x-content-type-options"]) == (500, "nosniff")
    assert answer.headers["x-request-id"]
