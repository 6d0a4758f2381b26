"""Uploads."""

import os
import tempfile
from typing import Any, NoReturn

import pytest
from anyio import CapacityLimiter
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from api.routes import images
from api.settings import ApiSettings
from api.submissions import multipart
from core.images import codec as pictures
from core.images import validation
from core.jobs.store import JobStore
from core.storage.blobs import Blobs, PendingBlob, digest_of


def test_an_upload_is_named_by_its_digest_and_found_again(
    client: TestClient, files: dict[str, Any], blobs: Blobs
) -> None:
    data = files["content"][1]
    unknown = client.head(f"/v1/images/{digest_of(data)}")
    kept = client.post("/v1/images", files={"image": files["content"]})
    again = client.post("/v1/images", files={"image": files["content"]})

    assert unknown.status_code == 404
    assert (
        kept.status_code,
        kept.json(),
    ) == (201, {"id": digest_of(data), "width": 96, "height": 72, "size_bytes": len(data)})
    assert again.json() == kept.json()
    assert client.head(kept.headers["location"]).status_code == 200
    assert blobs.get(kept.json()["id"]) == data


def test_an_upload_is_safe_from_the_janitor(
    client: TestClient, files: dict[str, Any], store: JobStore
) -> None:
    client.post("/v1/images", files={"image": files["content"]})

    assert store.mark_deleting() == []


def test_an_upload_can_be_fetched_as_it_came(client: TestClient, files: dict[str, Any]) -> None:
    """Shown in a browser, it can do nothing."""
    for name, kind in (("content", "image/jpeg"), ("style", "image/png")):
        kept = client.post("/v1/images", files={"image": files[name]})
        answer = client.get(kept.headers["location"])

        assert (answer.status_code, answer.headers["content-type"], answer.content) == (
            200,
            kind,
            files[name][1],
        )
        assert "sandbox" in answer.headers["content-security-policy"]


def test_to_look_at_a_picture_does_not_make_it_stay(
    client: TestClient, submit: Any, files: dict[str, Any], store: JobStore
) -> None:
    """Who deletes a job deletes its pictures, also those that were just shown."""
    job = submit().json()
    photo = job["input"]["content"]
    shown = client.get(f"/v1/images/{photo}").status_code
    client.delete(job["links"]["self"])
    store.expire_due(0)

    assert (shown, client.get(f"/v1/images/{photo}").status_code) == (200, 404)


@pytest.mark.parametrize("digest", ["x", "sha256:" + "0" * 64, "..%2f..", "%00"])
def test_what_is_not_here_is_404(client: TestClient, digest: str) -> None:
    assert [
        client.request(method, f"/v1/images/{digest}").status_code for method in ("HEAD", "GET")
    ] == [404, 404]


def test_a_bad_upload_is_refused_and_leaves_nothing(client: TestClient, tmp_path: Any) -> None:
    answer = client.post("/v1/images", files={"image": ("x.png", b"GIF89a")})

    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_image")
    assert client.post("/v1/images").status_code == 422
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_body_beyond_the_limit_is_413(client: TestClient) -> None:
    answer = client.post("/v1/images", files={"image": ("x", b"\0" * 21_000_000)})

    assert (answer.status_code, answer.json()["code"]) == (413, "upload_too_large")


def _files(folder: Any) -> list[Any]:
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("path", ["/v1/images", "/v1/jobs"])
def test_a_file_is_refused_as_soon_as_it_passes_its_limit(
    client: TestClient, tmp_path: Any, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """The body may still be as long as is taken of the whole form."""
    written = []
    monkeypatch.setattr(validation, "MAX_BYTES", 200_000)
    monkeypatch.setattr(PendingBlob, "write", lambda self, data: written.append(len(data)))
    field = "content" if path == "/v1/jobs" else "image"

    answer = client.post(path, files={field: ("x", b"\xff\xd8\xff" + bytes(5_000_000))})

    assert (answer.status_code, answer.json()["code"]) == (413, "upload_too_large")
    assert 150_000 < sum(written) <= 200_000
    assert _files(tmp_path) == []


def test_text_is_taken_within_a_limit_for_all_fields_together(
    client: TestClient, tmp_path: Any
) -> None:
    answer = client.post(
        "/v1/jobs",
        files={"content": ("x", b"\xff\xd8\xff")},
        data={"a": "x" * 60_000, "b": "x" * 60_000},
    )

    assert (answer.status_code, answer.json()["code"]) == (413, "upload_too_large")
    assert _files(tmp_path) == []


def test_a_full_disk_is_503_and_leaves_nothing(
    client: TestClient, files: dict[str, Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is read, and when it is kept."""

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


def test_who_waits_too_long_for_a_decoder_is_told_to_come_again(
    client: TestClient, files: dict[str, Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "_CHILDREN", CapacityLimiter(0))
    monkeypatch.setattr(images, "WAIT_SECONDS", 0.1)
    answer = client.post("/v1/images", files={"image": files["content"]})

    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (
        503,
        "unavailable",
        "2",
    )
    assert _files(tmp_path) == []
    assert client.get("/livez").status_code == 200


def test_files_lie_among_the_parts_of_blobs_while_they_are_read(
    client: TestClient, files: dict[str, Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    stock = multipart.part_of
    monkeypatch.setattr(
        images.multipart, "part_of", lambda file: seen.append(stock(file).path) or stock(file)
    )
    client.post("/v1/images", files={"image": files["content"]})

    assert [path.parent for path in seen] == [tmp_path / "blobs" / "parts"]
    assert not seen[0].exists()


def test_the_uploads_of_a_caller_take_so_much_room_and_no_more(
    app: FastAPI, client: TestClient
) -> None:
    one, two, three = (
        pictures.encode(Image.new("RGB", (40, 40), color)) for color in ("red", "green", "blue")
    )
    app.state.settings = ApiSettings(upload_quota_gb_per_caller=(len(one) + len(two)) / 1e9)
    answers = [client.post("/v1/images", files={"image": data}) for data in (one, two, two, three)]

    assert [answer.status_code for answer in answers] == [201, 201, 201, 429]
    assert answers[3].json()["code"] == "quota_exceeded"
    assert 0 < int(answers[3].headers["retry-after"]) <= 86_400
    assert client.head(answers[0].headers["location"]).status_code == 200


def test_a_picture_of_a_job_that_is_kept_as_an_upload_counts_as_one(
    app: FastAPI, client: TestClient, submit: Any, files: dict[str, Any]
) -> None:
    digest = submit().json()["input"]["content"]
    app.state.settings = ApiSettings(upload_quota_gb_per_caller=1 / 1e9)

    assert [client.request(way, f"/v1/images/{digest}").status_code for way in ("HEAD", "GET")] == [
        429,
        200,
    ]


def test_no_header_tells_that_somebody_else_has_sent_the_same(
    client: TestClient, blobs: Blobs
) -> None:
    data = pictures.encode(Image.new("RGB", (40, 40), "red"))
    path = client.post("/v1/images", files={"image": data}).headers["location"]
    before = client.get(path).headers
    os.utime(blobs.path(digest_of(data)), (2e9, 2e9))

    assert "last-modified" not in before
    assert {**client.get(path).headers, "x-request-id": ""} == {**before, "x-request-id": ""}
