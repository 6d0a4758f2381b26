"""What a browser sees at an address where nothing is."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from api.app import create_app
from api.settings import ApiSettings
from core.config import Settings

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8"}


@pytest.mark.parametrize("path", ["/nowhere", "/a/b/c", "/v1/nothing", "/web-0/gone.jpg"])
def test_a_browser_gets_a_page_and_a_program_the_problem(client: TestClient, path: str) -> None:
    page = client.get(path, headers=BROWSER)

    assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
    assert "<h1>Page not found</h1>" in page.text
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert {client.get(link).status_code for link in links} == {200}
    for accepted in ("*/*", "application/json", "application/json, text/html", "image/webp,*/*"):
        problem = client.get(path, headers={"Accept": accepted})
        assert (problem.status_code, problem.json()["code"]) == (404, "not_found"), accepted


def test_the_page_may_load_its_style_and_nothing_else(client: TestClient) -> None:
    policy = client.get("/nowhere", headers=BROWSER).headers["content-security-policy"]

    assert policy.startswith(
        "default-src 'none'; style-src 'self'; img-src 'self'; font-src 'self'; base-uri"
    )
    assert "script" not in policy


def test_the_page_never_shows_the_address(client: TestClient) -> None:
    assert "evil" not in client.get("/<evil>", headers=BROWSER).text


def test_a_browser_that_sends_something_gets_the_problem(client: TestClient) -> None:
    assert client.post("/nowhere", headers=BROWSER).json()["code"] == "not_found"
    assert client.get("/v1/jobs/job_x", headers=BROWSER).json()["code"] == "job_not_found"


def test_behind_a_proxy_and_without_a_key_the_page_has_the_right_addresses(
    valkey: Any, tmp_path: Path, connect: Callable[[FastAPI], TestClient]
) -> None:
    own = ApiSettings(keys="required", root_path="/impasto")
    client = connect(create_app(Settings(redis_url=valkey.url, data_dir=tmp_path), own))
    page = client.get("/impasto/nowhere/at/all", headers=BROWSER)

    assert (page.status_code, page.headers["www-authenticate"]) == (401, "Bearer")
    links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert all(link.startswith("/impasto/") for link in links), links
    assert {client.get(link).status_code for link in links} == {200}
    assert client.get("/impasto/nowhere").json()["code"] == "unauthorized"


CHINESE, ENGLISH = "找不到页面", "Page not found"


@pytest.mark.parametrize(
    ("accepted", "heading"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", CHINESE),
        ("ZH-TW", CHINESE),
        ("de,zh;q=0.7", CHINESE),
        ("en-US,en;q=0.9,zh-CN;q=0.8", ENGLISH),
        ("de-ZH", ENGLISH),
        ("", ENGLISH),
    ],
    ids=["Chinese", "Taiwan", "German", "both", "region", "none"],
)
def test_the_page_is_in_the_language_that_the_browser_prefers(
    client: TestClient, accepted: str, heading: str
) -> None:
    page = client.get("/nowhere", headers={**BROWSER, "Accept-Language": accepted})

    assert f"<h1>{heading}</h1>" in page.text
    assert f'<html lang="{"en" if heading == ENGLISH else "zh-CN"}">' in page.text
    assert {"Accept", "Accept-Language"} <= {*page.headers["vary"].split(", ")}
