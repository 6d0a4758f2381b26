"""The result and the preview of a job."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from core.images import codec, validation
from core.jobs.models import JobProgress, Output
from core.jobs.store import JobStore
from core.storage.blobs import Blobs, digest_of

RunJob = Callable[[Image.Image], bytes]
Submit = Callable[..., Any]


def test_a_preview_that_is_deleted_during_the_request_is_replaced_by_the_next(
    progress: JobProgress,
    client: TestClient,
    app: FastAPI,
    submit: Submit,
    store: JobStore,
    blobs: Blobs,
    photo: Image.Image,
    tmp_path: Path,
) -> None:
    """The first deletion happens after the job was read. A second one is an error, not a loop."""
    address = submit().headers["location"]
    job = store.claim("t", "worker")
    assert job is not None
    old, new = (blobs.put(codec.encode(photo, "jpeg", quality=quality)) for quality in (50, 90))
    store.report_progress(job.id, "t", progress, old)

    class SweptBlobs(Blobs):
        def get(self, digest: str) -> bytes:
            if digest == old:
                store.report_progress(job.id, "t", progress, new)
                self.delete(old)
            return super().get(digest)

    app.state.blobs = SweptBlobs(tmp_path / "blobs")
    response = client.get(f"{address}/preview")
    blobs.delete(new)

    assert (response.status_code, new) == (200, digest_of(response.content))
    assert (
        (refused := client.get(f"{address}/preview")).status_code,
        refused.json()["code"],
    ) == (404, "image_not_found")


def test_the_result_is_available_in_every_format(
    run_job: RunJob, client: TestClient, submit: Submit, photo: Image.Image
) -> None:
    address = submit().headers["location"]
    data = run_job(photo)

    png = client.get(f"{address}/result")
    assert (
        png.content,
        png.headers["content-type"],
        png.headers["x-content-type-options"],
    ) == (data, "image/png", "nosniff")
    for kind in validation.FORMATS:
        answer = client.get(f"{address}/result", params={"format": kind})
        assert (validation.detect_format(answer.content), answer.headers["content-type"]) == (
            kind,
            f"image/{kind}",
        )
        assert codec.decode(answer.content).size == (96, 72)
    assert validation.detect_format(client.get(f"{address}/preview").content) == "jpeg"


def test_there_is_no_result_before_the_end_or_of_a_job_canceled_in_the_queue(
    client: TestClient, submit: Submit
) -> None:
    address = submit().headers["location"]
    early = client.get(f"{address}/result")
    client.post(f"{address}/cancel")
    after_end = client.get(f"{address}/result")

    assert (early.status_code, early.json()["code"]) == (409, "job_not_ended")
    assert (after_end.status_code, after_end.json()["code"]) == (409, "no_result")
    assert client.get(f"{address}/preview").status_code == 409


def test_a_deleted_result_returns_410(
    run_job: RunJob, client: TestClient, submit: Submit, blobs: Blobs, photo: Image.Image
) -> None:
    address = submit().headers["location"]
    blobs.delete(digest_of(run_job(photo)))

    assert ((refused := client.get(f"{address}/result")).status_code, refused.json()["code"]) == (
        410,
        "result_gone",
    )


def test_a_result_can_be_made_smaller_but_not_larger(
    run_job: RunJob, client: TestClient, submit: Submit, photo: Image.Image
) -> None:
    path = f"/v1/jobs/{submit().json()['id']}/result"
    whole = run_job(photo)

    for kind in ("png", "jpeg", "webp"):
        small = client.get(f"{path}?width=48&format={kind}")
        assert (
            small.headers["content-type"],
            Image.open(io.BytesIO(small.content)).size,
        ) == (f"image/{kind}", (48, 36))
    assert codec.read_provenance(client.get(f"{path}?width=48").content) == {"program": "impasto"}
    assert whole == client.get(f"{path}?width=500").content == client.get(path).content
    assert [client.get(f"{path}?width={width}").status_code for width in (15, 9000)] == [422, 422]


def test_a_byte_range_of_a_result_can_be_requested(
    run_job: RunJob, client: TestClient, submit: Submit, photo: Image.Image
) -> None:
    path = f"/v1/jobs/{submit().json()['id']}/result"
    whole = run_job(photo)
    tag = client.get(path).headers["etag"]
    part = client.get(path, headers={"Range": "bytes=10-", "If-Range": tag})
    changed = client.get(path, headers={"Range": "bytes=10-", "If-Range": '"other"'})
    beyond = client.get(path, headers={"Range": f"bytes={len(whole)}-"})
    nonsense = client.get(path, headers={"Range": "bytes=z"})

    assert (part.status_code, part.content) == (206, whole[10:])
    assert (changed.status_code, changed.content) == (200, whole)
    assert (beyond.status_code, beyond.json()["code"]) == (416, "range_not_satisfiable")
    assert (nonsense.status_code, nonsense.json()["code"]) == (400, "bad_request")
    assert ((head := client.head(path)).status_code, head.headers["content-length"]) == (
        200,
        str(len(whole)),
    )


def test_a_result_that_the_client_has_returns_304(
    run_job: RunJob, client: TestClient, submit: Submit, photo: Image.Image
) -> None:
    path = f"/v1/jobs/{submit().json()['id']}/result"
    run_job(photo)
    tags = [client.get(path + query).headers["etag"] for query in ("", "?format=webp", "?width=48")]

    assert len(set(tags)) == 3
    assert client.get(path, headers={"If-None-Match": tags[0]}).status_code == 304
    assert client.get(path, headers={"If-None-Match": tags[1]}).status_code == 200


def test_an_expired_result_returns_410(
    run_job: RunJob, client: TestClient, submit: Submit, store: JobStore, photo: Image.Image
) -> None:
    path = submit().headers["location"]
    run_job(photo)
    store.expire_early(1)
    store.expire_due(60)
    answer = client.get(f"{path}/result")
    job = client.get(path).json()

    assert (answer.status_code, answer.json()["code"]) == (410, "result_gone")
    assert (job["status"], set(job["links"])) == ("succeeded", {"self", "events", "retry"})
    assert ((retry := client.post(f"{path}/retry")).status_code, retry.json()["code"]) == (
        410,
        "result_gone",
    )


def test_the_result_of_a_canceled_run_is_its_last_state(
    client: TestClient, submit: Submit, store: JobStore, blobs: Blobs, photo: Image.Image
) -> None:
    path = submit().headers["location"]
    job = store.claim("t", "worker")
    assert job is not None
    client.post(f"{path}/cancel")
    data = codec.encode(photo)
    output = Output(
        id=blobs.put(data), content_type="image/png", width=96, height=72, size_bytes=len(data)
    )
    store.end_canceled(job.id, "t", output)

    assert client.get(path).json()["status"] == "canceled"
    assert client.get(f"{path}/result").content == data
