"""Idempotency-Key: a repeated request returns the first response again."""

from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from api.settings import ApiSettings
from core.jobs.store import JobStore
from core.storage.blobs import Blobs

Submit = Callable[..., Any]


def test_the_same_idempotency_key_returns_the_same_job_and_notifies_once(
    client: TestClient, files: dict[str, Any], notifications: list[int]
) -> None:
    def post(**parameters: str) -> Any:
        return client.post(
            "/v1/jobs",
            files=files,
            data={"size": "64", **parameters},
            headers={"Idempotency-Key": "k-1"},
        )

    first, again, other = post(), post(), post(size="96")

    assert (first.status_code, again.status_code, again.json()["id"]) == (
        202,
        202,
        first.json()["id"],
    )
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")
    assert notifications == [1]


def test_a_repeated_submission_is_replayed_after_its_pictures_are_deleted(
    client: TestClient, files: dict[str, Any], store: JobStore, blobs: Blobs, app: FastAPI
) -> None:
    """A change of the server's settings makes no difference."""
    ids = [
        client.post("/v1/images", files={"image": files[name]}).json()["id"]
        for name in ("content", "style")
    ]
    body, key = (
        {"content": ids[0], "styles": [ids[1]], "spec": {"size": 64}},
        {"Idempotency-Key": "k"},
    )
    first = client.post("/v1/jobs", json=body, headers=key)
    store.cancel(first.json()["id"])
    store.expire_early(1)
    store.expire_due(60)
    for digest in ids:
        blobs.delete(digest)
    app.state.settings = ApiSettings(result_retention_days=7, max_queued=1, max_jobs_per_caller=1)
    again = client.post("/v1/jobs", json=body, headers=key)

    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    assert again.headers["idempotent-replayed"] == "true"
    assert client.post("/v1/jobs", json=body).json()["code"] == "image_not_found"
    other = client.post("/v1/jobs", json={**body, "spec": {"size": 96}}, headers=key)
    assert other.json()["code"] == "idempotency_conflict"


def test_a_repeated_retry_is_replayed_after_the_old_job_is_deleted(
    client: TestClient, submit: Submit
) -> None:
    path, key = submit().headers["location"], {"Idempotency-Key": "k"}
    client.post(f"{path}/cancel")
    first = client.post(f"{path}/retry", json={"spec": {"seed": 1}}, headers=key)
    client.delete(path)
    again = client.post(f"{path}/retry", json={"spec": {"seed": 1}}, headers=key)

    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    assert again.headers["idempotent-replayed"] == "true"
    assert client.post(f"{path}/retry", headers=key).json()["code"] == "idempotency_conflict"
    assert client.post(f"{path}/retry").json()["code"] == "job_not_found"


def test_changed_settings_of_the_server_do_not_change_the_request_hash(
    client: TestClient, files: dict[str, Any], app: FastAPI, notifications: list[int]
) -> None:
    def post() -> Any:
        return client.post(
            "/v1/jobs", files=files, data={"size": "64"}, headers={"Idempotency-Key": "k"}
        )

    first = post()
    app.state.settings = ApiSettings(result_retention_days=7, max_queued=1, max_jobs_per_caller=1)
    again = post()

    assert (again.status_code, again.json()["id"], notifications) == (202, first.json()["id"], [1])


@pytest.mark.parametrize("key", ["", "two words", "x" * 256, "ümlaut"])
def test_a_bad_idempotency_key_is_refused(
    client: TestClient, files: dict[str, Any], key: str
) -> None:
    answer = client.post("/v1/jobs", files=files, headers={"Idempotency-Key": key.encode()})

    assert (answer.status_code, answer.json()["code"]) == (422, "bad_input")
