"""The API with a bucket: submissions, links to results, slow answers, readiness."""

import hashlib
import threading
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from PIL import Image
from s3_server import Fault, S3Server, answer, delay

from api.app import create_app
from api.settings import ApiSettings
from core import errors
from core.auth.api_keys import ApiKeyStore
from core.config import Settings
from core.storage import s3 as storage_s3
from core.storage.blobs import Blobs, digest_of
from core.storage.location import open_storage

BROKEN = answer("500 Internal Server Error", "InternalError")


@pytest.fixture
def url(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(storage_s3, "MAX_RETRIES", 1)
    return s3.create_bucket()


@pytest.fixture
def own() -> ApiSettings:
    return ApiSettings(result_links=True)


@pytest.fixture
def app(valkey: Any, tmp_path: Path, url: str, own: ApiSettings) -> FastAPI:
    return create_app(Settings(redis_url=valkey.url, data_dir=tmp_path, blobs_url=url), own)


@pytest.fixture
def blobs(app: FastAPI) -> Blobs:
    """Those of the API; so a job that `run_job` ends has its result in the bucket."""
    found: Blobs = app.state.blobs
    return found


RunJob = Callable[[Image.Image], bytes]


def test_a_program_gets_a_link_to_the_result_and_a_page_its_bytes(
    client: TestClient, submit: Any, run_job: RunJob, photo: Image.Image
) -> None:
    job_id = submit().json()["id"]
    data = run_job(photo)
    path = f"/v1/jobs/{job_id}/result"

    redirected = client.get(path, follow_redirects=False)
    assert redirected.status_code == 307
    link = redirected.headers["Location"]
    linked = httpx2.get(link, trust_env=False)
    assert linked.content == data
    digest = b64encode(hashlib.sha256(data).digest()).decode()
    assert redirected.headers["Repr-Digest"] == f"sha-256=:{digest}:"
    assert "no-store" in redirected.headers["Cache-Control"]
    assert "X-Amz-Expires=300" in link
    assert httpx2.get(link.partition("?")[0], trust_env=False).status_code == 403

    for headers, query in (
        ({"Sec-Fetch-Site": "same-origin"}, ""),
        ({"Accept-Language": "en"}, ""),
        ({}, "?width=48"),
    ):
        answered = client.get(path + query, headers=headers, follow_redirects=False)
        assert answered.status_code == 200
        assert answered.headers["Content-Type"] == "image/png"
    tag = redirected.headers["ETag"]
    assert client.get(path, headers={"If-None-Match": tag}).status_code == 304


def test_a_link_is_signed_for_the_endpoint_that_clients_reach(
    valkey: Any, tmp_path: Path, url: str
) -> None:
    settings = Settings(
        blobs_url=f"{url}&public_endpoint=https://s3.example.org", data_dir=tmp_path
    )
    blobs = open_storage(settings).blobs
    link = blobs.sign(blobs.put(b"paint"), 60.0)

    assert link.startswith("https://s3.example.org/pictures-")
    with pytest.raises(errors.ImageNotFound):
        blobs.sign(digest_of(b"photo"), 60.0)


def test_the_operator_sees_no_disk(app: FastAPI, client: TestClient, keys: ApiKeyStore) -> None:
    _, secret = keys.create("operator", admin=True)
    status = client.get("/v1/operator/status", headers={"Authorization": f"Bearer {secret}"}).json()

    assert status["disk"] == {"total_bytes": None, "free_bytes": None, "quota_bytes": None}


def test_links_need_a_bucket(valkey: Any, tmp_path: Path, own: ApiSettings) -> None:
    with pytest.raises(errors.BadSettings, match="IMPASTO_BLOBS_URL"):
        create_app(Settings(redis_url=valkey.url, data_dir=tmp_path), own)


def test_a_submission_by_digest_needs_the_picture_in_the_bucket(
    client: TestClient, files: Any, blobs: Blobs, notifications: Any
) -> None:
    """Another machine's garbage collector may have deleted what this one still has a copy of."""
    ids = [client.post("/v1/images", files={"image": file}).json()["id"] for file in files.values()]
    body = {"content": ids[0], "styles": [ids[1]], "spec": {"size": 64}}
    assert client.post("/v1/jobs", json=body).status_code == 202
    blobs._bucket.delete([storage_s3._key(ids[0])])  # type: ignore[attr-defined]

    assert blobs.get(ids[0]), "a copy"
    assert client.post("/v1/jobs", json=body).status_code == 404


@pytest.mark.parametrize(
    ("fault", "code"),
    [(BROKEN, "unavailable"), (answer("507 X", "XMinioStorageFull"), "storage_full")],
    ids=["broken", "full"],
)
def test_a_bucket_that_takes_nothing_is_answered_with_503_and_leaves_no_file(
    fault: Any, code: str, client: TestClient, submit: Any, s3: S3Server, url: str, tmp_path: Path
) -> None:
    s3.faults.append(Fault("PUT", "", fault))
    refused = submit()

    assert (refused.status_code, refused.json()["code"]) == (503, code)
    assert client.get("/v1/jobs").json()["jobs"] == []
    assert "pictures" in client.get("/readyz").json()["checks"]
    assert client.get("/readyz").json()["checks"]["pictures"] != "ok"
    s3.faults.clear()
    assert not [key for key in s3.keys(url) if "blobs/" in key and "identity" not in key]
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and "cache" in str(path)]
    assert submit().status_code == 202
    assert client.get("/readyz").json()["checks"]["pictures"] == "ok"


@pytest.mark.parametrize("own", [ApiSettings()], ids=["no-links"])
def test_a_slow_bucket_delays_no_other_request(
    client: TestClient, submit: Any, run_job: RunJob, photo: Image.Image, s3: S3Server, app: FastAPI
) -> None:
    """The result of a job that is not in the cache, while the bucket takes its time."""
    job_id = submit().json()["id"]
    data = run_job(photo)
    copy = app.state.blobs.path(digest_of(data))
    copy.unlink()
    asked, answers = threading.Event(), threading.Event()

    def wait_and_answer(*args: Any) -> Any:
        asked.set()
        assert answers.wait(30)
        return delay(0)(*args)

    s3.faults.append(Fault("GET", "blobs/", wait_and_answer))
    results: list[Any] = []
    slow = threading.Thread(target=lambda: results.append(client.get(f"/v1/jobs/{job_id}/result")))
    slow.start()
    assert asked.wait(10)
    assert client.get("/livez").status_code == 200
    assert client.get(f"/v1/jobs/{job_id}").status_code == 200
    assert not results
    answers.set()
    slow.join()
    assert results[0].content == data
