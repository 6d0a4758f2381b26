"""The routes under /v1/operator. tests/api/middleware/test_auth.py checks who may use them."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from core.auth.api_keys import ApiKeyStore
from core.jobs.models import Priority, WorkerInfo, WorkerReport
from core.jobs.store import JobStore

Operate = Callable[..., Any]


@pytest.fixture
def operate(client: TestClient, keys: ApiKeyStore) -> Operate:
    """Return a function that sends a request with an admin key."""
    _, secret = keys.create("Operator", admin=True)

    def send(method: str, path: str, **request: Any) -> Any:
        headers = {"Authorization": f"Bearer {secret}"}
        return client.request(method, f"/v1/operator/{path}", headers=headers, **request)

    return send


def test_the_status_shows_what_the_service_does(
    operate: Operate, submit: Callable[..., Any], store: JobStore
) -> None:
    store.heartbeat("host:1", WorkerInfo(device="cpu", precision="x", network="v", networks=[]))
    job_id = submit().json()["id"]
    submit()
    assert store.claim("t", "host:1") is not None
    status = operate("GET", "status").json()

    assert (status["queued"], status["running"], status["intake_paused_at"]) == (1, 1, None)
    (worker,) = status["workers"]
    assert (worker["name"], worker["job_id"], worker["owner"]) == ("host:1", job_id, "local")
    assert 0 < status["disk"]["free_bytes"] <= status["disk"]["total_bytes"]
    assert status["disk"]["quota_bytes"] is None


def test_the_queue_of_other_callers_shows_no_picture(
    operate: Operate, submit: Callable[..., Any], switch_caller: Callable[[str], None]
) -> None:
    switch_caller("anna")
    job = submit().json()
    page = operate("GET", "queue")

    assert [shown["id"] for shown in page.json()["jobs"]] == [job["id"]]
    assert page.json()["jobs"][0]["owner"] == "anna"
    answers = page.text + operate("GET", "status").text + operate("GET", "keys").text
    assert "sha256:" not in answers
    assert 'webhook"' not in answers


def test_the_operator_cancels_and_moves_jobs_of_others(
    operate: Operate,
    submit: Callable[..., Any],
    switch_caller: Callable[[str], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    switch_caller("anna")
    first, second = (submit().json()["id"] for _ in range(2))
    switch_caller("ben")
    with caplog.at_level(logging.INFO):
        moved = operate("POST", f"jobs/{second}/move", json={"to": "first"})
        canceled = operate("POST", f"jobs/{first}/cancel")

    assert moved.json() == {
        "id": second,
        "status": "queued",
        "position": 0,
        "cancel_requested": False,
    }
    assert (canceled.json()["status"], canceled.json()["position"]) == ("canceled", None)
    assert operate("POST", f"jobs/{first}/cancel").json() == canceled.json()
    again = operate("POST", f"jobs/{first}/move", json={"to": "last"})
    assert (again.status_code, again.json()["code"]) == (409, "conflict")
    assert operate("POST", "jobs/job_x/cancel").json()["code"] == "job_not_found"
    own = [record.message for record in caplog.records if record.name == "api.routes.operator"]
    assert own == [f"operator ben moves {second}: first", f"operator ben cancels {first}"]


def test_a_pause_of_the_intake_reaches_every_submission(
    operate: Operate, submit: Callable[..., Any], client: TestClient, store: JobStore
) -> None:
    accepted = submit().json()
    since = operate("POST", "intake/pause").json()["paused_at"]
    refused = submit()
    batch = client.post(
        "/v1/batches",
        json={"contents": [accepted["input"]["content"]]} | {"styles": accepted["input"]["styles"]},
    )
    store.cancel(accepted["id"])
    retry = client.post(f"/v1/jobs/{accepted['id']}/retry", json={})

    for answer in (refused, batch, retry):
        assert (answer.status_code, answer.json()["code"]) == (503, "intake_paused")
        assert answer.headers["retry-after"] == "60"
    assert client.get("/v1/system").json()["intake_paused_at"] == since
    assert operate("GET", "status").json()["intake_paused_at"] == since
    store.heartbeat("worker")
    assert any("paused" in line for line in client.get("/readyz").json()["warnings"])
    assert operate("POST", "intake/resume").json() == {"paused_at": None}
    assert submit().status_code == 202


def _heartbeat(store: JobStore, worker_id: str) -> None:
    store.heartbeat(
        f"{worker_id}:1",
        WorkerReport(id=worker_id, device="cpu", precision="x", network="v", networks=[]),
    )


def test_workers_are_paused_drained_and_resumed(
    operate: Operate, store: JobStore, client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    for worker_id in ("gpu-1/cuda:0", "gpu-1/cuda:1"):
        _heartbeat(store, worker_id)
    store.suspensions.suspend("gpu-2/cuda:0", "out_of_service", reason="gone", device="TITAN Xp")

    def kinds(answer: Any) -> dict[str, str | None]:
        assert answer.status_code == 200, answer.text
        return {
            worker["id"]: worker["suspension"] and worker["suspension"]["kind"]
            for worker in answer.json()["workers"]
        }

    broken = {"gpu-2/cuda:0": "out_of_service"}
    one = {"id": "gpu-1/cuda:0"}
    with caplog.at_level(logging.INFO):
        paused = operate("POST", "workers/pause", json=one)
    assert kinds(paused) == broken | {"gpu-1/cuda:0": "paused", "gpu-1/cuda:1": None}
    assert any("pauses the worker gpu-1/cuda:0" in record.message for record in caplog.records)
    drained = operate("POST", "workers/drain", json={"id": "*", "release": True})
    assert kinds(drained) == broken | dict.fromkeys(("gpu-1/cuda:0", "gpu-1/cuda:1"), "draining")
    suspension = store.suspensions.get("gpu-1/cuda:1")
    assert suspension is not None
    assert suspension.release
    assert kinds(operate("POST", "workers/resume", json=one))["gpu-1/cuda:0"] is None
    assert kinds(operate("GET", "status"))["gpu-1/cuda:1"] == "draining"

    (shown,) = client.get("/v1/system").json()["out_of_service"]
    assert shown["device"] == "TITAN Xp"
    assert "gpu-2" not in client.get("/v1/system").text, "callers learn no host names"
    assert set(kinds(operate("POST", "workers/resume", json={"id": "*"})).values()) == {None}
    unknown = operate("POST", "workers/pause", json={"id": "gpu-9/cuda:0"})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "worker_not_found")


def test_keys_are_listed_created_and_revoked(operate: Operate, keys: ApiKeyStore) -> None:
    created = operate("POST", "keys", json={"name": "Ada", "priority": "high", "admin": True})
    key, secret = created.json()["key"], created.json()["secret"]
    found = keys.find(secret)
    listed = operate("GET", "keys")

    assert created.status_code == 201
    assert found is not None
    assert (found.id, found.priority, found.admin) == (key["id"], Priority.HIGH, True)
    rows = {row["key"]["name"]: row for row in listed.json()["keys"]}
    assert {*rows} == {"Operator", "Ada"}
    assert rows["Ada"]["usage"]["jobs"] == 0
    assert rows["Operator"]["key"]["last_used_at"] is not None
    assert listed.json()["limits"]["submissions_per_minute"] == 600
    assert secret not in listed.text
    assert "hash" not in listed.text
    assert operate("POST", f"keys/{key['id']}/revoke").status_code == 204
    assert keys.find(secret) is None
    assert operate("POST", "keys/key_x/revoke").status_code == 422


@pytest.mark.parametrize(
    ("path", "body", "part"),
    [
        ("keys", {"name": ""}, "name"),
        ("keys", {"name": "a", "priority": "x"}, "priority"),
        ("keys", {"name": "a", "admin": "yes"}, "admin"),
        ("keys", {"name": "a", "id": "key_1"}, "unknown"),
        ("jobs/job_" + "a" * 26 + "/move", {"to": "<b>"}, "first or last"),
    ],
)
def test_a_bad_body_is_refused_and_not_repeated(
    operate: Operate, path: str, body: dict[str, Any], part: str
) -> None:
    answer = operate("POST", path, json=body)

    assert (answer.status_code, answer.json()["code"]) == (422, "bad_input")
    assert part in answer.json()["detail"]
    assert "<b>" not in answer.text


@pytest.mark.parametrize("query", ["hours?count=0", "hours?count=169", "queue?offset=-1"])
def test_a_bad_query_is_refused(operate: Operate, query: str) -> None:
    answer = operate("GET", query)

    assert answer.status_code == 422
    assert "must be a whole number from" in answer.json()["detail"]


def test_the_page_of_the_operator_is_public_and_its_data_is_not(
    app: FastAPI, client: TestClient
) -> None:
    assert client.get("/operator").headers["content-type"] == "text/html; charset=utf-8"
    for part in ("status", "hours", "queue", "keys"):
        assert client.get(f"/v1/operator/{part}").status_code == 401


def test_the_audit_log_tells_who_changed_what_from_where(
    app: FastAPI,
    client: TestClient,
    keys: ApiKeyStore,
    operate: Operate,
    files: dict[str, Any],
    notifications: list[int],
) -> None:
    ada, secret = keys.create("Ada")
    app_keys = {"Authorization": f"Bearer {secret}", "X-Request-Id": "r1"}
    job = client.post("/v1/jobs", files=files, data={"size": "64"}, headers=app_keys).json()
    client.delete(f"/v1/jobs/{job['id']}", headers=app_keys)
    denied = client.post("/v1/operator/intake/pause", headers=app_keys)
    operate("POST", "intake/pause")
    operate("POST", "intake/resume")
    client.get(f"/v1/jobs/{job['id']}")
    page = operate("GET", "audit").json()
    rows = [
        (entry["log"], entry["action"], entry["outcome"]) for entry in reversed(page["entries"])
    ]

    assert denied.status_code == 403
    assert rows == [
        ("callers", "job.create", "created"),
        ("callers", "job.delete", "ok"),
        ("callers", "operator.request", "denied"),
        ("operator", "intake.pause", "ok"),
        ("operator", "intake.resume", "ok"),
    ]
    # Without required keys, jobs are everybody's; the operator's routes need a key all the same.
    assert page["entries"][-1]["actor"] == "local"
    assert page["entries"][-1]["target"] == job["id"]
    assert page["entries"][2]["actor"] == ada.id
    assert page["entries"][-1]["request_id"] == "r1"
    assert {entry["address"] for entry in page["entries"]} == {"testclient"}
    assert secret not in str(page)
    found = operate("GET", "audit", params={"action": "job.", "limit": 1}).json()
    assert [entry["action"] for entry in found["entries"]] == ["job.delete"]
    older = operate("GET", "audit", params={"action": "job.", "before": found["before"]}).json()
    assert [entry["action"] for entry in older["entries"]] == ["job.create"]


def test_no_route_changes_the_audit_log(app: FastAPI, operate: Operate) -> None:
    paths = {path for path in app.openapi()["paths"] if "audit" in path}

    assert {path: [*app.openapi()["paths"][path]] for path in paths} == {
        "/v1/operator/audit": ["get"]
    }
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        assert operate(method, "audit").status_code in (404, 405)
    assert operate("GET", "audit").json() == {"entries": [], "before": None}
    assert operate("GET", "audit", params={"before": "x"}).status_code == 422
