"""The options of a submission: priority, deadline, reuse; and the limits of the queue."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from api.settings import ApiSettings
from core.images import codec
from core.jobs.store import JobStore
from core.storage.blobs import Blobs, digest_of

RunJob = Callable[[Image.Image], bytes]
Submit = Callable[..., Any]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("priority", "urgent"),
        ("deadline_seconds", "0"),
        ("deadline_seconds", "nan"),
        ("deadline_seconds", "1e9"),
        ("reuse", "perhaps"),
    ],
)
def test_a_bad_option_is_refused_by_name(
    submit: Submit, store: JobStore, option: str, value: str
) -> None:
    answer = submit(**{option: value})

    assert (answer.status_code, answer.json()["code"]) == (422, "bad_spec")
    assert option in answer.json()["detail"]
    assert store.get_load().queued == 0


def test_the_job_shows_priority_and_deadline(submit: Submit) -> None:
    job = submit(priority="high", deadline_seconds="60").json()
    created, deadline = (
        datetime.fromisoformat(job[name]) for name in ("created_at", "deadline_at")
    )

    assert (job["priority"], (deadline - created).total_seconds()) == ("high", 60.0)


def test_a_full_queue_and_an_exceeded_quota_send_retry_after(
    submit: Submit, app: FastAPI, client: TestClient
) -> None:
    app.state.settings = ApiSettings(max_queued=2, max_jobs_per_caller=1)
    submit()
    quota = submit()
    app.state.settings = ApiSettings(max_queued=1, max_jobs_per_caller=9)
    full = submit()

    assert (quota.status_code, quota.json()["code"]) == (429, "quota_exceeded")
    assert (full.status_code, full.json()["code"]) == (503, "queue_full")
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in (quota, full))


def test_a_submission_above_a_limit_stores_no_picture(
    submit: Submit, app: FastAPI, client: TestClient, blobs: Blobs, files: Any
) -> None:
    """Otherwise a caller at their limit could fill the disk.

    The quota of the disk would then delete the results of others.
    """
    submit()
    stored = {*blobs.digests()}
    form = {
        "content": files["content"],
        "style": codec.encode(Image.new("RGB", (40, 40), "orange")),
    }
    app.state.settings = ApiSettings(max_jobs_per_caller=1)
    answers = [client.post(path, files=form) for path in ("/v1/jobs", "/v1/batches")]
    app.state.settings = ApiSettings(max_queued=1)
    answers += [client.post(path, files=form) for path in ("/v1/jobs", "/v1/batches")]

    assert [answer.status_code for answer in answers] == [429, 429, 503, 503]
    assert {*blobs.digests()} == stored


def test_a_result_is_reused_if_the_client_allows_it(
    run_job: RunJob, client: TestClient, submit: Submit, store: JobStore, photo: Image.Image
) -> None:
    store.record_model_weights("auto", "0")
    submit()
    data = run_job(photo)
    job = submit(reuse="true").json()

    assert (job["status"], job["attempt"]) == ("succeeded", 0)
    assert client.get(job["links"]["result"]).content == data
    assert submit().json()["status"] == "queued"


def test_a_damaged_result_is_not_reused(
    run_job: RunJob,
    client: TestClient,
    submit: Submit,
    store: JobStore,
    photo: Image.Image,
    files: Any,
    blobs: Blobs,
) -> None:
    """The client would get a job that has succeeded, and 410 for its picture."""
    store.record_model_weights("auto", "0")
    submit()
    data = run_job(photo)
    blobs.path(digest_of(data)).write_bytes(data[:-1])
    job = submit(reuse="true").json()
    batch = client.post("/v1/batches", files=files, data={"size": "64", "reuse": "true"}).json()

    assert (job["status"], job["reused_from"]) == ("queued", None)
    assert [one["status"] for one in batch["jobs"]] == ["queued"]
