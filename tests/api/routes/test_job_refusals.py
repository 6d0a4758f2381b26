"""POST /v1/jobs refuses bad input, creates no job and leaves no files."""

from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from core.images import codec, validation
from core.jobs.store import JobStore

Submit = Callable[..., Any]


@pytest.mark.parametrize(
    ("parameters", "code", "words"),
    [
        ({"size": "nan"}, "bad_spec", "size must be a whole number from 64 to 8192."),
        (
            {"style_weight": "inf"},
            "bad_spec",
            "style_weight must be a number from 0 to 1000000000.",
        ),
        ({"init": "<b>"}, "bad_spec", "init must be one of content, noise, style, picture."),
        ({"sise": "64"}, "bad_spec", "There is no such field; the fields are content, style, "),
        ({"webhok": "https://example.org"}, "bad_spec", "webhook"),
        ({"spec": "{"}, "bad_request", "The JSON is not valid."),
        ({"spec": '{"size": NaN}'}, "bad_spec", "Numbers must be finite."),
        ({"spec": '{"seed": 1e999}'}, "bad_spec", "seed must be"),
        ({"spec": "[" * 90_000}, "bad_request", "The JSON is not valid."),
        ({"style_weights": "1,2"}, "bad_spec", "style_weights: give one share"),
        ({"content_layers": "relu4_4", "model": "vgg16"}, "bad_spec", "set model=vgg19"),
    ],
)
def test_a_bad_parameter_is_refused_with_a_sentence_and_leaves_no_files(
    submit: Submit,
    store: JobStore,
    notifications: list[int],
    tmp_path: Any,
    parameters: dict[str, str],
    code: str,
    words: str,
) -> None:
    answer = submit(**parameters)

    assert (answer.status_code, answer.json()["code"]) == (
        400 if code == "bad_request" else 422,
        code,
    )
    assert words in answer.json()["detail"]
    assert (
        notifications,
        store.get_load().queued,
        [path for path in tmp_path.rglob("*") if path.is_file() and path.stem != "store"],
    ) == ([], 0, [])


@pytest.mark.parametrize(
    ("name", "value"),
    {
        "content_layers": "foo",
        "background": "foo",
        "size": "9999",
        "deadline_seconds": "-1",
        "pool": "foo bar",
    }.items(),
)
def test_a_refusal_names_the_parameter(submit: Submit, name: str, value: str) -> None:
    problem = submit(**{name: value}).json()

    assert (problem["code"], problem["parameter"]) == ("bad_spec", name)
    assert "reason" not in problem


def test_a_photo_that_is_too_long_for_the_size_is_named_as_the_reason(
    client: TestClient, files: dict[str, Any]
) -> None:
    long = codec.encode(Image.effect_noise((640, 64), 50).convert("RGB"))
    problem = client.post("/v1/jobs", files={**files, "content": long}, data={"size": 64}).json()

    assert (problem["code"], problem["parameter"]) == ("bad_spec", "size")
    assert problem["reason"] == "result_too_small"


def test_a_refusal_of_no_single_parameter_names_none(submit: Submit) -> None:
    assert "parameter" not in submit(style_weights="1,2").json()


PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("bad", "status", "code"),
    [
        (b"", 422, "bad_image"),
        (b"<html>", 415, "unsupported_image"),
        (PNG + b"\0" * 50, 422, "bad_image"),
        (PNG + b"\0" * validation.MAX_BYTES, 413, "upload_too_large"),
    ],
    ids=["empty", "html", "broken", "20 MB"],
)
@pytest.mark.parametrize("which", ["content", "style"])
def test_a_bad_picture_is_refused_and_creates_no_job(
    client: TestClient,
    files: dict[str, Any],
    store: JobStore,
    notifications: list[int],
    bad: bytes,
    status: int,
    code: str,
    which: str,
) -> None:
    answer = client.post("/v1/jobs", files={**files, which: ("../../x.jpg", bad, "image/jpeg")})

    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert (notifications, store.get_load().queued) == ([], 0)


def test_malformed_submissions_are_refused(
    client: TestClient, files: dict[str, Any], store: JobStore
) -> None:
    digest = "sha256:" + "0" * 64
    answers = [
        client.post("/v1/jobs"),
        client.post("/v1/jobs", content=b"x", headers={"Content-Type": "text/plain"}),
        client.post("/v1/jobs", data={"size": "64"}),
        client.post("/v1/jobs", files={"content": files["content"]}),
        client.post(
            "/v1/jobs", files=[("content", files["content"])] * 2 + [("style", files["style"])]
        ),
        client.post(
            "/v1/jobs", files=[("content", files["content"])] + [("style", files["style"])] * 12
        ),
        client.post("/v1/jobs", files={**files, "other": ("x", b"y")}),
        client.post("/v1/jobs", content=b"{", headers={"Content-Type": "application/json"}),
        client.post("/v1/jobs", content=b"[]", headers={"Content-Type": "application/json"}),
        client.post("/v1/jobs", content=b"\xff\xfe", headers={"Content-Type": "application/json"}),
        client.post("/v1/jobs", json={"content": digest}),
        client.post("/v1/jobs", json={"content": digest, "styles": [1]}),
        client.post("/v1/jobs", json={"content": digest, "styles": [digest], "extra": 1}),
        client.post("/v1/jobs", content=b"--x", headers={"Content-Type": "multipart/form-data"}),
        client.post(
            "/v1/jobs", content=b"--x", headers={"Content-Type": "multipart/form-data; boundary=x"}
        ),
    ]

    assert {answer.status_code for answer in answers} == {400}
    assert {answer.json()["code"] for answer in answers} == {"bad_request"}
    assert store.get_load().queued == 0
    unknown = client.post("/v1/jobs", json={"content": digest, "styles": [digest]})
    assert (unknown.status_code, unknown.json()["code"]) == (404, "image_not_found")


def test_a_photo_too_narrow_for_the_size_is_refused_with_a_sufficient_size(
    client: TestClient, files: dict[str, Any]
) -> None:
    narrow = codec.encode(Image.new("RGB", (800, 60)))
    answer = client.post(
        "/v1/jobs", files={**files, "content": ("x", narrow)}, data={"size": "256"}
    )

    assert (
        answer.status_code,
        answer.json()["detail"],
    ) == (422, "size must be at least 427 for a picture of this shape.")


def test_a_submission_cannot_name_the_upload_of_another_client(
    switch_caller: Any,
    client: TestClient,
    files: dict[str, Any],
    store: JobStore,
    notifications: list[int],
) -> None:
    """Otherwise, a client that knows a digest could use the picture of another client."""
    digest = client.post("/v1/images", files={"image": files["content"]}).json()["id"]
    switch_caller("other")

    assert client.head(f"/v1/images/{digest}").status_code == 404
    assert client.post("/v1/jobs", json={"content": digest, "styles": [digest]}).status_code == 404
