"""The probes: /livez and /readyz."""

from pathlib import Path
from typing import Any

import pytest
import redis
from fastapi import FastAPI
from starlette.testclient import TestClient

from api.app import create_app
from api.settings import ApiSettings
from core.config import Settings
from core.jobs.store import JobStore
from core.redis_client import PREFIX

CHECKS = ["functions", "store", "store_settings", "pictures", "worker"]


@pytest.fixture
def own_client(own_valkey: Any, tmp_path: Path, connect: Any) -> TestClient:
    """A client of an API with a store of its own."""
    settings = Settings(redis_url=own_valkey.url, data_dir=tmp_path / "data")
    client: TestClient = connect(create_app(settings, ApiSettings()))
    return client


@pytest.fixture
def own_store(own_valkey: Any) -> JobStore:
    store = JobStore(own_valkey.url)
    store.heartbeat("worker")
    return store


@pytest.fixture
def admin(own_valkey: Any) -> Any:
    return redis.Redis(port=own_valkey.port, decode_responses=True)


def test_a_service_that_can_do_its_work_is_ready(
    own_client: TestClient, own_store: JobStore, admin: Any
) -> None:
    answer = own_client.get("/readyz")

    assert (answer.status_code, answer.json()) == (
        200,
        {"status": "ok", "checks": dict.fromkeys(CHECKS, "ok"), "warnings": []},
    )
    assert admin.function_list(), "the functions are loaded"


def _fails(client: TestClient, check: str, code: str) -> str:
    """Assert that /readyz fails because of this check alone; return its message."""
    answer = client.get("/readyz").json()
    assert (answer["status"], answer["code"]) == (503, code)
    assert [name for name, found in answer["checks"].items() if found != "ok"] == [check]
    return str(answer["checks"][check])


def test_without_a_worker_it_is_not_ready(own_client: TestClient, own_store: JobStore) -> None:
    own_store._redis.delete(f"{PREFIX}worker_seen")
    assert "worker" in _fails(own_client, "worker", "no_worker")
    excluding = own_client.get("/readyz?exclude=worker")  # where workers scale to zero
    assert excluding.status_code == 200
    assert [*excluding.json()["checks"]] == [check for check in CHECKS if check != "worker"]
    assert own_client.get("/readyz?exclude=worker&exclude=other").status_code == 422
    own_store.heartbeat("worker")
    own_store.requeue_jobs_of("worker")  # its child is replaced; that takes seconds
    assert own_client.get("/readyz").status_code == 200


def test_with_a_store_that_takes_no_writes_it_is_not_ready(
    own_client: TestClient, own_store: JobStore, admin: Any
) -> None:
    assert own_client.get("/readyz").status_code == 200
    admin.config_set("maxmemory", 1)
    assert "memory is full" in _fails(own_client, "store", "store_unavailable")


def test_without_the_right_to_load_functions_it_is_not_ready(
    own_client: TestClient, own_store: JobStore, admin: Any
) -> None:
    admin.function_flush()
    admin.execute_command("ACL SETUSER default -function")
    answer = own_client.get("/readyz").json()
    assert (answer["status"], answer["code"]) == (503, "store_unavailable")
    assert "forbids a command" in answer["checks"]["functions"]


def test_with_a_folder_that_cannot_be_written_it_is_not_ready(
    own_client: TestClient, own_store: JobStore, tmp_path: Path
) -> None:
    assert own_client.get("/readyz").status_code == 200
    parts = tmp_path / "data" / "blobs" / "parts"
    parts.rmdir()
    parts.write_bytes(b"")  # root may write into any folder, but not into a file
    _fails(own_client, "pictures", "storage_full")


def test_an_unsafe_store_accepts_no_job_and_names_the_setting(
    own_client: TestClient, own_store: JobStore, admin: Any, files: Any, tmp_path: Path
) -> None:
    admin.config_set("appendfsync", "everysec")

    assert "appendfsync" in _fails(own_client, "store_settings", "store_unsafe")
    refused = own_client.post("/v1/jobs", files=files, data={"size": "64"})
    batch = own_client.post("/v1/batches", files=files, data={"size": "64"})
    for answer in (refused, batch):
        assert (answer.status_code, answer.json()["code"]) == (503, "store_unsafe")
        assert "appendfsync is everysec" in answer.json()["detail"]
    assert list((tmp_path / "data" / "blobs").glob("??/*")) == [], "a refusal stores nothing"
    store = own_client.get("/v1/system").json()["store"]
    assert store["problems"] == ["appendfsync is everysec and must be always"]
    assert own_client.post("/v1/images", files={"image": files["content"]}).status_code == 201


def test_an_operator_may_accept_an_unsafe_store(
    own_valkey: Any, own_store: JobStore, admin: Any, tmp_path: Path, connect: Any, files: Any
) -> None:
    admin.config_set("appendonly", "no")
    settings = Settings(redis_url=own_valkey.url, data_dir=tmp_path, store_unsafe="accept")
    client = connect(create_app(settings, ApiSettings()))

    assert client.post("/v1/jobs", files=files, data={"size": "64"}).status_code == 202
    ready = client.get("/readyz")
    assert (ready.status_code, "appendonly is no" in ready.json()["warnings"][0]) == (200, True)


def test_a_store_that_lost_its_data_is_shown(
    own_client: TestClient, own_store: JobStore, admin: Any
) -> None:
    assert own_client.get("/v1/system").json()["store"]["identity"] == "same"
    admin.flushall()
    own_store.heartbeat("worker")

    assert own_client.get("/v1/system").json()["store"]["identity"] == "missing"
    ready = own_client.get("/readyz")
    assert ready.status_code == 200, "it can run new jobs"
    assert "The store is empty" in ready.json()["warnings"][0]


def test_the_operator_is_warned_also_while_a_check_fails(
    own_client: TestClient, own_store: JobStore, admin: Any
) -> None:
    """A store that has lost its data often lacks workers, too."""
    own_client.get("/readyz")
    admin.flushall()
    answer = own_client.get("/readyz").json()

    assert (answer["status"], answer["checks"]["worker"][:13]) == (503, "No worker was")
    assert "The store is empty" in answer["warnings"][0]


def test_a_silent_store_is_not_asked_again_and_again(app: FastAPI, client: TestClient) -> None:
    app.state.store.close()
    app.state.store = JobStore("redis://127.0.0.1:1/0")

    answer = client.get("/readyz").json()

    assert (answer["code"], answer["checks"]["store"]) == ("store_unavailable", "not checked")
    assert client.get("/livez").json()["status"] == "ok"
