"""Batches over HTTP: all jobs or none, one link for all of them."""

from typing import Any

import pytest
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from api.settings import ApiSettings
from core.images import codec
from core.jobs.models import ModelUsed, Output, Status, is_batch_id
from core.jobs.store import JobStore
from core.storage.blobs import Blobs, digest_of

PHOTOS, PAINTINGS = (
    [codec.encode(Image.new("RGB", (40, 40), color)) for color in colors]
    for colors in (("red", "green", "blue"), ("black", "white"))
)
FILES = [("content", ("p", data)) for data in PHOTOS] + [
    ("style", ("s", data)) for data in PAINTINGS
]
PAIRS = [(digest_of(photo), [digest_of(painting)]) for photo in PHOTOS for painting in PAINTINGS]


@pytest.fixture
def send(client: TestClient, notifications: list[int]) -> Any:
    """POST /v1/batches with three photos and two paintings."""

    def post(key: str | None = None, files: Any = FILES, **fields: str) -> Any:
        headers = {"Idempotency-Key": key} if key else {}
        return client.post(
            "/v1/batches", files=files, data={"size": "64", **fields}, headers=headers
        )

    return post


def _inputs(batch: Any) -> list[tuple[str, list[str]]]:
    return [(job["input"]["content"], job["input"]["styles"]) for job in batch["jobs"]]


def test_a_batch_has_a_job_for_each_photo_and_style_in_order(
    client: TestClient, send: Any, notifications: list[int]
) -> None:
    answer = send(preset="draft", priority="low", deadline_seconds="60")
    batch = answer.json()

    assert (
        answer.status_code,
        answer.headers["location"],
        answer.headers["retry-after"],
    ) == (202, f"/v1/batches/{batch['id']}", "1")
    assert is_batch_id(batch["id"])
    assert _inputs(batch) == PAIRS
    assert {
        (
            job["input"]["spec"]["size"],
            job["input"]["spec"]["quality"],
            job["priority"],
            job["batch_id"],
        )
        for job in batch["jobs"]
    } == {(64, "draft", "low", batch["id"])}
    assert [job["queue"]["position"] for job in batch["jobs"]] == [0, 1, 2, 3, 4, 5]
    assert batch["counts"] == {**dict.fromkeys(Status, 0), "queued": 6}
    assert client.get(batch["links"]["self"]).json() == batch
    assert notifications == [1]


def test_a_batch_is_created_without_a_broker(
    client: TestClient, app: Any, files: dict[str, Any]
) -> None:
    app.state.notify = lambda: False

    several = [
        ("content", files["content"]),
        ("content", files["style"]),
        ("style", files["style"]),
    ]
    answer = client.post("/v1/batches", files=several, data={"size": "64"})

    assert (answer.status_code, len(answer.json()["jobs"])) == (202, 2)


def test_json_with_digests_creates_the_same_batch(
    client: TestClient, notifications: list[int]
) -> None:
    ids = [
        client.post("/v1/images", files={"image": data}).json()["id"]
        for data in (*PHOTOS, *PAINTINGS)
    ]
    body = {
        "contents": ids[:3],
        "styles": ids[3:],
        "spec": {"size": 64, "preset": "draft"},
        "priority": "low",
    }

    assert _inputs(client.post("/v1/batches", json=body).json()) == PAIRS


def test_its_link_shows_every_change_and_otherwise_returns_304(
    client: TestClient, send: Any, store: JobStore, blobs: Blobs
) -> None:
    path = send().headers["location"]
    first = client.get(path)
    unchanged = client.get(path, headers={"If-None-Match": first.headers["etag"]})
    job = store.claim("t", "worker")
    running = client.get(path, headers={"If-None-Match": first.headers["etag"]})
    assert job is not None
    data = codec.encode(Image.new("RGB", (64, 64)))
    output = Output(
        id=blobs.put(data), content_type="image/png", width=64, height=64, size_bytes=len(data)
    )
    store.succeed(job.id, "t", output, ModelUsed(name="vgg16", sha256="0"), {})
    done = client.get(path).json()

    assert (unchanged.status_code, unchanged.headers["retry-after"], unchanged.content) == (
        304,
        "1",
        b"",
    )
    assert (
        running.status_code,
        running.json()["counts"]["running"],
        running.json()["counts"]["queued"],
    ) == (200, 1, 5)
    assert (done["counts"]["succeeded"], done["jobs"][0]["status"]) == (1, "succeeded")
    assert client.get(done["jobs"][0]["links"]["result"]).content == data


def test_cancel_and_delete_apply_to_all_jobs_and_are_safe_to_repeat(
    client: TestClient, send: Any, store: JobStore
) -> None:
    batch, alone = send().json(), send().json()
    store.claim("t", "worker")
    path = batch["links"]["self"]
    canceled = [client.post(batch["links"]["cancel"]) for _ in range(2)]

    assert [
        (
            answer.status_code,
            answer.json()["counts"]["canceled"],
            answer.json()["counts"]["running"],
        )
        for answer in canceled
    ] == [(200, 5, 1)] * 2
    assert canceled[0].json()["jobs"][0]["cancel_requested"]
    assert "retry-after" in client.get(path).headers, "one still runs"
    assert [client.delete(path).status_code for _ in range(2)] == [204, 204]
    assert [answer.status_code for answer in (client.get(path), client.post(f"{path}/cancel"))] == [
        404,
        404,
    ]
    assert client.get(path).json()["code"] == "batch_not_found"
    assert client.get(alone["links"]["self"]).json()["counts"]["queued"] == 6
    assert store.get_load().queued == 6


def test_a_deleted_job_is_missing_and_the_last_one_deletes_the_batch(
    client: TestClient, send: Any
) -> None:
    batch = send().json()
    for left, job in zip(range(5, 0, -1), batch["jobs"], strict=False):
        client.delete(job["links"]["self"])
        assert len(client.get(batch["links"]["self"]).json()["jobs"]) == left
    client.delete(batch["jobs"][-1]["links"]["self"])

    assert client.get(batch["links"]["self"]).status_code == 404


def test_the_same_idempotency_key_returns_the_same_batch(
    client: TestClient, send: Any, notifications: list[int]
) -> None:
    first, again, other = send("k"), send("k"), send("k", size="96")
    job = client.post("/v1/jobs", files=[FILES[0], FILES[3]], headers={"Idempotency-Key": "k"})

    assert (
        again.status_code,
        again.json()["id"],
        again.headers["idempotent-replayed"],
    ) == (202, first.json()["id"], "true")
    assert [(answer.status_code, answer.json()["code"]) for answer in (other, job)] == [
        (422, "idempotency_conflict")
    ] * 2
    assert (len(notifications), len(client.get("/v1/jobs").json()["jobs"])) == (1, 6)
    client.delete(first.json()["links"]["self"])
    assert send("k").json()["id"] != first.json()["id"]


def test_a_repeated_batch_is_replayed_after_its_pictures_are_deleted(
    client: TestClient, store: JobStore, blobs: Blobs
) -> None:
    ids = [
        client.post("/v1/images", files={"image": data}).json()["id"]
        for data in (PHOTOS[0], PAINTINGS[0])
    ]
    body, key = (
        {"contents": [ids[0]], "styles": [ids[1]], "spec": {"size": 64}},
        {"Idempotency-Key": "k"},
    )
    first = client.post("/v1/batches", json=body, headers=key)
    store.cancel_batch(first.json()["id"])
    store.expire_early(1)
    store.expire_due(60)
    for digest in ids:
        blobs.delete(digest)
    again = client.post("/v1/batches", json=body, headers=key)

    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    assert again.headers["idempotent-replayed"] == "true"
    assert client.post("/v1/batches", json=body).json()["code"] == "image_not_found"
    other = client.post("/v1/batches", json={**body, "spec": {"size": 96}}, headers=key)
    assert other.json()["code"] == "idempotency_conflict"


@pytest.mark.parametrize(
    ("limits", "status", "code"),
    [
        ({"max_jobs_per_caller": 7}, 429, "quota_exceeded"),
        ({"max_queued": 7}, 503, "queue_full"),
        ({"max_jobs_per_caller": 5}, 400, "bad_request"),
    ],
)
def test_all_jobs_or_none_are_accepted_within_the_limits(
    app: FastAPI, send: Any, store: JobStore, limits: dict[str, int], status: int, code: str
) -> None:
    """With two queued jobs, six more exceed a limit of 7; the batch alone exceeds a limit of 5."""
    send(files=[FILES[0], *FILES[3:]])
    app.state.settings = ApiSettings(**limits)
    refused = send()
    app.state.settings = ApiSettings(max_jobs_per_caller=8, max_queued=8)

    assert (refused.status_code, refused.json()["code"], store.get_load().queued) == (
        status,
        code,
        2,
    )
    assert send().status_code == 202


def test_a_reused_result_takes_no_place_in_the_queue(
    app: FastAPI, client: TestClient, send: Any, store: JobStore, blobs: Blobs
) -> None:
    store.record_model_weights("auto", "0")
    send(files=[FILES[0], FILES[3]])
    job = store.claim("t", "worker")
    assert job is not None
    output = Output(
        id=blobs.put(PHOTOS[0]), content_type="image/png", width=40, height=40, size_bytes=1
    )
    store.succeed(job.id, "t", output, ModelUsed(name="vgg16", sha256="0"), {})
    app.state.settings = ApiSettings(max_queued=5)
    batch = send(reuse="true").json()

    assert (
        batch["counts"]["succeeded"],
        batch["counts"]["queued"],
        batch["jobs"][0]["reused_from"],
    ) == (1, 5, job.id)


def test_callers_take_turns_in_spite_of_a_batch(
    switch_caller: Any, client: TestClient, send: Any, store: JobStore
) -> None:
    send()
    switch_caller("other")
    alone = client.post("/v1/jobs", files=[FILES[0], FILES[3]], data={"size": "64"}).json()

    claimed = [job.id for job in (store.claim(token, "worker") for token in ("a", "b")) if job]
    assert claimed[1] == alone["id"]


def test_the_batch_of_another_client_looks_as_if_it_did_not_exist(
    switch_caller: Any, client: TestClient, send: Any, store: JobStore
) -> None:
    batch = send().json()
    switch_caller("other")
    real, none = batch["links"]["self"], "/v1/batches/batch_" + "a" * 26
    for ask in (
        client.get,
        lambda path: client.post(f"{path}/cancel"),
        client.delete,
        lambda path: client.get(path, headers={"If-None-Match": '"x"'}),
    ):
        foreign, unknown = ask(real), ask(none)
        assert (foreign.status_code, foreign.content) == (unknown.status_code, unknown.content)

    digest = batch["jobs"][0]["input"]["content"]
    named = client.post("/v1/batches", json={"contents": [digest], "styles": [digest]})
    assert (named.status_code, named.json()["code"]) == (404, "image_not_found")
    assert store.get_load().queued == 6


@pytest.mark.parametrize(
    ("files", "fields", "status", "code"),
    [
        (FILES[:3], {}, 400, "bad_request"),
        (FILES[3:], {}, 400, "bad_request"),
        (FILES[:1] * 13 + FILES[3:], {}, 400, "bad_request"),
        (FILES[:1] + FILES[3:4] * 9, {}, 400, "bad_request"),
        ([*FILES, ("mask", FILES[0][1])], {}, 400, "bad_request"),
        ([*FILES, ("from", FILES[0][1])], {}, 400, "bad_request"),
        (FILES, {"size": "nan"}, 422, "bad_spec"),
        (FILES, {"init": "picture"}, 422, "bad_spec"),
        (FILES, {"style_weights": "1,2"}, 422, "bad_spec"),
        ([*FILES, ("style", ("s", b"BM"))], {}, 415, "unsupported_image"),
        (
            [*FILES, ("content", ("s", codec.encode(Image.new("RGB", (800, 60)))))],
            {},
            422,
            "bad_spec",
        ),
        ([*FILES, ("content", (None, "sha256:" + "0" * 64))], {}, 404, "image_not_found"),
    ],
)
def test_one_bad_part_makes_the_service_refuse_the_whole_batch(
    send: Any,
    store: JobStore,
    notifications: list[int],
    tmp_path: Any,
    files: Any,
    fields: Any,
    status: int,
    code: str,
) -> None:
    answer = send(files=files, **fields)

    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert (
        notifications,
        store.get_load().queued,
        [path for path in tmp_path.rglob("*") if path.is_file() and path.stem != "store"],
    ) == ([], 0, [])


ANY = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"contents": ANY, "styles": [ANY]},
        {"contents": [ANY], "styles": []},
        {"contents": [7], "styles": [ANY]},
        {"contents": [ANY] * 13, "styles": [ANY]},
        {"contents": [ANY], "styles": [ANY], "masks": []},
        {"contents": [ANY], "styles": [ANY], "spec": 7},
    ],
)
def test_malformed_json_is_refused(client: TestClient, body: Any) -> None:
    answer = client.post("/v1/batches", json=body)

    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


@pytest.mark.parametrize(
    "batch_id", ["x", "job_" + "a" * 26, "batch_" + "A" * 26, "..%2f..", "b" * 5000]
)
def test_an_unknown_or_malformed_id_returns_404(client: TestClient, batch_id: str) -> None:
    path = f"/v1/batches/{batch_id}"

    assert {
        answer.status_code
        for answer in (client.get(path), client.post(f"{path}/cancel"), client.delete(path))
    } == {404}
