"""What browsers are told."""

import base64
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
def test_every_answer_can_neither_be_sniffed_nor_embedded_nor_run(
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


def test_data_opened_as_a_page_is_in_a_sandbox(client: TestClient) -> None:
    assert _policy(client.get("/v1/jobs"))["sandbox"] == ""


def test_the_page_needs_nothing_that_its_policy_forbids(client: TestClient) -> None:
    html, script = client.get("/").text, "".join(module.read_text() for module in WEB.glob("*.js"))

    assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=|javascript:", html)
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", script
    )
    of_a_job = client.get("/j/job_x")
    assert (of_a_job.text, _policy(of_a_job)) == (html, _policy(client.get("/")))
    assert all(address[0] in "/#" for address in re.findall(r"(?:src|href)=\"([^\"]+)\"", html))


def test_no_module_of_an_older_page_meets_one_of_a_newer(client: TestClient) -> None:
    """A browser asks each time, and is told whether its copy is still the one."""
    for path in ("/", "/j/job_x", "/web/app.js", "/web/gallery/index.json"):
        answer = client.get(path)

        assert answer.headers["cache-control"] == "no-cache"
        again = client.get(path, headers={"If-None-Match": answer.headers["etag"]})
        assert again.status_code == 304
        assert again.headers["cache-control"] == "no-cache"


def test_the_page_stays_small() -> None:
    """Without its pictures."""
    assert sum(file.stat().st_size for file in WEB.iterdir() if file.is_file()) < 82 * 1024


def test_the_docs_run_the_scripts_that_they_name_and_no_others(client: TestClient) -> None:
    page = client.get("/docs")
    scripts = _policy(page)["script-src"].split(" ")

    for inline in re.findall(r"<script>(.*?)</script>", page.text, re.DOTALL):
        assert (
            f"'sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()}'"
            in scripts
        )
    assert "'self'" in scripts


def test_the_docs_need_nobody_else(client: TestClient) -> None:
    """What the page loads comes from here; no address of another host is in it or in its policy."""
    page = client.get("/docs")
    loaded = re.findall(r"(?:src|href)=\"([^\"]+)\"", page.text)

    assert set(loaded) == {"/docs/ui/swagger-ui-bundle.js", "/docs/ui/swagger-ui.css", "data:,"}
    assert {client.get(path).status_code for path in loaded if path.startswith("/")} == {200}
    assert "//" not in page.headers["content-security-policy"]
    assert "SwaggerUIBundle" in client.get("/docs/ui/swagger-ui-bundle.js").text


def test_what_nobody_foresaw_has_the_headers_too(app: FastAPI, client: TestClient) -> None:
    @app.get("/v1/explode")
    def explode() -> None:
        raise RuntimeError

    answer = client.get("/v1/explode")

    assert (answer.status_code, answer.headers["x-content-type-options"]) == (500, "nosniff")
    assert answer.headers["x-request-id"]
