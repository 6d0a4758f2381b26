"""A refused submission names the bad field in a sentence that never repeats the input."""

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.schemas.submission import BatchForm, BatchSubmission, JobForm, JobSubmission

DIGEST = "sha256:" + "0" * 64
JOB = {"content": DIGEST, "styles": [DIGEST]}
BATCH = {"contents": [DIGEST], "styles": [DIGEST]}


@pytest.mark.parametrize(
    ("body", "code", "detail"),
    [
        ({}, "bad_request", "Send content (a digest) and styles"),
        ({"content": DIGEST, "styles": []}, "bad_request", "Send content (a digest) and styles"),
        ({"content": DIGEST, "styles": None}, "bad_request", "Send content (a digest) and styles"),
        ({"from": None}, "bad_request", "Send content (a digest) and styles"),
        (JOB | {"content": ["zzz"]}, "bad_request", "content must be one picture"),
        (JOB | {"styles": "zzz"}, "bad_request", "styles must be a list of 1 to 8"),
        (JOB | {"styles": [DIGEST] * 9}, "bad_request", "styles must be a list of 1 to 8"),
        (JOB | {"styles": [{"zzz": 1}]}, "bad_request", "styles must be a list of 1 to 8"),
        (JOB | {"masks": None}, "bad_request", "masks must be a list of at most 8"),
        (JOB | {"init_image": 7}, "bad_request", "init_image must be one picture"),
        (JOB | {"from": ["zzz"]}, "bad_request", "from must be one result"),
        (JOB | {"spec": None}, "bad_request", "spec must be an object"),
        (JOB | {"spec": "zzz"}, "bad_request", "spec must be an object"),
        (JOB | {"zzz": 1}, "bad_request", "There is no such field; the fields are priority,"),
        (JOB | {"style": [DIGEST]}, "bad_request", "There is no such field"),
        (JOB | {"a" * 90_000: 1}, "bad_request", "There is no such field"),
        (JOB | {"parameters": {}}, "bad_request", "There is no such field"),
        (JOB | {"priority": "zzz"}, "bad_spec", "priority must be one of high, normal, low."),
        (JOB | {"deadline_seconds": 0}, "bad_spec", "deadline_seconds must be"),
        (JOB | {"deadline_seconds": 1e9}, "bad_spec", "deadline_seconds must be"),
        (JOB | {"reuse": "zzz"}, "bad_spec", "reuse must be true or false."),
        (JOB | {"webhook": ["zzz"]}, "bad_spec", "webhook must be a URL."),
        (JOB | {"spec": {"zzz": 1}}, "bad_spec", "There is no such parameter"),
    ],
)
def test_json_is_refused_by_the_name_of_the_field(
    client: TestClient, body: Any, code: str, detail: str
) -> None:
    answer = client.post("/v1/jobs", json=body)

    assert (answer.status_code, answer.json()["code"]) == (
        400 if code == "bad_request" else 422,
        code,
    )
    assert answer.json()["detail"].startswith(detail)
    assert "zzz" not in answer.text


def test_json_with_a_lone_surrogate_as_key_is_refused(client: TestClient) -> None:
    answer = client.post(
        "/v1/jobs", content=b'{"\\ud800": 1}', headers={"Content-Type": "application/json"}
    )

    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    assert answer.json()["detail"].startswith("There is no such field")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("field", ["deadline_seconds", "spec"])
def test_json_with_a_number_that_is_not_finite_is_refused(
    client: TestClient, field: str, number: str
) -> None:
    value = f'{{"strength": {number}}}' if field == "spec" else number
    body = f'{json.dumps(JOB)[:-1]}, "{field}": {value}}}'
    answer = client.post(
        "/v1/jobs", content=body.encode(), headers={"Content-Type": "application/json"}
    )

    assert (answer.status_code, answer.json()["code"]) == (422, "bad_spec")


@pytest.mark.parametrize(
    ("fields", "code", "detail"),
    [
        ([], "bad_request", "Send one file as content and 1 to 8 as style"),
        ([("content", DIGEST)], "bad_request", "Send one file as content and 1 to 8 as style"),
        ([("content", DIGEST)] * 2, "bad_request", "content must be one picture"),
        ([("style", DIGEST)] * 9, "bad_request", "style: send 1 to 8"),
        ([("mask", DIGEST)] * 9, "bad_request", "mask: send at most 8"),
        ([("init_image", DIGEST)] * 2, "bad_request", "init_image must be one picture"),
        ([("from", DIGEST)] * 2, "bad_request", "from must be one result"),
        ([("size", "64")] * 2, "bad_request", "size was sent twice; send it once."),
        ([("spec", "{}")] * 2, "bad_request", "spec was sent twice; send it once."),
        ([("reuse", "true")] * 2, "bad_request", "reuse was sent twice; send it once."),
        ([("reuse", "zzz")], "bad_spec", "reuse must be true or false."),
        ([("deadline_seconds", "nan")], "bad_spec", "deadline_seconds must be"),
        ([("spec", "[]")], "bad_request", "The JSON must be an object."),
        ([("spec", "zzz")], "bad_request", "The JSON is not valid."),
    ],
)
def test_a_form_is_refused_by_the_name_of_the_field(
    client: TestClient, fields: Any, code: str, detail: str
) -> None:
    parts = [(name, (None, value)) for name, value in [*fields, ("seed", "")]]
    answer = client.post("/v1/jobs", files=parts)

    assert answer.json()["code"] == code
    assert answer.json()["detail"].startswith(detail)
    assert "zzz" not in answer.text


@pytest.mark.parametrize(
    ("sent", "suggestion"),
    [
        ({"files": {"style[]": ("x", b"y")}}, "Did you mean style?"),
        ({"files": {"styles": (None, DIGEST)}}, "Did you mean style?"),
        ({"files": {"styel_weight": (None, "1")}}, "Did you mean style_weight?"),
        ({"json": JOB | {"style": [DIGEST]}}, "Did you mean styles?"),
    ],
    ids=["a file", "a text", "a parameter", "JSON"],
)
def test_the_refusal_of_an_unknown_field_names_the_one_that_was_probably_meant(
    client: TestClient, sent: dict[str, Any], suggestion: str
) -> None:
    answer = client.post("/v1/jobs", **sent)

    assert answer.status_code in (400, 422)
    assert answer.json()["detail"].endswith(suggestion)


def test_a_file_in_another_field_is_refused(client: TestClient) -> None:
    answer = client.post("/v1/jobs", files={"zzz": ("x", b"y")})

    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    assert (
        answer.json()["detail"]
        == "Send files only as content, style, mask, style_mask, init_image, from."
    )


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        ({}, "contents must be a list of 1 to 12 digests."),
        (BATCH | {"contents": [DIGEST] * 13}, "contents must be a list of 1 to 12 digests."),
        (BATCH | {"styles": []}, "styles must be a list of 1 to 8 digests."),
        (BATCH | {"masks": [DIGEST]}, "There is no such field"),
    ],
)
def test_the_json_of_a_batch_is_refused_by_the_name_of_the_field(
    client: TestClient, body: Any, detail: str
) -> None:
    answer = client.post("/v1/batches", json=body)

    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    assert answer.json()["detail"].startswith(detail)


@pytest.mark.parametrize(
    ("fields", "detail"),
    [
        ([("style", DIGEST)], "content: send 1 to 12 pictures"),
        ([("content", DIGEST)], "style: send 1 to 8 pictures"),
        ([("content", DIGEST), ("style", DIGEST), ("mask", DIGEST)], "There is no such field"),
    ],
)
def test_the_form_of_a_batch_is_refused_by_the_name_of_the_field(
    client: TestClient, fields: Any, detail: str
) -> None:
    answer = client.post("/v1/batches", files=[(name, (None, value)) for name, value in fields])

    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    assert answer.json()["detail"].startswith(detail)


@pytest.mark.parametrize("model", [JobSubmission, JobForm, BatchSubmission, BatchForm])
def test_every_field_has_a_sentence_for_its_refusal(model: Any) -> None:
    assert set(model.field_names()) <= set(model.rules)


def test_unset_options_stay_unset() -> None:
    """The priority of the caller's key replaces a default, but not what the client asks for."""
    unset = JobSubmission.model_validate(JOB).options
    chosen = JobSubmission.model_validate(JOB | {"priority": "normal"}).options

    assert unset.model_fields_set == set()
    assert chosen.model_fields_set == {"priority"}
    assert unset == chosen
