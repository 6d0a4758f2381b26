"""`Prefer: wait=N`: the answer comes with the next change."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.testclient import TestClient

from core.jobs.models import JobProgress
from core.jobs.store import JobStore

PROGRESS = JobProgress(
    value=0.5,
    scale=1,
    scales=1,
    iteration=1,
    iterations=2,
    iterations_per_second=None,
    seconds_left=None,
    loss={},
)


@pytest.fixture
def ask(client: TestClient) -> Callable[..., tuple[Any, float]]:
    """GET, and call `then` 0.3 s later; returns the response and its duration in seconds."""

    def get(
        path: str, then: Callable[[], object] = lambda: None, **headers: str
    ) -> tuple[Any, float]:
        with ThreadPoolExecutor() as asking:
            began = time.monotonic()
            answer = asking.submit(
                client.get, path, headers={n.replace("_", "-"): text for n, text in headers.items()}
            )
            time.sleep(0.3)  # by now, the request is waiting or finished
            then()
            return answer.result(), time.monotonic() - began

    return get


def test_with_a_tag_the_request_waits_for_the_next_change(
    ask: Any, submit: Any, store: JobStore, client: TestClient
) -> None:
    path = submit().json()["links"]["self"]
    job = store.claim("t", "w")
    assert job is not None
    tag = client.get(path).headers["etag"]

    answer, seconds = ask(
        path,
        lambda: store.report_progress(job.id, "t", PROGRESS),
        Prefer="wait=20",
        If_None_Match=tag,
    )
    assert (
        answer.status_code,
        answer.json()["progress"]["value"],
        answer.headers["preference-applied"],
    ) == (200, 0.5, "wait=20")
    assert 0.3 <= seconds < 10
    assert tag != answer.headers["etag"]
    answer, seconds = ask(path, Prefer="wait=20", If_None_Match=tag)
    assert (answer.status_code, seconds < 10) == (200, True), "there is a change already"
    tag = answer.headers["etag"]
    answer, seconds = ask(path, Prefer="respond-async, WAIT=1; x", If_None_Match=tag)
    assert (answer.status_code, seconds >= 1) == (304, True)


def test_without_a_tag_the_request_waits_for_the_next_status(
    ask: Any, submit: Any, store: JobStore
) -> None:
    path = submit().json()["links"]["self"]
    answer, _ = ask(path, lambda: store.claim("t", "w"), Prefer="wait=20")
    job_id = answer.json()["id"]
    assert answer.json()["status"] == "running"

    def report_then_cancel() -> None:
        store.report_progress(job_id, "t", PROGRESS)
        time.sleep(0.3)
        store.end_canceled(job_id, "t")

    answer, seconds = ask(path, report_then_cancel, Prefer="wait=20")
    assert (answer.json()["status"], 0.6 <= seconds < 10) == ("canceled", True)
    answer, seconds = ask(path, Prefer="wait=20")
    assert (answer.json()["status"], seconds < 10) == ("canceled", True), (
        "the request does not wait for an ended job"
    )


def test_deleting_the_job_ends_the_wait_with_404(ask: Any, submit: Any, store: JobStore) -> None:
    job = submit().json()
    answer, seconds = ask(job["links"]["self"], lambda: store.delete(job["id"]), Prefer="wait=20")
    assert (answer.status_code, seconds < 10) == (404, True)


@pytest.mark.parametrize(
    "preference", ["", "wait", "wait=", "wait=x", "wait=-1", "await=5", "wait=0"]
)
def test_an_invalid_preference_is_ignored(ask: Any, submit: Any, preference: str) -> None:
    answer, seconds = ask(submit().json()["links"]["self"], Prefer=preference)
    assert (answer.status_code, seconds < 5) == (200, True)
    assert "preference-applied" not in answer.headers


def test_the_wait_is_capped(
    client: TestClient, submit: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.http.prefer.MAX_WAIT_SECONDS", 1)
    answer = client.get(submit().json()["links"]["self"], headers={"Prefer": "wait=999999999"})
    assert (answer.status_code, answer.headers["preference-applied"]) == (200, "wait=1")


def test_a_caller_with_too_many_streams_does_not_wait(
    client: TestClient, app: Any, submit: Any
) -> None:
    app.state.job_feed._max_subscriptions = 0
    answer = client.get(submit().json()["links"]["self"], headers={"Prefer": "wait=30"})
    assert answer.status_code == 200
    assert "preference-applied" not in answer.headers


def test_a_submission_can_wait_for_the_end(
    client: TestClient, files: Any, notifications: Any, store: JobStore
) -> None:
    with ThreadPoolExecutor() as asking:
        asked = asking.submit(
            client.post, "/v1/jobs", files=files, data={"size": "64"}, headers={"Prefer": "wait=30"}
        )
        until = time.monotonic() + 30
        while (job := store.claim("t", "w")) is None:
            assert time.monotonic() < until
            time.sleep(0.05)
        store.end_canceled(job.id, "t")
        answer = asked.result()
    assert (
        answer.status_code,
        answer.json()["status"],
        answer.headers["preference-applied"],
    ) == (202, "canceled", "wait=30")
    assert answer.headers["location"] == f"/v1/jobs/{job.id}"
    answer = client.post("/v1/jobs", files=files, data={"size": "64"}, headers={"Prefer": "wait=1"})
    assert (answer.status_code, answer.json()["status"]) == (202, "queued")


def test_a_request_for_a_batch_can_wait_as_well(
    ask: Any, submit: Any, store: JobStore, client: TestClient
) -> None:
    photo = submit().json()["input"]["content"]
    store.cancel(client.get("/v1/jobs").json()["jobs"][0]["id"])
    path = client.post("/v1/batches", json={"contents": [photo] * 2, "styles": [photo]}).headers[
        "location"
    ]

    answer, seconds = ask(path, lambda: store.claim("t", "w"), Prefer="wait=20")
    assert (
        answer.status_code,
        answer.headers["preference-applied"],
        answer.json()["counts"]["running"],
    ) == (200, "wait=20", 1)
    assert 0.3 <= seconds < 10
    running, tag = answer.json()["jobs"][0]["id"], answer.headers["etag"]
    answer, seconds = ask(
        path,
        lambda: store.report_progress(running, "t", PROGRESS),
        Prefer="wait=20",
        If_None_Match=tag,
    )
    assert (answer.status_code, answer.json()["jobs"][0]["progress"]["value"], seconds < 10) == (
        200,
        0.5,
        True,
    )
    tag = answer.headers["etag"]
    answer, seconds = ask(path, Prefer="wait=1", If_None_Match=tag)
    assert (answer.status_code, seconds >= 1) == (304, True)
    answer, seconds = ask(
        path, lambda: store.report_progress(running, "t", PROGRESS), Prefer="wait=1"
    )
    assert (answer.status_code, tag, seconds >= 1) == (200, tag, True), "progress is no new status"

    answer, seconds = ask(
        path, lambda: store.cancel_batch(path.rpartition("/")[2]), Prefer="wait=20"
    )
    assert (answer.json()["counts"]["canceled"], seconds < 10) == (1, True)
    store.end_canceled(running, "t")
    answer, seconds = ask(path, Prefer="wait=20")
    assert (answer.json()["counts"]["canceled"], seconds < 1) == (2, True), (
        "the request does not wait for an ended batch"
    )


def test_deleting_the_batch_ends_the_wait_and_closes_its_subscriptions(
    ask: Any, submit: Any, store: JobStore, client: TestClient
) -> None:
    photo = submit().json()["input"]["content"]
    path = client.post("/v1/batches", json={"contents": [photo] * 2, "styles": [photo]}).headers[
        "location"
    ]
    answer, seconds = ask(
        path, lambda: store.delete_batch(path.rpartition("/")[2]), Prefer="wait=20"
    )

    # The jobs are deleted one after the other; an answer between two of them is 200.
    assert (answer.status_code in (200, 404), seconds < 10) == (True, True)
    assert client.get(path).status_code == 404
    feed: Any = client.app.state.job_feed  # type: ignore[attr-defined]
    assert (feed._topics, feed._subscriptions.total()) == ({}, 0)
