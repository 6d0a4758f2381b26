"""Uploads: /v1/images."""

import io
import os
import tempfile
from typing import Any, NoReturn

import pytest
from fastapi import FastAPI
from PIL import Image, ImageChops, ImageStat
from starlette.testclient import TestClient

from api.fair_queue import FairQueue
from api.settings import ApiSettings
from api.submissions import multipart
from api.submissions import pictures as submitted_pictures
from core.images import codec as pictures
from core.images import validation
from core.jobs.store import JobStore
from core.storage.blobs import Blobs, PendingBlob, digest_of


def test_an_upload_is_named_by_its_digest(
    client: TestClient, files: dict[str, Any], blobs: Blobs
) -> None:
    data = files["content"][1]
    unknown = client.head(f"/v1/images/{digest_of(data)}")
    uploaded = client.post("/v1/images", files={"image": files["content"]})
    again = client.post("/v1/images", files={"image": files["content"]})

    assert unknown.status_code == 404
    assert (
        uploaded.status_code,
        uploaded.json(),
    ) == (
        201,
        {"id": digest_of(data), "width": 96, "height": 72, "size_bytes": len(data), "warnings": []},
    )
    assert again.json() == uploaded.json()
    assert client.head(uploaded.headers["location"]).status_code == 200
    assert blobs.get(uploaded.json()["id"]) == data


def test_the_garbage_collector_keeps_an_upload(
    client: TestClient, files: dict[str, Any], store: JobStore
) -> None:
    client.post("/v1/images", files={"image": files["content"]})

    assert store.mark_deleting() == []


def test_an_upload_is_returned_unchanged(client: TestClient, files: dict[str, Any]) -> None:
    """The Content-Security-Policy sandboxes it in a browser."""
    for name, kind in (("content", "image/jpeg"), ("style", "image/png")):
        uploaded = client.post("/v1/images", files={"image": files[name]})
        answer = client.get(uploaded.headers["location"])

        assert (answer.status_code, answer.headers["content-type"], answer.content) == (
            200,
            kind,
            files[name][1],
        )
        assert "sandbox" in answer.headers["content-security-policy"]


def test_get_does_not_extend_the_retention_of_a_picture(
    client: TestClient, submit: Any, files: dict[str, Any], store: JobStore
) -> None:
    """Deleting a job also deletes pictures that were shown just before."""
    job = submit().json()
    photo = job["input"]["content"]
    shown = client.get(f"/v1/images/{photo}").status_code
    client.delete(job["links"]["self"])
    store.expire_due(0)

    assert (shown, client.get(f"/v1/images/{photo}").status_code) == (200, 404)


@pytest.mark.parametrize("digest", ["x", "sha256:" + "0" * 64, "..%2f..", "%00"])
def test_an_unknown_digest_returns_404(client: TestClient, digest: str) -> None:
    assert [
        client.request(method, f"/v1/images/{digest}").status_code for method in ("HEAD", "GET")
    ] == [404, 404]


def test_a_bad_upload_is_refused_and_leaves_no_files(client: TestClient, tmp_path: Any) -> None:
    answer = client.post("/v1/images", files={"image": ("x.png", b"BM")})

    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_image")
    assert client.post("/v1/images").status_code == 400
    assert [path for path in tmp_path.rglob("*") if path.is_file() and path.stem != "store"] == []


@pytest.mark.parametrize(
    "request_",
    [
        {"files": {"image": (None, "https://example.org/a.jpg")}},
        {"files": {"image": (None, "data:image/png;base64," + "eHh4" * 5000)}},
        {"files": {"file": ("a.jpg", b"\xff\xd8\xff")}},
        {"files": {"image": ("", b"")}},
        {"content": b"\xff\xd8\xff", "headers": {"Content-Type": "image/jpeg"}},
        {"json": {"image": "https://example.org/a.jpg"}},
        {},
    ],
    ids=["URL", "data URI", "another field", "no file", "raw body", "JSON", "nothing"],
)
def test_what_is_no_upload_is_refused_with_what_to_send(
    client: TestClient, request_: dict[str, Any]
) -> None:
    answer = client.post("/v1/images", **request_)

    assert (answer.status_code, answer.json()["code"]) == (400, "bad_request")
    assert "form field image: with curl, -F image=@photo.jpg." in answer.json()["detail"]


def test_a_body_above_the_limit_returns_413(client: TestClient) -> None:
    answer = client.post("/v1/images", files={"image": ("x", b"\0" * 21_000_000)})

    assert (answer.status_code, answer.json()["code"]) == (413, "upload_too_large")


def _files(folder: Any) -> list[Any]:
    return [path for path in folder.rglob("*") if path.is_file() and path.stem != "store"]


@pytest.mark.parametrize("path", ["/v1/images", "/v1/jobs"])
def test_a_file_is_refused_as_soon_as_it_exceeds_its_limit(
    client: TestClient, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """The body as a whole is still within the limit of a form."""
    written = []
    monkeypatch.setattr(validation, "MAX_BYTES", 200_000)
    monkeypatch.setattr(PendingBlob, "write", lambda self, data: written.append(len(data)))
    field = "content" if path == "/v1/jobs" else "image"

    answer = client.post(path, files={field: ("x", b"\xff\xd8\xff" + bytes(5_000_000))})

    assert (answer.status_code, answer.json()["code"]) == (413, "upload_too_large")
    assert 150_000 < sum(written) <= 200_000
    assert _files(tmp_path) == []


def test_one_limit_applies_to_the_text_of_all_fields_together(
    client: TestClient, tmp_path: Any
) -> None:
    answer = client.post(
        "/v1/jobs",
        files={"content": ("x", b"\xff\xd8\xff")},
        data={"a": "x" * 60_000, "b": "x" * 60_000},
    )

    assert (answer.status_code, answer.json()["code"]) == (413, "upload_too_large")
    assert _files(tmp_path) == []


def test_a_full_disk_returns_503_and_leaves_no_files(
    client: TestClient, files: dict[str, Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full while the file is received, or when it is committed."""

    def full(*_: Any, **__: Any) -> NoReturn:
        raise OSError(28, "No space left on device")

    for module, name in ((tempfile, "mkstemp"), (os, "fsync")):
        with monkeypatch.context() as patched:
            patched.setattr(module, name, full)
            answer = client.post("/v1/images", files={"image": files["content"]})
        assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (
            503,
            "storage_full",
            "2",
        )
        assert _files(tmp_path) == []


def test_an_upload_that_the_disk_does_not_take_fills_no_quota(
    app: FastAPI, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (pictures.encode(Image.new("RGB", (40, 40), color)) for color in ("red", "green"))
    app.state.settings = ApiSettings(max_uploads_per_caller=1)

    def full(*_: Any) -> NoReturn:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        failed = client.post("/v1/images", files={"image": one})
    after = client.post("/v1/images", files={"image": two})

    assert (failed.status_code, after.status_code) == (503, 201)
    assert client.head(f"/v1/images/{digest_of(one)}").status_code == 404


def test_an_upload_above_the_quota_is_not_stored(
    app: FastAPI, client: TestClient, tmp_path: Any
) -> None:
    app.state.settings = ApiSettings(max_uploads_per_caller=1)
    for color, status in (("red", 201), ("green", 429)):
        data = pictures.encode(Image.new("RGB", (40, 40), color))
        assert client.post("/v1/images", files={"image": data}).status_code == status

    assert len(_files(tmp_path)) == 1


def test_a_client_that_waits_too_long_for_a_decoder_receives_503(
    client: TestClient, files: dict[str, Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    none_free = FairQueue("pictures", 0, wait_seconds=0.1)
    monkeypatch.setattr(submitted_pictures, "decoders", none_free)
    answer = client.post("/v1/images", files={"image": files["content"]})

    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (
        503,
        "unavailable",
        "2",
    )
    assert _files(tmp_path) == []
    assert client.get("/livez").status_code == 200


def test_files_are_pending_blobs_while_they_are_received(
    client: TestClient, files: dict[str, Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    stock = multipart.get_pending_blob
    monkeypatch.setattr(
        multipart,
        "get_pending_blob",
        lambda file: seen.append(stock(file).path) or stock(file),
    )
    client.post("/v1/images", files={"image": files["content"]})

    assert [path.parent for path in seen] == [tmp_path / "blobs" / "parts"]
    assert not seen[0].exists()


def test_the_uploads_of_a_caller_have_a_quota(app: FastAPI, client: TestClient) -> None:
    one, two, three = (
        pictures.encode(Image.new("RGB", (40, 40), color)) for color in ("red", "green", "blue")
    )
    app.state.settings = ApiSettings(upload_quota_gb_per_caller=(len(one) + len(two)) / 1e9)
    answers = [client.post("/v1/images", files={"image": data}) for data in (one, two, two, three)]

    assert [answer.status_code for answer in answers] == [201, 201, 201, 429]
    assert answers[3].json()["code"] == "quota_exceeded"
    assert 0 < int(answers[3].headers["retry-after"]) <= 86_400
    assert client.head(answers[0].headers["location"]).status_code == 200


def test_the_uploads_of_a_caller_are_limited_by_number(app: FastAPI, client: TestClient) -> None:
    app.state.settings = ApiSettings(max_uploads_per_caller=2)
    answers = [
        client.post(
            "/v1/images",
            files={"image": pictures.encode(Image.new("RGB", (40, 40), color))},
        )
        for color in ("red", "green", "red", "blue")
    ]

    assert [answer.status_code for answer in answers] == [201, 201, 201, 429]
    assert answers[3].json()["code"] == "quota_exceeded"
    assert client.head(answers[0].headers["location"]).status_code == 200


def test_a_picture_of_a_job_counts_as_an_upload_when_its_retention_is_extended(
    app: FastAPI, client: TestClient, submit: Any, files: dict[str, Any]
) -> None:
    digest = submit().json()["input"]["content"]
    app.state.settings = ApiSettings(upload_quota_gb_per_caller=1 / 1e9)

    assert [client.request(way, f"/v1/images/{digest}").status_code for way in ("HEAD", "GET")] == [
        429,
        200,
    ]


def test_a_small_copy_is_an_upright_webp_that_is_never_enlarged(
    client: TestClient, photo: Image.Image
) -> None:
    """Also of what few browsers can show."""
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    photo.save(file, "TIFF", exif=exif)
    path = client.post("/v1/images", files={"image": file.getvalue()}).headers["location"]
    answers = [client.get(f"{path}?width={width}") for width in (36, 500)]

    copies = [Image.open(io.BytesIO(answer.content)) for answer in answers]
    assert [(copy.format, copy.size) for copy in copies] == [("WEBP", (36, 48)), ("WEBP", (72, 96))]
    assert {answer.headers["content-type"] for answer in answers} == {"image/webp"}
    red, _, blue = photo.rotate(-90, expand=True).resize((36, 48)).split()
    assert ImageStat.Stat(ImageChops.difference(copies[0].getchannel("R"), red)).mean[0] < 8
    assert ImageStat.Stat(ImageChops.difference(copies[0].getchannel("R"), blue)).mean[0] > 8
    tag = answers[0].headers["etag"]
    assert client.get(f"{path}?width=36", headers={"If-None-Match": tag}).status_code == 304
    assert client.get(path, headers={"If-None-Match": tag}).status_code == 200
    assert [client.get(f"{path}?width={width}").status_code for width in (15, 9000)] == [422, 422]


def test_a_small_copy_is_for_its_owner_only(
    client: TestClient, files: dict[str, Any], switch_caller: Any
) -> None:
    """Also once it is in the cache."""
    switch_caller("anna")
    path = client.post("/v1/images", files={"image": files["content"]}).headers["location"]
    tag = client.get(f"{path}?width=40").headers["etag"]
    switch_caller("bob")
    answers = [
        client.get(f"{path}?width=40", headers=headers) for headers in ({}, {"If-None-Match": tag})
    ]

    assert [answer.status_code for answer in answers] == [404, 404]


def test_no_header_reveals_that_another_client_has_uploaded_the_same_picture(
    client: TestClient, blobs: Blobs
) -> None:
    data = pictures.encode(Image.new("RGB", (40, 40), "red"))
    path = client.post("/v1/images", files={"image": data}).headers["location"]
    before = client.get(path).headers
    os.utime(blobs.path(digest_of(data)), (2e9, 2e9))

    assert "last-modified" not in before
    assert {**client.get(path).headers, "x-request-id": ""} == {**before, "x-request-id": ""}


def _encode(size: tuple[int, int], kind: str = "PNG", mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Image.new(mode, size).save(file, kind)
    return file.getvalue()


UNDAMAGED = {
    "empty_file": b"",
    "too_small": _encode((20, 20)),
    "too_long": _encode((2000, 90)),
    "unsupported_samples": _encode((64, 64), "TIFF", "F"),
}


@pytest.mark.parametrize("reason", UNDAMAGED)
def test_a_refusal_of_an_undamaged_picture_names_its_reason(
    client: TestClient, reason: str
) -> None:
    answer = client.post("/v1/images", files={"image": ("x.png", UNDAMAGED[reason])})

    assert (answer.status_code, answer.json()["code"]) == (422, "bad_image")
    assert answer.json()["reason"] == reason


def test_a_refusal_of_a_damaged_picture_has_no_reason(client: TestClient) -> None:
    damaged = _encode((64, 64))[:-30]
    answer = client.post("/v1/images", files={"image": ("x.png", damaged)})

    assert answer.json()["code"] == "bad_image"
    assert "reason" not in answer.json()
