"""Jobs over HTTP: read, list, cancel, delete."""

from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from core.jobs.models import JobProgress
from core.jobs.store import JobStore

RunJob = Callable[[Image.Image], bytes]
Submit = Callable[..., Any]


def test_a_job_has_the_documented_fields_and_headers_while_queued_and_after_its_end(
    progress: JobProgress, run_job: RunJob, client: TestClient, submit: Submit, photo: Image.Image
) -> None:
    address = submit().headers["location"]
    queued = client.get(address)
    run_job(photo)
    ended = client.get(address)

    assert (queued.headers["retry-after"], queued.headers["cache-control"]) == ("1", "no-cache")
    assert "retry-after" not in ended.headers
    assert ended.headers["etag"] != queued.headers["etag"]
    assert (ended.json()["status"], ended.json()["attempt"]) == ("succeeded", 1)
    assert ended.json()["progress"] == progress.model_dump()
    assert set(ended.json()["links"]) == {"self", "events", "retry", "preview", "result"}
    assert ended.json()["completed_at"].endswith("Z")


def test_an_unchanged_job_returns_304(client: TestClient, submit: Submit, store: JobStore) -> None:
    address = submit().headers["location"]
    tag = client.get(address).headers["etag"]

    assert client.get(address, headers={"If-None-Match": tag}).status_code == 304
    store.claim("t", "worker")
    assert client.get(address, headers={"If-None-Match": tag}).status_code == 200


def test_a_list_filters_by_several_statuses_over_its_pages(
    client: TestClient, submit: Submit, store: JobStore
) -> None:
    ids = [submit().json()["id"] for _ in range(6)][::-1]
    store.cancel(ids[1])
    store.cancel(ids[4])
    store.claim("t", "worker")
    store.delete(ids[2])
    seen, path = [], "/v1/jobs?limit=2&status=queued&status=running&status=queued"
    while path:
        page = client.get(path).json()
        seen += [(job["id"], job["status"]) for job in page["jobs"]]
        path = page["next"]

    assert seen == [(ids[0], "queued"), (ids[3], "queued"), (ids[5], "running")]
    assert client.get("/v1/jobs?status=queued&status=x").status_code == 422


def test_a_job_that_moves_up_in_the_queue_has_a_new_etag(
    client: TestClient, submit: Submit, store: JobStore
) -> None:
    submit()
    address = submit().headers["location"]
    tag = client.get(address).headers["etag"]
    store.claim("t", "worker")

    moved = client.get(address, headers={"If-None-Match": tag})
    assert (moved.status_code, moved.json()["queue"]) == (
        200,
        {"position": 0, "start_seconds": None, "waits_for": None, "has_worker": False},
    )


def test_cancel_is_safe_to_repeat_and_does_not_change_an_ended_job(
    run_job: RunJob, client: TestClient, submit: Submit, photo: Image.Image
) -> None:
    waiting, running = (submit().headers["location"] for _ in range(2))
    answers = [client.post(f"{waiting}/cancel").json() for _ in range(2)]
    run_job(photo)

    assert [answer["status"] for answer in answers] == ["canceled", "canceled"]
    assert answers[1] == answers[0]
    assert client.post(f"{running}/cancel").json()["status"] == "succeeded"


def test_canceling_a_running_job_shows_the_request_at_once(
    client: TestClient, submit: Submit, store: JobStore
) -> None:
    address = submit().headers["location"]
    store.claim("t", "worker")

    job = client.post(f"{address}/cancel").json()
    assert (job["status"], job["cancel_requested"]) == ("running", True)


def test_a_deleted_job_returns_404_and_deleting_is_safe_to_repeat(
    client: TestClient, submit: Submit, store: JobStore
) -> None:
    address = submit().headers["location"]

    assert [client.delete(address).status_code for _ in range(2)] == [204, 204]
    assert client.get(address).status_code == 404
    assert client.get(f"{address}/result").status_code == 404
    assert store.claim("t", "worker") is None


def test_the_list_is_newest_first_in_linked_pages_and_filters_by_status(
    client: TestClient, submit: Submit, store: JobStore
) -> None:
    ids = [submit().json()["id"] for _ in range(5)]
    store.claim("t", "worker")

    first = client.get("/v1/jobs", params={"limit": 2, "status": "queued"}).json()
    second = client.get(first["next"]).json()

    assert [job["id"] for page in (first, second) for job in page["jobs"]] == list(
        reversed(ids[1:])
    )
    assert second["next"] is None
    assert len(client.get("/v1/jobs").json()["jobs"]) == 5
    assert [
        job["id"] for job in client.get("/v1/jobs", params={"status": "running"}).json()["jobs"]
    ] == [ids[0]]


@pytest.mark.parametrize(
    "job_id", ["job_" + "a" * 26, "x", "job_", "..%2f..", "%00", "job_" + "A" * 26, "j" * 5000]
)
def test_an_unknown_or_malformed_id_returns_404(client: TestClient, job_id: str) -> None:
    answers = [
        client.get(f"/v1/jobs/{job_id}"),
        client.get(f"/v1/jobs/{job_id}/result"),
        client.get(f"/v1/jobs/{job_id}/preview"),
        client.post(f"/v1/jobs/{job_id}/cancel"),
    ]

    assert {answer.status_code for answer in answers} == {404}
