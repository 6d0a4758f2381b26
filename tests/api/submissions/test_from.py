"""The field `from`: a result runs again, with its own parameters and pictures or with changes.

The record in the result is untrusted input.
"""

import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from core.images import codec
from core.images.validation import MAX_BYTES
from core.jobs.models import JobInput, ModelUsed, Output
from core.jobs.store import JobStore
from core.storage.blobs import Blobs, digest_of

Submit = Callable[..., Any]
MODEL = ModelUsed(name="vgg16", sha256="0")


@pytest.fixture
def run_job(store: JobStore, blobs: Blobs, photo: Image.Image) -> Callable[[], bytes]:
    """Claim the next job and finish it; returns the PNG of the result with its record."""

    def run() -> bytes:
        job = store.claim("t", "worker")
        assert job is not None
        data = codec.encode(photo, "png", {"job": job.id, **job.input.provenance(MODEL)})
        output = Output(
            id=blobs.put(data), content_type="image/png", width=96, height=72, size_bytes=len(data)
        )
        store.succeed(job.id, "t", output, MODEL, {})
        return data

    return run


def _png(record: Any) -> bytes:
    return codec.encode(Image.new("RGB", (40, 40)), "png", record)


@pytest.mark.parametrize("way", ["file", "digest in a form", "digest in JSON"])
def test_a_result_sent_as_from_creates_the_same_job_again(
    client: TestClient, submit: Submit, run_job: Any, notifications: list[int], way: str
) -> None:
    old = submit(strength="0.7", style_layers="relu1_1=1", init="style").json()
    result = run_job()
    if way == "file":
        again = client.post("/v1/jobs", files={"from": ("r.png", result)})
    elif way == "digest in a form":
        again = client.post("/v1/jobs", files={"from": (None, digest_of(result))})
    else:
        again = client.post("/v1/jobs", json={"from": digest_of(result)})

    assert (again.status_code, again.json()["input"]) == (202, old["input"])
    assert notifications == [1, 1]


def test_fields_beside_from_replace_those_of_the_record(
    client: TestClient, submit: Submit, files: dict[str, Any], run_job: Any
) -> None:
    old = submit(strength="0.7").json()["input"]
    result, other = ("r.png", run_job()), codec.encode(Image.new("RGB", (50, 40), "red"))
    parameters = client.post(
        "/v1/jobs", files={"from": result}, data={"size": "80", "preset": "faithful"}
    ).json()["input"]
    photo = client.post("/v1/jobs", files={"from": result, "content": ("c", other)}).json()["input"]
    paintings = client.post(
        "/v1/jobs", files=[("from", result), *[("style", ("s", other))] * 2]
    ).json()["input"]
    by_json = client.post(
        "/v1/jobs", json={"from": digest_of(result[1]), "styles": [old["content"]]}
    ).json()["input"]

    assert parameters == {**old, "spec": {**old["spec"], "size": 80, "strength": 0.25}}
    assert photo == {**old, "content": digest_of(other)}
    shared = {**old["spec"], "style_weights": [0.5, 0.5]}
    assert paintings == {**old, "styles": [digest_of(other)] * 2, "spec": shared}
    assert by_json == {**old, "styles": [old["content"]]}


def test_masks_and_init_image_are_taken_over_unless_their_painting_or_init_is_replaced(
    client: TestClient, files: dict[str, Any], run_job: Any
) -> None:
    more = [("mask", files["style"]), ("init_image", files["content"])]
    more += [("style_mask", files["content"])]
    old = client.post("/v1/jobs", files=[*files.items(), *more], data={"init": "picture"}).json()[
        "input"
    ]
    result = ("r.png", run_job())
    same = client.post("/v1/jobs", files={"from": result}).json()["input"]
    painting = client.post("/v1/jobs", files={"from": result, "style": files["content"]}).json()[
        "input"
    ]
    noise = client.post("/v1/jobs", files={"from": result}, data={"init": "noise"}).json()["input"]

    assert same == old
    assert (painting["masks"], painting["style_masks"]) == ([], [])
    assert painting["init_image"] == old["init_image"]
    assert (noise["masks"], noise["init_image"]) == (old["masks"], None)


def test_a_deleted_picture_is_reported_and_can_be_sent_beside_from(
    client: TestClient, submit: Submit, files: dict[str, Any], run_job: Any, blobs: Blobs
) -> None:
    old = submit().json()
    result = ("r.png", run_job())
    blobs.delete(old["input"]["content"])
    refused = client.post("/v1/jobs", files={"from": result})
    sent = client.post("/v1/jobs", files={"from": result, "content": files["content"]})

    assert (refused.status_code, refused.json()["code"]) == (404, "image_not_found")
    assert "beside from" in refused.json()["detail"]
    assert (sent.status_code, sent.json()["input"]) == (202, old["input"])


def test_the_bytes_of_the_result_are_part_of_the_request_hash(
    client: TestClient, submit: Submit, run_job: Any, blobs: Blobs
) -> None:
    old = submit().json()
    result = run_job()

    def post(data: bytes) -> Any:
        return client.post(
            "/v1/jobs", files={"from": ("r.png", data)}, headers={"Idempotency-Key": "k"}
        )

    first = post(result)
    blobs.delete(old["input"]["content"])
    again, other = post(result), post(_png(codec.read_provenance(result)))

    assert (
        again.status_code,
        again.json()["id"],
        again.headers["idempotent-replayed"],
    ) == (202, first.json()["id"], "true")
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")


def test_a_record_gives_no_access_to_the_pictures_of_another_client(
    switch_caller: Any,
    client: TestClient,
    submit: Submit,
    files: dict[str, Any],
    run_job: Any,
    store: JobStore,
) -> None:
    """The answer is the same as for pictures that do not exist."""
    submit()
    result = run_job()
    record = codec.read_provenance(result)
    unknown = _png({**(record or {}), "content": "sha256:" + "0" * 64})
    switch_caller("other")
    foreign, missing = (
        client.post("/v1/jobs", files={"from": ("r.png", data)}) for data in (result, unknown)
    )
    digest = client.post("/v1/jobs", json={"from": digest_of(result)})
    own = client.post("/v1/jobs", files={**files, "from": ("r.png", result)})

    assert (foreign.status_code, missing.status_code, digest.status_code) == (404, 404, 404)
    assert missing.json() == foreign.json()
    assert own.status_code == 202, "the parameters may be used with pictures of the client's own"
    assert [job.id for job in store.list_page(limit=9, owner="other")[0]] == [own.json()["id"]]


ANY = "sha256:" + "0" * 64
RECORD = {"program": "impasto", **JobInput(content=ANY, styles=[ANY], spec={}).provenance(MODEL)}


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        pytest.param(_png(None), 422, "invalid_provenance", id="no record"),
        pytest.param(b"", 422, "invalid_provenance", id="nothing"),
        pytest.param(b"GIF89a" * 99, 422, "invalid_provenance", id="no PNG"),
        pytest.param(_png({}), 422, "invalid_provenance", id="empty"),
        pytest.param(_png([]), 422, "invalid_provenance", id="a list"),
        pytest.param(_png([["content", ANY]]), 422, "invalid_provenance", id="pairs"),
        pytest.param(
            _png({**RECORD, "content": 7}), 422, "invalid_provenance", id="a number for a digest"
        ),
        pytest.param(
            _png({**RECORD, "spec": "x"}),
            422,
            "invalid_provenance",
            id="a string for the parameters",
        ),
        pytest.param(
            _png({**RECORD, "spec": {"size": float("nan")}}), 422, "invalid_provenance", id="NaN"
        ),
        pytest.param(_png({**RECORD, "spec": {"size": 10**9}}), 422, "bad_spec", id="too large"),
        pytest.param(_png({**RECORD, "spec": {"<script>": 1}}), 422, "bad_spec", id="no parameter"),
        pytest.param(_png({**RECORD, "styles": []}), 422, "bad_spec", id="no painting"),
        pytest.param(
            _png({**RECORD, "styles": [ANY] * 1000}), 422, "bad_spec", id="a thousand paintings"
        ),
        pytest.param(_png({**RECORD, "masks": [ANY] * 9}), 422, "bad_spec", id="nine masks"),
        pytest.param(
            _png({**RECORD, "content": "../../etc/passwd"}), 404, "image_not_found", id="a path"
        ),
        pytest.param(_png(RECORD), 404, "image_not_found", id="unknown digest"),
        pytest.param(
            _png(RECORD).replace(b'"program"', b'"Program"'),
            422,
            "invalid_provenance",
            id="damaged",
        ),
        pytest.param(_png(RECORD)[:90], 422, "invalid_provenance", id="cut"),
    ],
)
def test_a_hostile_record_is_refused_and_leaves_no_files(
    client: TestClient,
    store: JobStore,
    notifications: list[int],
    tmp_path: Path,
    data: bytes,
    status: int,
    code: str,
) -> None:
    answer = client.post("/v1/jobs", files={"from": ("r.png", data)})

    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert (
        notifications,
        store.get_load().queued,
        [path for path in tmp_path.rglob("*") if path.is_file() and path.stem != "store"],
    ) == ([], 0, [])


def test_a_deeply_nested_record_is_refused(client: TestClient) -> None:
    deep = _png({"x": "y" * 200_000}).replace(b'"' + b"y" * 200_000 + b'"', b"[" * 200_002)
    at = deep.index(b"iTXt")
    length = int.from_bytes(deep[at - 4 : at])
    import zlib

    whole = (
        deep[: at + 4 + length]
        + zlib.crc32(deep[at : at + 4 + length]).to_bytes(4)
        + deep[at + 8 + length :]
    )
    answer = client.post("/v1/jobs", files={"from": ("r.png", whole)})

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_provenance")


@pytest.mark.parametrize(
    "body", [{"from": 7}, {"from": ANY, "content": 7}, {"from": ANY, "styles": "x"}, {"from": None}]
)
def test_malformed_json_is_refused(client: TestClient, body: dict[str, Any]) -> None:
    answer = client.post(
        "/v1/jobs", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )

    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")


def test_a_run_may_start_from_a_stored_result_that_is_larger_than_an_upload(
    client: TestClient, submit: Submit, store: JobStore, blobs: Blobs
) -> None:
    """docs/api.md promises that every result can be sent as `from`."""
    noise = Image.frombytes("RGB", (2700, 2700), random.Random(1).randbytes(3 * 2700**2))
    large = io.BytesIO()
    noise.save(large, "png", compress_level=0)
    assert len(large.getvalue()) > MAX_BYTES
    digest = blobs.put(large.getvalue())
    old = submit().json()
    job = store.claim("t", "worker")
    assert job is not None
    output = Output(
        id=digest, content_type="image/png", width=2700, height=2700, size_bytes=large.tell()
    )
    store.succeed(job.id, "t", output, MODEL, {})
    record = {**job.input.provenance(MODEL), "init_image": digest}
    record["spec"] = {**record["spec"], "init": "picture"}

    answer = client.post("/v1/jobs", files={"from": ("r.png", _png(record))})

    assert answer.status_code == 202, answer.text
    assert answer.json()["input"]["init_image"] == digest
    assert answer.json()["input"]["content"] == old["input"]["content"]
