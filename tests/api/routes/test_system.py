"""GET /v1/system, /v1/models and /metrics; they reveal nothing about callers."""

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
from core.images import validation
from core.jobs.models import WorkerInfo
from core.jobs.store import JobStore

CARD = WorkerInfo(
    device="A card", precision="bfloat16", network="vgg19", networks=["vgg16", "vgg19"]
)
CPU = WorkerInfo(device="cpu", precision="float32", network="vgg16", networks=["vgg16"])


def test_the_system_shows_workers_queue_and_limits(
    client: TestClient, submit: Any, store: JobStore
) -> None:
    assert client.get("/v1/system").json()["workers"] == []
    for _ in range(3):
        submit()
    store.heartbeat("host:1", CARD)
    store.heartbeat("two")
    store.claim("t", "host:1")

    system = client.get("/v1/system").json()

    assert (system["queued"], system["running"]) == (2, 1)
    workers = sorted(system["workers"], key=lambda worker: not worker["busy"])
    assert workers == [{"busy": True, "info": CARD.model_dump()}, {"busy": False, "info": None}]
    assert tuple(
        system["limits"][name] for name in ("max_file_bytes", "formats", "max_size", "max_styles")
    ) == (validation.MAX_BYTES, ["png", "jpeg", "webp", "heic", "avif", "tiff", "gif"], 8192, 8)
    assert "host" not in str(system["workers"]), "a worker's name contains its host name"


def test_a_worker_whose_jobs_were_requeued_is_not_listed(
    client: TestClient, store: JobStore
) -> None:
    store.heartbeat("host:1", CARD)
    store.heartbeat("two", CPU)
    store.requeue_jobs_of("host:1")
    assert client.get("/v1/system").json()["workers"] == [{"busy": False, "info": CPU.model_dump()}]


def test_the_models_are_those_of_the_workers(client: TestClient, store: JobStore) -> None:
    def read_models() -> dict[str, Any]:
        return {
            model["name"]: (model["workers"], model["resolves_to"])
            for model in client.get("/v1/models").json()["models"]
        }

    assert read_models() == {
        "auto": (0, []),
        "vgg16": (0, []),
        "vgg19": (0, []),
        "vgg19-torchvision": (0, []),
    }
    store.heartbeat("host:1", CARD)
    store.heartbeat("two", CPU)
    store.heartbeat("three")
    store.heartbeat("four", CPU.model_copy(update={"networks": ["vgg16", "my-own"]}))
    assert read_models() == {
        "auto": (3, ["vgg16", "vgg19"]),
        "my-own": (1, []),
        "vgg16": (3, []),
        "vgg19": (1, []),
        "vgg19-torchvision": (0, []),
    }


@pytest.fixture
def read_metrics(client: TestClient) -> Callable[[], dict[str, float]]:
    def get() -> dict[str, float]:
        answer = client.get("/metrics")
        assert (answer.status_code, answer.headers["content-type"].startswith("text/plain")) == (
            200,
            True,
        )
        return {
            name: float(value)
            for name, value in re.findall(r"^(impasto\S+) (\S+)$", answer.text, re.MULTILINE)
        }

    return get


def test_the_metrics_count_requests_by_route_and_jobs_by_final_status(
    client: TestClient, submit: Any, store: JobStore, read_metrics: Callable[[], dict[str, float]]
) -> None:
    before = read_metrics()
    jobs = [submit(webhook="").json() for _ in range(3)]
    client.get(jobs[0]["links"]["self"])
    client.get("/v1/jobs/made_up")
    client.get("/made/up")
    store.cancel(jobs[0]["id"])
    store.heartbeat("host:1", CPU)
    store.claim("t", "host:1")
    after = read_metrics()

    def increase(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    route = 'method="GET",route="/v1/jobs/{job_id}"'
    assert increase('impasto_http_requests_total{method="POST",route="/v1/jobs",status="202"}') == 3
    assert increase(f'impasto_http_requests_total{{{route},status="200"}}') == 1
    assert increase(f'impasto_http_requests_total{{{route},status="404"}}') == 1
    assert increase('impasto_http_requests_total{method="GET",route="-",status="404"}') == 1
    assert increase(f"impasto_http_request_duration_seconds_count{{{route}}}") == 2
    assert tuple(
        after[f"impasto_{name}"]
        for name in ("jobs_queued", "jobs_running", "workers", "workers_busy")
    ) == (1, 1, 1, 1)
    assert {
        status: after[f'impasto_jobs_finished_total{{status="{status}"}}']
        for status in ("canceled", "succeeded", "failed", "expired")
    } == {"canceled": 1, "succeeded": 0, "failed": 0, "expired": 0}


def test_the_metrics_count_pending_webhooks(
    client: TestClient, store: JobStore, submit: Any, read_metrics: Callable[[], dict[str, float]]
) -> None:
    job = submit().json()
    store._redis.hset(f"impasto:job:{job['id']}", "webhook", "https://example.org/a")
    store.cancel(job["id"])
    assert read_metrics()["impasto_webhooks_pending"] == 1
    collected = store.claim_delivery("c", 30, 3)
    assert collected is not None
    store.complete_delivery(job["id"], "c", "delivered")
    assert read_metrics()["impasto_webhooks_pending"] == 0


def test_the_metrics_answer_while_the_store_does_not(
    tmp_path: Path, connect: Callable[[FastAPI], TestClient]
) -> None:
    settings = Settings(redis_url="redis://127.0.0.1:1/0", data_dir=tmp_path)
    answer = connect(create_app(settings, ApiSettings())).get("/metrics")

    assert answer.status_code == 200
    assert "impasto_store_up 0.0" in answer.text
    assert "impasto_disk_free_bytes" in answer.text
    assert "impasto_jobs_queued" not in answer.text
