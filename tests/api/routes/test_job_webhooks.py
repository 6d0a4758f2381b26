"""The option `webhook` of submissions and retries."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from core.jobs.store import JobStore
from core.storage.blobs import Blobs
from core.webhooks.policy import WebhookPolicy

Submit = Callable[..., Any]


@pytest.fixture
def webhooks(app: FastAPI) -> None:
    """The service has a secret for webhooks."""
    app.state.webhooks = WebhookPolicy("whsec_" + "A" * 32)


@pytest.mark.usefixtures("webhooks")
def test_a_form_json_and_a_retry_accept_a_webhook(
    client: TestClient, store: JobStore, files: dict[str, Any], submit: Submit
) -> None:
    by_form = submit(webhook="HTTPS://Example.org?a=b").json()
    inputs = by_form["input"]
    body = {
        "content": inputs["content"],
        "styles": inputs["styles"],
        "webhook": "https://example.org/x",
    }
    by_json = client.post("/v1/jobs", json=body).json()
    client.post(f"/v1/jobs/{by_form['id']}/cancel")
    again, plain = [
        client.post(f"/v1/jobs/{by_form['id']}/retry", json=change).json()
        for change in ({"webhook": "https://example.org/y"}, {})
    ]

    urls = [store.get(job["id"]).webhook for job in (by_form, by_json, again, plain)]
    assert urls == [
        "https://example.org/?a=b",
        "https://example.org/x",
        "https://example.org/y",
        None,
    ]
    assert not [key for job in (by_form, again) for key in job if "webhook" in key]


@pytest.mark.usefixtures("webhooks")
@pytest.mark.parametrize(
    "url", ["http://a.org/", "https://127.0.0.1/", "https://0x7f.1/", "https://a@b.org/", "x"]
)
def test_a_forbidden_webhook_url_is_refused_before_anything_is_stored(
    url: str, client: TestClient, store: JobStore, submit: Submit, blobs: Blobs
) -> None:
    refused = submit(webhook=url)

    assert (refused.status_code, refused.json()["code"]) == (422, "bad_webhook")
    assert url not in refused.json()["detail"] or url == "x"
    assert store.list_page(limit=10) == ([], None)
    assert [*blobs.sizes()] == []


@pytest.mark.usefixtures("webhooks")
def test_a_retry_refuses_a_bad_webhook(client: TestClient, submit: Submit) -> None:
    job = submit().json()
    client.post(f"/v1/jobs/{job['id']}/cancel")
    refused = [
        client.post(f"/v1/jobs/{job['id']}/retry", json={"webhook": webhook}).json()["code"]
        for webhook in ("https://10.0.0.1/", 7)
    ]

    assert refused == ["bad_webhook", "bad_input"]


def test_without_a_secret_webhooks_are_refused_with_the_name_of_the_setting(submit: Submit) -> None:
    refused = submit(webhook="https://example.org/")

    assert (refused.status_code, refused.json()["code"]) == (422, "bad_webhook")
    assert refused.json()["reason"] == "webhooks_disabled"
    assert "IMPASTO_WEBHOOK_SECRET" in refused.json()["detail"]


@pytest.mark.usefixtures("webhooks")
def test_a_different_webhook_is_a_different_request_for_an_idempotency_key(
    client: TestClient, files: dict[str, Any]
) -> None:
    statuses = [
        client.post(
            "/v1/jobs", files=files, data={"webhook": url}, headers={"Idempotency-Key": "k"}
        ).status_code
        for url in ("https://example.org", "https://example.org", "https://example.org/other")
    ]

    assert statuses == [202, 202, 422]
