"""Jobs over HTTP: the contract of docs/api.md."""

import io
import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from api import dependencies
from api.middleware.auth import Caller
from api.settings import ApiSettings
from core.images import codec
from core.jobs.models import JobProgress, ModelUsed, Output, is_job_id
from core.jobs.store import JobStore
from core.storage.blobs import Blobs, digest_of
from core.style.presets import PRESETS
from core.style.spec import UPDATABLE
from core.webhooks.policy import WebhookPolicy

PROGRESS = JobProgress(
    value=0.5,
    scale=1,
    scales=2,
    iteration=5,
    iterations=10,
    iterations_per_second=2.0,
    seconds_left=3.0,
    loss={"total": 1.0},
)
Submit = Callable[..., Any]


def _run(store: JobStore, blobs: Blobs, picture: Image.Image) -> bytes:
    """Do a worker's part; the result's bytes."""
    job = store.claim("t", "worker")
    assert job is not None
    data = codec.encode(picture, "png", {"program": "impasto"})
    output = Output(
        id=blobs.put(data), content_type="image/png", width=96, height=72, size_bytes=len(data)
    )
    store.report_progress(job.id, "t", PROGRESS, blobs.put(codec.encode(picture, "jpeg")))
    store.succeed(job.id, "t", output, ModelUsed(name="vgg16", sha256="0"), {})
    return data


def test_a_submission_is_answered_with_202_its_location_and_the_job(
    submit: Submit, rings: list[int]
) -> None:
    answer = submit(style_weight="12", style_layers="relu1_1=1,relu2_1=0.5")
    job = answer.json()

    assert (answer.status_code, answer.headers["location"]) == (202, f"/v1/jobs/{job['id']}")
    assert is_job_id(job["id"])
    assert (job["status"], job["attempt"], job["queue"]) == (
        "queued",
        0,
        {"position": 0, "start_seconds": None},
    )
    assert tuple(
        job["input"]["spec"][name] for name in ("size", "style_weight", "style_layers")
    ) == (64, 12.0, {"relu1_1": 1.0, "relu2_1": 0.5})
    assert set(job["links"]) == {"self", "events", "cancel"}
    assert rings == [1]


def test_the_same_by_json_with_digests_of_uploads(
    client: TestClient, files: dict[str, Any], submit: Submit, rings: list[int]
) -> None:
    content, style = (
        client.post("/v1/images", files={"image": files[name]}).json()["id"]
        for name in ("content", "style")
    )
    body = {"content": content, "styles": [style], "spec": {"size": 64}}

    by_json, by_form = client.post("/v1/jobs", json=body), submit()

    assert (by_json.status_code, by_form.status_code) == (202, 202)
    assert by_json.json()["input"] == by_form.json()["input"]
    by_digest = client.post(
        "/v1/jobs", files={"style": files["style"]}, data={"content": content, "size": "64"}
    )
    assert by_digest.json()["input"] == by_form.json()["input"]


def test_masks_and_a_first_picture_come_as_files_or_as_digests(
    client: TestClient, files: dict[str, Any], photo: Image.Image
) -> None:
    mask, first = (
        codec.encode(photo.convert(mode).convert("RGB").resize(size))
        for mode, size in (("L", (40, 40)), ("RGB", (50, 50)))
    )
    more = [("mask", ("m.png", mask)), ("init_image", ("i.png", first))]
    by_form = client.post(
        "/v1/jobs", files=[*files.items(), *more], data={"size": "64", "init": "picture"}
    )
    wanted = by_form.json()["input"]

    assert (wanted["masks"], wanted["init_image"]) == ([digest_of(mask)], digest_of(first))
    assert client.post("/v1/jobs", json=wanted).json()["input"] == wanted


@pytest.mark.parametrize(
    ("field", "words"),
    [("mask", "mask: send one for the one painting, or none."), ("init_image", "init=picture")],
)
def test_pictures_that_do_not_fit_the_spec_are_refused_and_leave_nothing(
    client: TestClient, files: dict[str, Any], tmp_path: Any, field: str, words: str
) -> None:
    extra = (
        [(field, ("x.png", files["style"][1]))] * 2
        if field == "mask"
        else [(field, ("x.png", files["style"][1]))]
    )
    answer = client.post("/v1/jobs", files=[*files.items(), *extra], data={"size": "64"})

    assert (answer.status_code, answer.json()["code"]) == (422, "bad_spec")
    assert words in answer.json()["detail"]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


BLACK, CLEAR, WHITE = (
    Image.new("LA", (40, 40), shade) for shade in ((0, 255), (255, 0), (255, 255))
)


@pytest.mark.parametrize("by_digest", [False, True])
@pytest.mark.parametrize(
    ("masks", "shares", "status"),
    [
        pytest.param((WHITE, BLACK), "", 422, id="black"),
        pytest.param((CLEAR, WHITE), "1,1", 422, id="transparent"),
        pytest.param((WHITE, BLACK), "1,0", 202, id="black, of a painting without a share"),
        pytest.param((BLACK, WHITE), "1,0", 422, id="black, of the painting with the share"),
    ],
)
def test_a_mask_that_is_black_all_over_is_refused_unless_its_painting_has_no_share(
    client: TestClient,
    files: dict[str, Any],
    store: JobStore,
    masks: tuple[Image.Image, ...],
    shares: str,
    status: int,
    by_digest: bool,
) -> None:
    many = [("content", files["content"]), *[("style", files["style"])] * 2]
    many += [("mask", ("m.png", _saved(mask))) for mask in masks]
    if by_digest:
        ids = [client.post("/v1/images", files={"image": file}).json()["id"] for _, file in many]
        body = {
            "content": ids[0],
            "styles": ids[1:3],
            "masks": ids[3:],
            "spec": {"style_weights": shares or []},
        }
        answer = client.post("/v1/jobs", json=body)
    else:
        answer = client.post("/v1/jobs", files=many, data={"style_weights": shares})

    assert (answer.status_code, int(status == 202)) == (status, store.get_load().queued)
    if status == 422:
        assert answer.json()["code"] == "bad_image"
        assert "A mask is black all over" in answer.json()["detail"]


def _saved(picture: Image.Image) -> bytes:
    """With its transparency."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def test_knobs_may_come_in_one_field_and_single_ones_win(submit: Submit) -> None:
    spec = submit(spec=json.dumps({"size": 96, "seed": 5})).json()["input"]["spec"]

    assert (spec["size"], spec["seed"]) == (64, 5)


@pytest.mark.parametrize("field", ["preset", "spec"])
def test_a_preset_sets_what_is_not_sent(submit: Submit, field: str) -> None:
    value = (
        json.dumps({"preset": "brushwork", "style_scale": 2}) if field == "spec" else "brushwork"
    )
    spec = submit(**{field: value}).json()["input"]["spec"]

    parameters = PRESETS["brushwork"].parameters
    expected = (64, parameters["strength"], 2 if field == "spec" else parameters["style_scale"])
    assert (spec["size"], spec["strength"], spec["style_scale"]) == expected
    assert "preset" not in spec


def test_a_preset_that_there_is_not_is_refused_with_those_that_there_are(
    submit: Submit, rings: list[int]
) -> None:
    for refused in (submit(preset="<b>"), submit(spec='{"preset": ["draft"]}')):
        assert (refused.status_code, refused.json()["code"]) == (422, "bad_spec")
        assert refused.json()["detail"].startswith("preset must be one of draft,")
    assert rings == []


def test_an_empty_field_of_a_form_means_the_default(submit: Submit) -> None:
    assert submit(seed="", tv_weight=" ", preset="").status_code == 202


def test_several_paintings_keep_their_order_and_share_equally(
    client: TestClient, files: dict[str, Any]
) -> None:
    three = [("content", files["content"]), ("style", files["style"]), ("style", files["content"])]
    job = client.post("/v1/jobs", files=three, data={"size": "64"}).json()

    assert job["input"]["styles"] == [digest_of(files["style"][1]), digest_of(files["content"][1])]
    assert job["input"]["spec"]["style_weights"] == [0.5, 0.5]


def test_a_job_in_every_state_looks_as_promised(
    client: TestClient, submit: Submit, store: JobStore, blobs: Blobs, photo: Image.Image
) -> None:
    address = submit().headers["location"]
    queued = client.get(address)
    _run(store, blobs, photo)
    ended = client.get(address)

    assert (queued.headers["retry-after"], queued.headers["cache-control"]) == ("1", "no-cache")
    assert "retry-after" not in ended.headers
    assert ended.headers["etag"] != queued.headers["etag"]
    assert (ended.json()["status"], ended.json()["attempt"]) == ("succeeded", 1)
    assert ended.json()["progress"] == PROGRESS.model_dump()
    assert set(ended.json()["links"]) == {"self", "events", "retry", "preview", "result"}
    assert ended.json()["completed_at"].endswith("Z")


def test_an_unchanged_job_is_304(client: TestClient, submit: Submit, store: JobStore) -> None:
    address = submit().headers["location"]
    tag = client.get(address).headers["etag"]

    assert client.get(address, headers={"If-None-Match": tag}).status_code == 304
    store.claim("t", "worker")
    assert client.get(address, headers={"If-None-Match": tag}).status_code == 200


def test_a_list_may_be_of_several_statuses_over_its_pages(
    client: TestClient, submit: Submit, store: JobStore
) -> None:
    ids = [submit().json()["id"] for _ in range(6)][::-1]
    store.cancel(ids[1])
    store.cancel(ids[4])
    store.claim("t", "worker")
    store.delete(ids[2])
    seen, path = [], "/v1/jobs?limit=2&status=queued&status=running&status=queued"
    while path:
        page = client.get(path).json()
        seen += [(job["id"], job["status"]) for job in page["jobs"]]
        path = page["next"]

    assert seen == [(ids[0], "queued"), (ids[3], "queued"), (ids[5], "running")]
    assert client.get("/v1/jobs?status=queued&status=x").status_code == 422


def test_a_preview_that_goes_while_it_is_asked_for_gives_way_to_the_next(
    client: TestClient,
    app: FastAPI,
    submit: Submit,
    store: JobStore,
    blobs: Blobs,
    photo: Image.Image,
    tmp_path: Path,
) -> None:
    """Between the look at the job and the opening of the file; and one that is gone for good is no endless search."""
    address = submit().headers["location"]
    job = store.claim("t", "worker")
    assert job is not None
    old, new = (blobs.put(codec.encode(photo, "jpeg", quality=quality)) for quality in (50, 90))
    store.report_progress(job.id, "t", PROGRESS, old)

    class Swept(Blobs):
        def get(self, digest: str) -> bytes:
            if digest == old:
                store.report_progress(job.id, "t", PROGRESS, new)
                self.delete(old)
            return super().get(digest)

    app.state.blobs = Swept(tmp_path / "blobs")
    shown = client.get(f"{address}/preview")
    blobs.delete(new)

    assert (shown.status_code, new) == (200, digest_of(shown.content))
    assert (
        (gone := client.get(f"{address}/preview")).status_code,
        gone.json()["code"],
    ) == (404, "image_not_found")


def test_a_job_that_moves_up_in_the_queue_has_changed(
    client: TestClient, submit: Submit, store: JobStore
) -> None:
    submit()
    address = submit().headers["location"]
    tag = client.get(address).headers["etag"]
    store.claim("t", "worker")

    moved = client.get(address, headers={"If-None-Match": tag})
    assert (moved.status_code, moved.json()["queue"]) == (
        200,
        {"position": 0, "start_seconds": None},
    )


def test_the_result_comes_in_every_format(
    client: TestClient, submit: Submit, store: JobStore, blobs: Blobs, photo: Image.Image
) -> None:
    address = submit().headers["location"]
    data = _run(store, blobs, photo)

    png = client.get(f"{address}/result")
    assert (
        png.content,
        png.headers["content-type"],
        png.headers["x-content-type-options"],
    ) == (data, "image/png", "nosniff")
    for kind in codec.FORMATS:
        answer = client.get(f"{address}/result", params={"format": kind})
        assert (codec.detect_format(answer.content), answer.headers["content-type"]) == (
            kind,
            f"image/{kind}",
        )
        assert codec.decode(answer.content).size == (96, 72)
    assert codec.detect_format(client.get(f"{address}/preview").content) == "jpeg"


def test_there_is_no_result_before_the_end_nor_of_a_canceled_job(
    client: TestClient, submit: Submit
) -> None:
    address = submit().headers["location"]
    early = client.get(f"{address}/result")
    client.post(f"{address}/cancel")
    late = client.get(f"{address}/result")

    assert (early.status_code, early.json()["code"]) == (409, "job_not_ended")
    assert (late.status_code, late.json()["code"]) == (409, "no_result")
    assert client.get(f"{address}/preview").status_code == 409


def test_a_result_that_is_no_longer_kept_is_410(
    client: TestClient, submit: Submit, store: JobStore, blobs: Blobs, photo: Image.Image
) -> None:
    address = submit().headers["location"]
    blobs.delete(digest_of(_run(store, blobs, photo)))

    assert ((gone := client.get(f"{address}/result")).status_code, gone.json()["code"]) == (
        410,
        "result_gone",
    )


def test_cancel_is_safe_to_repeat_and_leaves_an_ended_job_alone(
    client: TestClient, submit: Submit, store: JobStore, blobs: Blobs, photo: Image.Image
) -> None:
    waiting, running = (submit().headers["location"] for _ in range(2))
    answers = [client.post(f"{waiting}/cancel").json() for _ in range(2)]
    _run(store, blobs, photo)

    assert [answer["status"] for answer in answers] == ["canceled", "canceled"]
    assert answers[1] == answers[0]
    assert client.post(f"{running}/cancel").json()["status"] == "succeeded"


def test_cancel_of_a_running_job_is_told_at_once(
    client: TestClient, submit: Submit, store: JobStore
) -> None:
    address = submit().headers["location"]
    store.claim("t", "worker")

    job = client.post(f"{address}/cancel").json()
    assert (job["status"], job["cancel_requested"]) == ("running", True)


def test_a_deleted_job_is_404_and_deleting_is_safe_to_repeat(
    client: TestClient, submit: Submit, store: JobStore
) -> None:
    address = submit().headers["location"]

    assert [client.delete(address).status_code for _ in range(2)] == [204, 204]
    assert client.get(address).status_code == 404
    assert client.get(f"{address}/result").status_code == 404
    assert store.claim("t", "worker") is None


def test_the_list_is_newest_first_in_linked_pages_by_status(
    client: TestClient, submit: Submit, store: JobStore
) -> None:
    ids = [submit().json()["id"] for _ in range(5)]
    store.claim("t", "worker")

    first = client.get("/v1/jobs", params={"limit": 2, "status": "queued"}).json()
    second = client.get(first["next"]).json()

    assert [job["id"] for page in (first, second) for job in page["jobs"]] == list(
        reversed(ids[1:])
    )
    assert second["next"] is None
    assert len(client.get("/v1/jobs").json()["jobs"]) == 5
    assert [
        job["id"] for job in client.get("/v1/jobs", params={"status": "running"}).json()["jobs"]
    ] == [ids[0]]


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
        ({"sise": "64"}, "bad_spec", "There is no such parameter; the parameters are size,"),
        ({"spec": "{"}, "bad_request", "This is no JSON"),
        ({"spec": '{"size": NaN}'}, "bad_spec", "Numbers must be finite."),
        ({"spec": '{"seed": 1e999}'}, "bad_spec", "seed must be"),
        ({"spec": "[" * 90_000}, "bad_request", "This is no JSON"),
        ({"style_weights": "1,2"}, "bad_spec", "style_weights: give one share"),
        ({"content_layers": "relu4_4"}, "bad_spec", "set model=vgg19"),
    ],
)
def test_a_bad_knob_is_refused_in_words_and_nothing_is_left_behind(
    submit: Submit,
    store: JobStore,
    rings: list[int],
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
        rings,
        store.get_load().queued,
        [path for path in tmp_path.rglob("*") if path.is_file()],
    ) == ([], 0, [])


PNG = b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize(
    ("bad", "status", "code"),
    [
        (b"", 415, "unsupported_image"),
        (b"<html>", 415, "unsupported_image"),
        (PNG + b"\0" * 50, 422, "bad_image"),
        (PNG + b"\0" * codec.MAX_BYTES, 413, "upload_too_large"),
    ],
    ids=["empty", "html", "broken", "20 MB"],
)
@pytest.mark.parametrize("which", ["content", "style"])
def test_a_bad_picture_is_refused_and_no_job_made(
    client: TestClient,
    files: dict[str, Any],
    store: JobStore,
    rings: list[int],
    bad: bytes,
    status: int,
    code: str,
    which: str,
) -> None:
    answer = client.post("/v1/jobs", files={**files, which: ("../../x.jpg", bad, "image/jpeg")})

    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert (rings, store.get_load().queued) == ([], 0)


def test_requests_of_the_wrong_form_are_refused(
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


def test_a_photo_too_narrow_for_the_size_is_refused_with_a_size_that_would_do(
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


@pytest.mark.parametrize(
    "job_id", ["job_" + "a" * 26, "x", "job_", "..%2f..", "%00", "job_" + "A" * 26, "j" * 5000]
)
def test_an_unknown_id_is_404_whatever_it_looks_like(client: TestClient, job_id: str) -> None:
    answers = [
        client.get(f"/v1/jobs/{job_id}"),
        client.get(f"/v1/jobs/{job_id}/result"),
        client.get(f"/v1/jobs/{job_id}/preview"),
        client.post(f"/v1/jobs/{job_id}/cancel"),
    ]

    assert {answer.status_code for answer in answers} == {404}


def test_the_description_names_every_knob_with_its_sentence(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    form = described["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["multipart/form-data"][
        "schema"
    ]

    assert {"content", "style", "spec", "size", "style_layers", "model"} <= set(form["properties"])
    assert all(
        "description" in form["properties"][name] for name in ("size", "style_layers", "seed")
    )


# ---------------------------------------------------------------------- on what terms


def test_the_same_idempotency_key_gives_the_same_job_and_rings_once(
    client: TestClient, files: dict[str, Any], rings: list[int]
) -> None:
    def post(**parameters: str) -> Any:
        return client.post(
            "/v1/jobs",
            files=files,
            data={"size": "64", **parameters},
            headers={"Idempotency-Key": "k-1"},
        )

    first, again, other = post(), post(), post(size="96")

    assert (first.status_code, again.status_code, again.json()["id"]) == (
        202,
        202,
        first.json()["id"],
    )
    assert again.headers["idempotent-replayed"] == "true"
    assert "idempotent-replayed" not in first.headers
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")
    assert rings == [1]


def test_a_repeated_submission_is_answered_though_its_pictures_have_gone(
    client: TestClient, files: dict[str, Any], store: JobStore, blobs: Blobs, app: FastAPI
) -> None:
    """And though the server's own settings are others by now."""
    ids = [
        client.post("/v1/images", files={"image": files[name]}).json()["id"]
        for name in ("content", "style")
    ]
    body, key = (
        {"content": ids[0], "styles": [ids[1]], "spec": {"size": 64}},
        {"Idempotency-Key": "k"},
    )
    first = client.post("/v1/jobs", json=body, headers=key)
    store.cancel(first.json()["id"])
    store.expire_early(1)
    store.expire_due(60)
    for digest in ids:
        blobs.delete(digest)
    app.state.settings = ApiSettings(result_retention_days=7, max_queued=1, max_jobs_per_caller=1)
    again = client.post("/v1/jobs", json=body, headers=key)

    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    assert again.headers["idempotent-replayed"] == "true"
    assert client.post("/v1/jobs", json=body).json()["code"] == "image_not_found"
    other = client.post("/v1/jobs", json={**body, "spec": {"size": 96}}, headers=key)
    assert other.json()["code"] == "idempotency_conflict"


def test_a_repeated_retry_is_answered_though_the_old_job_has_gone(
    client: TestClient, submit: Submit
) -> None:
    path, key = submit().headers["location"], {"Idempotency-Key": "k"}
    client.post(f"{path}/cancel")
    first = client.post(f"{path}/retry", json={"spec": {"seed": 1}}, headers=key)
    client.delete(path)
    again = client.post(f"{path}/retry", json={"spec": {"seed": 1}}, headers=key)

    assert (again.status_code, again.json()["id"]) == (202, first.json()["id"])
    assert again.headers["idempotent-replayed"] == "true"
    assert client.post(f"{path}/retry", headers=key).json()["code"] == "idempotency_conflict"
    assert client.post(f"{path}/retry").json()["code"] == "job_not_found"


def test_other_settings_of_the_server_make_no_other_request(
    client: TestClient, files: dict[str, Any], app: FastAPI, rings: list[int]
) -> None:
    def post() -> Any:
        return client.post(
            "/v1/jobs", files=files, data={"size": "64"}, headers={"Idempotency-Key": "k"}
        )

    first = post()
    app.state.settings = ApiSettings(result_retention_days=7, max_queued=1, max_jobs_per_caller=1)
    again = post()

    assert (again.status_code, again.json()["id"], rings) == (202, first.json()["id"], [1])


@pytest.mark.parametrize("key", ["", "two words", "x" * 256, "ümlaut"])
def test_a_bad_idempotency_key_is_refused(
    client: TestClient, files: dict[str, Any], key: str
) -> None:
    answer = client.post("/v1/jobs", files=files, headers={"Idempotency-Key": key.encode()})

    assert (answer.status_code, answer.json()["code"]) == (422, "bad_input")


@pytest.mark.parametrize(
    ("wish", "value"),
    [
        ("priority", "urgent"),
        ("deadline_seconds", "0"),
        ("deadline_seconds", "nan"),
        ("deadline_seconds", "1e9"),
        ("reuse", "perhaps"),
    ],
)
def test_a_wish_that_cannot_be_is_refused_by_name(
    submit: Submit, store: JobStore, wish: str, value: str
) -> None:
    answer = submit(**{wish: value})

    assert (answer.status_code, answer.json()["code"]) == (422, "bad_spec")
    assert wish in answer.json()["detail"]
    assert store.get_load().queued == 0


def test_wishes_show_in_the_job(submit: Submit) -> None:
    job = submit(priority="high", deadline_seconds="60").json()
    created, deadline = (
        datetime.fromisoformat(job[name]) for name in ("created_at", "deadline_at")
    )

    assert (job["priority"], (deadline - created).total_seconds()) == ("high", 60.0)


def test_a_full_queue_and_a_used_up_quota_say_when_to_come_back(
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


def test_retry_makes_a_new_job_with_what_is_changed(
    client: TestClient, submit: Submit, store: JobStore, rings: list[int]
) -> None:
    old = submit(strength="0.7", style_layers="relu1_1=1").json()
    early = client.post(f"/v1/jobs/{old['id']}/retry")
    client.post(f"/v1/jobs/{old['id']}/cancel")
    same = client.post(f"/v1/jobs/{old['id']}/retry")
    changed = client.post(f"/v1/jobs/{old['id']}/retry", json={"spec": {"strength": 0.9}})
    wrong = client.post(f"/v1/jobs/{old['id']}/retry", json={"spec": {"strength": 9}})

    assert (early.status_code, early.json()["code"]) == (409, "job_not_ended")
    assert (same.status_code, same.json()["retried_from"], same.json()["input"]) == (
        202,
        old["id"],
        old["input"],
    )
    assert changed.json()["input"]["spec"] == {**old["input"]["spec"], "strength": 0.9}
    assert (wrong.status_code, wrong.json()["code"]) == (422, "bad_spec")
    assert rings == [1, 1, 1]


def test_a_job_goes_on_from_the_result_of_another(
    client: TestClient, submit: Submit, store: JobStore, blobs: Blobs, photo: Image.Image
) -> None:
    path = f"/v1/jobs/{(old := submit(strength='0.7').json())['id']}"
    result = digest_of(_run(store, blobs, photo))
    on = client.post(
        f"{path}/retry", json={"continue": True, "spec": {"size": 128, "iterations": 9}}
    )
    otherwise = client.post(f"{path}/retry", json={"continue": True, "spec": {"init": "noise"}})
    again = client.post(f"/v1/jobs/{on.json()['id']}/cancel").json()

    spec = {**old["input"]["spec"], "init": "picture", "size": 128, "iterations": 9}
    assert (on.status_code, on.json()["input"]) == (
        202,
        {**old["input"], "init_image": result, "spec": spec},
    )
    assert on.json()["retried_from"] == old["id"]
    assert (otherwise.status_code, otherwise.json()["code"]) == (422, "bad_spec")
    none = client.post(f"/v1/jobs/{again['id']}/retry", json={"continue": True})
    assert (none.status_code, none.json()["code"]) == (409, "no_result")
    client.delete(path)
    assert store.is_owner("local", result), "the new job needs it"
    plain = client.post(f"/v1/jobs/{again['id']}/retry").json()
    assert (plain["input"]["init_image"], plain["input"]["spec"]["init"]) == (result, "picture")


def test_a_result_that_is_gone_cannot_be_gone_on_from(
    client: TestClient, submit: Submit, store: JobStore, blobs: Blobs, photo: Image.Image
) -> None:
    path = f"/v1/jobs/{submit().json()['id']}"
    blobs.delete(digest_of(_run(store, blobs, photo)))
    gone = client.post(f"{path}/retry", json={"continue": True})

    assert (gone.status_code, gone.json()["code"]) == (410, "result_gone")


def test_a_retry_with_a_preset_changes_what_the_preset_sets(
    client: TestClient, submit: Submit
) -> None:
    old = submit(strength="0.7", seed="5").json()
    client.post(f"/v1/jobs/{old['id']}/cancel")
    spec = client.post(
        f"/v1/jobs/{old['id']}/retry", json={"spec": {"preset": "gatys-2016"}}
    ).json()["input"]["spec"]

    assert spec == {**old["input"]["spec"], **PRESETS["gatys-2016"].parameters, "style_weight": 1e6}


def test_a_result_is_reused_where_that_is_allowed(
    client: TestClient, submit: Submit, store: JobStore, blobs: Blobs, photo: Image.Image
) -> None:
    store.record_model_weights("auto", "0")
    submit()
    data = _run(store, blobs, photo)
    job = submit(reuse="true").json()

    assert (job["status"], job["attempt"]) == ("succeeded", 0)
    assert client.get(job["links"]["result"]).content == data
    assert submit().json()["status"] == "queued"


def test_a_result_comes_in_a_smaller_size_but_never_in_a_larger_one(
    client: TestClient, submit: Submit, store: JobStore, blobs: Blobs, photo: Image.Image
) -> None:
    path = f"/v1/jobs/{submit().json()['id']}/result"
    whole = _run(store, blobs, photo)

    for kind in ("png", "jpeg", "webp"):
        small = client.get(f"{path}?width=48&format={kind}")
        assert (
            small.headers["content-type"],
            Image.open(io.BytesIO(small.content)).size,
        ) == (f"image/{kind}", (48, 36))
    assert codec.read_provenance(client.get(f"{path}?width=48").content) == {"program": "impasto"}
    assert whole == client.get(f"{path}?width=500").content == client.get(path).content
    assert [client.get(f"{path}?width={width}").status_code for width in (15, 9000)] == [422, 422]


def test_a_part_of_a_result_can_be_asked_for(
    client: TestClient, submit: Submit, store: JobStore, blobs: Blobs, photo: Image.Image
) -> None:
    path = f"/v1/jobs/{submit().json()['id']}/result"
    whole = _run(store, blobs, photo)
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


def test_a_result_that_the_client_has_is_not_sent_again(
    client: TestClient, submit: Submit, store: JobStore, blobs: Blobs, photo: Image.Image
) -> None:
    path = f"/v1/jobs/{submit().json()['id']}/result"
    _run(store, blobs, photo)
    tags = [client.get(path + query).headers["etag"] for query in ("", "?format=webp", "?width=48")]

    assert len(set(tags)) == 3
    assert client.get(path, headers={"If-None-Match": tags[0]}).status_code == 304
    assert client.get(path, headers={"If-None-Match": tags[1]}).status_code == 200


def test_a_job_is_steered_by_patch_until_it_ends(
    client: TestClient, submit: Submit, store: JobStore
) -> None:
    path = f"/v1/jobs/{submit(strength='0.2').json()['id']}"
    both = client.patch(path, json={"spec": {"strength": 0.9}, "pinned": True}).json()
    again = client.patch(path, json={"spec": {"strength": 0.9}}).json()
    refused = client.patch(path, json={"spec": {"size": 128}, "pinned": False})
    nothing = client.patch(path, json={})
    client.post(f"{path}/cancel")
    late = client.patch(path, json={"spec": {"strength": 0.5}})

    assert (both["input"]["spec"]["strength"], both["pinned"]) == (0.9, True)
    assert again["version"] == both["version"]
    assert (refused.status_code, refused.json()["code"]) == (422, "bad_spec")
    assert "size cannot be changed any more; strength, content_weight" in refused.json()["detail"]
    assert (nothing.status_code, nothing.json()["code"]) == (422, "bad_input")
    assert (late.status_code, late.json()["code"]) == (409, "job_already_ended")
    ended = client.get(path).json()
    assert (ended["input"]["spec"]["strength"], ended["pinned"]) == (0.9, True)


def test_what_may_be_steered_stands_in_the_description(client: TestClient) -> None:
    described = client.get("/openapi.json").json()["components"]["schemas"]["Change"]

    assert set(described["properties"]["spec"]["properties"]) == {*UPDATABLE}


def test_a_black_mask_gets_no_share_by_steering(
    client: TestClient, files: dict[str, Any], painting: Image.Image, rings: list[int]
) -> None:
    """It would make the run fail."""
    masks = [codec.encode(Image.new("RGB", (40, 40), color)) for color in ("white", "black")]
    parts = [
        ("content", files["content"]),
        *[("style", files["style"])] * 2,
        *[("mask", ("m", m)) for m in masks],
    ]
    path = f"/v1/jobs/{client.post('/v1/jobs', files=parts, data={'style_weights': '1,0'}).json()['id']}"
    refused = client.patch(path, json={"spec": {"style_weights": [1, 1]}})

    assert (refused.status_code, refused.json()["code"]) == (422, "bad_image")
    assert client.patch(path, json={"spec": {"style_weights": [2, 0]}}).status_code == 200


def test_a_pinned_job_does_not_expire(
    client: TestClient, submit: Submit, store: JobStore, blobs: Blobs
) -> None:
    path = submit().headers["location"]
    _run(store, blobs, Image.new("RGB", (96, 72)))
    assert client.get(path).json()["expires_at"] is not None

    pinned = client.patch(path, json={"pinned": True}).json()
    assert (pinned["pinned"], pinned["expires_at"]) == (True, None)
    assert client.patch(path, json={"pinned": False}).json()["expires_at"] is not None
    assert client.patch(path, json={"pinned": "perhaps"}).status_code == 422
    assert client.patch("/v1/jobs/job_" + "a" * 26, json={"pinned": True}).status_code == 404


def test_an_expired_result_is_gone(
    client: TestClient, submit: Submit, store: JobStore, blobs: Blobs, photo: Image.Image
) -> None:
    path = submit().headers["location"]
    _run(store, blobs, photo)
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


def test_of_a_canceled_job_the_picture_so_far_is_the_result(
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


def test_anothers_upload_cannot_be_named(
    client: TestClient, files: dict[str, Any], store: JobStore, rings: list[int]
) -> None:
    """Known to the service is not enough: whoever knows a digest could else ask for what others hold."""
    digest = client.post("/v1/images", files={"image": files["content"]}).json()["id"]
    client.app.dependency_overrides[dependencies._caller] = lambda: Caller("stranger")  # type: ignore[attr-defined]

    assert client.head(f"/v1/images/{digest}").status_code == 404
    assert client.post("/v1/jobs", json={"content": digest, "styles": [digest]}).status_code == 404


# ---------------------------------------------------------------------- webhooks


@pytest.fixture
def webhooks(app: FastAPI) -> None:
    """A service with a secret."""
    app.state.webhooks = WebhookPolicy(enabled=True)


@pytest.mark.usefixtures("webhooks")
def test_a_webhook_is_taken_by_form_by_json_and_by_a_retry(
    client: TestClient, store: JobStore, files: dict[str, Any], submit: Submit
) -> None:
    by_form = submit(webhook="HTTPS://Example.org?a=b").json()
    inputs = by_form["input"]
    body = {
        "content": inputs["content"],
        "styles": inputs["styles"],
        "webhook": "https://example.org/x",
    }
    by_json = client.post("/v1/jobs", json=body).json()
    client.post(f"/v1/jobs/{by_form['id']}/cancel")
    again, plain = [
        client.post(f"/v1/jobs/{by_form['id']}/retry", json=change).json()
        for change in ({"webhook": "https://example.org/y"}, {})
    ]

    urls = [store.get(job["id"]).webhook for job in (by_form, by_json, again, plain)]
    assert urls == [
        "https://example.org/?a=b",
        "https://example.org/x",
        "https://example.org/y",
        None,
    ]
    assert not [key for job in (by_form, again) for key in job if "webhook" in key]


@pytest.mark.usefixtures("webhooks")
@pytest.mark.parametrize(
    "url", ["http://a.org/", "https://127.0.0.1/", "https://0x7f.1/", "https://a@b.org/", "x"]
)
def test_a_webhook_that_leads_nowhere_good_is_refused_before_anything_is_stored(
    url: str, client: TestClient, store: JobStore, submit: Submit, blobs: Blobs
) -> None:
    refused = submit(webhook=url)

    assert (refused.status_code, refused.json()["code"]) == (422, "bad_webhook")
    assert url not in refused.json()["detail"] or url == "x"
    assert store.list_page(limit=10) == ([], None)
    assert [*blobs.sizes()] == []


@pytest.mark.usefixtures("webhooks")
def test_a_retry_refuses_a_bad_webhook_and_what_is_no_text(
    client: TestClient, submit: Submit
) -> None:
    job = submit().json()
    client.post(f"/v1/jobs/{job['id']}/cancel")
    refused = [
        client.post(f"/v1/jobs/{job['id']}/retry", json={"webhook": webhook}).json()["code"]
        for webhook in ("https://10.0.0.1/", 7)
    ]

    assert refused == ["bad_webhook", "bad_input"]


def test_without_a_secret_webhooks_are_refused_in_words(submit: Submit) -> None:
    refused = submit(webhook="https://example.org/")

    assert (refused.status_code, refused.json()["code"]) == (422, "bad_webhook")
    assert "IMPASTO_WEBHOOK_SECRET" in refused.json()["detail"]


@pytest.mark.usefixtures("webhooks")
def test_another_webhook_is_another_request_for_an_idempotency_key(
    client: TestClient, files: dict[str, Any]
) -> None:
    statuses = [
        client.post(
            "/v1/jobs", files=files, data={"webhook": url}, headers={"Idempotency-Key": "k"}
        ).status_code
        for url in ("https://example.org", "https://example.org", "https://example.org/other")
    ]

    assert statuses == [202, 202, 422]
