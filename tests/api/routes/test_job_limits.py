"""The operator's limits: submissions, batches, estimates and retries pass the same checks."""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from api.app import create_app
from api.fair_queue import FairQueue
from api.settings import ApiSettings
from api.submissions import estimates, multipart
from core import errors
from core.config import Settings
from core.images import codec
from core.jobs.models import EstimateResponse, JobError, ScaleEstimate, WorkerInfo
from core.jobs.store import JobStore
from core.style.limits import JobLimits

LARGE = {"size": "256", "iterations": "400"}
RunJob = Callable[[Image.Image], bytes]


@pytest.fixture
def limited_app(app: FastAPI) -> FastAPI:
    app.state.job_limits = JobLimits(size_px=256, iterations=400, seconds=60)
    return app


@pytest.fixture
def answer_estimates(store: JobStore) -> Iterator[Callable[[float | None], None]]:
    """Start a worker that estimates every job at these seconds, or refuses it for None."""
    over: list[bool] = []
    threads: list[Thread] = []

    def start(seconds: float | None) -> None:
        scale = ScaleEstimate(
            width=9, height=9, iterations=9, seconds=seconds or 0, memory_bytes=9, tile_px=None
        )
        refused = None if seconds else JobError(code="out_of_memory", message="Too large.")
        scales = [scale] if seconds else []
        answer = EstimateResponse(device="cpu", network="vgg19", scales=scales, refused=refused)

        def listen() -> None:
            while not over:
                if found := store.estimates.next_request():
                    store.estimates.reply(found[0], answer)

        store.heartbeat("worker")
        threads.append(Thread(target=listen))
        threads[-1].start()

    yield start
    over.append(True)
    for thread in threads:
        thread.join()


def _upload(client: TestClient, picture: Image.Image) -> str:
    sent = client.post("/v1/images", files={"image": codec.encode(picture)})
    return str(sent.json()["id"])


@pytest.mark.parametrize(
    ("spec", "setting"),
    [
        ({"size": 257}, "IMPASTO_MAX_SIZE_PX"),
        ({"size": 64, "iterations": 401}, "IMPASTO_MAX_ITERATIONS"),
        ({"size": 64, "quality": "fine", "init": "noise"}, "IMPASTO_MAX_ITERATIONS"),
    ],
    ids=str,
)
def test_every_way_to_a_job_refuses_one_above_the_limits(
    limited_app: FastAPI,
    client: TestClient,
    submit: Any,
    store: JobStore,
    photo: Image.Image,
    painting: Image.Image,
    spec: dict[str, Any],
    setting: str,
) -> None:
    old = submit().json()["id"]
    client.post(f"/v1/jobs/{old}/cancel")
    content, style = (_upload(client, picture) for picture in (photo, painting))
    record = io.BytesIO(
        codec.encode(photo, "png", {"content": content, "styles": [style], "spec": spec})
    )
    pair = {"content": content, "styles": [style]}
    answers = [
        client.post("/v1/jobs", json={**pair, "spec": spec}),
        client.post("/v1/jobs", files={"from": record}),
        client.post("/v1/batches", json={"contents": [content], "styles": [style], "spec": spec}),
        client.post("/v1/estimate", json={**pair, "spec": spec}),
        client.post(f"/v1/jobs/{old}/retry", json={"spec": spec}),
    ]

    assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [
        (422, "bad_spec")
    ] * 5
    assert all(setting in answer.json()["detail"] for answer in answers)
    assert [job.id for job in store.list_page(limit=9)[0]] == [old]


def test_what_the_caller_did_not_choose_is_clipped_to_the_limits(
    app: FastAPI, client: TestClient, submit: Any, photo: Image.Image
) -> None:
    """The plainest submission must be accepted, whatever the operator's limits are."""
    old = client.post("/v1/jobs", files=_files(photo), data={"iterations": "400"}).json()
    client.post(f"/v1/jobs/{old['id']}/cancel")
    app.state.job_limits = JobLimits(size_px=128, iterations=20)
    content = _upload(client, photo)
    pair = {"content": content, "styles": [content]}
    batch = {"contents": [content], "styles": [content]}
    sent = [
        client.post("/v1/jobs", files=_files(photo)),
        client.post("/v1/jobs", json={**pair, "spec": {"preset": "draft", "init": "noise"}}),
        client.post("/v1/jobs", json={**pair, "spec": {"preset": "gatys-2016"}}),
        client.post(f"/v1/jobs/{old['id']}/retry"),
    ]
    specs = [answer.json()["input"]["spec"] for answer in sent]
    created = client.post("/v1/batches", json=batch).json()["jobs"][0]
    specs.append(client.get(created["links"]["self"]).json()["input"]["spec"])
    estimate = client.post("/v1/estimate", json=pair)  # no worker runs; the limits come first

    assert [answer.status_code for answer in sent] == [202] * 4
    assert [(spec["size"], spec["iterations"]) for spec in specs] == [(128, 20)] * 5
    assert estimate.json()["code"] == "no_worker"
    assert client.post("/v1/jobs", json={**pair, "spec": {"size": 129}}).status_code == 422
    assert client.post("/v1/jobs", json={**pair, "spec": {"quality": "fine"}}).status_code == 422


def _files(picture: Image.Image) -> dict[str, bytes]:
    return {"content": codec.encode(picture), "style": codec.encode(picture)}


def test_the_document_and_the_presets_show_the_limits_of_the_service(
    valkey: Any, connect: Any, tmp_path: Path
) -> None:
    settings = Settings(
        redis_url=valkey.url, data_dir=tmp_path, max_size_px=200, max_iterations=300
    )
    limited, usual = (
        connect(create_app(one, ApiSettings()))
        for one in (settings, Settings(redis_url=valkey.url, data_dir=tmp_path))
    )
    presets = {one["name"]: one["spec"] for one in limited.get("/v1/presets").json()["presets"]}

    assert presets["draft"]["size"] == 200
    assert presets["gatys-2016"]["iterations"] == 300
    assert limited.get("/v1/system").json()["limits"]["default_size"] == 200
    for client, size, largest, most in ((limited, 200, 200, 300), (usual, 512, 8192, 5000)):
        body = client.get("/openapi.json").json()["paths"]["/v1/jobs"]["post"]["requestBody"]
        as_json, form = (
            body["content"][kind]["schema"]["properties"]
            for kind in ("application/json", "multipart/form-data")
        )
        for fields in (as_json["spec"]["properties"], form):
            assert (fields["size"]["default"], fields["size"]["maximum"]) == (size, largest)
            assert fields["iterations"]["maximum"] == most


def test_a_job_that_would_take_too_long_is_refused_where_an_estimate_exists(
    limited_app: FastAPI, client: TestClient, submit: Any, answer_estimates: Any
) -> None:
    unknown = submit(**LARGE)  # no worker could estimate it: the worker will enforce the limit
    client.post(f"/v1/jobs/{unknown.json()['id']}/cancel")
    answer_estimates(61.0)
    too_long, small = submit(**LARGE), submit()
    retried = client.post(f"/v1/jobs/{unknown.json()['id']}/retry")
    sizes = {"content": {"width": 96, "height": 72}, "styles": [{"width": 96, "height": 75}]}
    estimated = client.post("/v1/estimate", json={**sizes, "spec": {"size": 64}}).json()

    assert [answer.status_code for answer in (unknown, too_long, small, retried)] == [
        202,
        422,
        202,
        422,
    ]
    for answer in (too_long, retried):
        assert answer.json()["code"] == "bad_spec"
        assert (
            "about 61 s, and this service allows 60 s (IMPASTO_MAX_JOB_SECONDS)"
            in (answer.json()["detail"])
        )
    assert (estimated["seconds"], estimated["scales"]) == (None, [])
    assert "IMPASTO_MAX_JOB_SECONDS" in estimated["refused"]["message"]


def test_a_batch_is_estimated_once_by_its_longest_job(
    limited_app: FastAPI, client: TestClient, store: JobStore, answer_estimates: Any
) -> None:
    answer_estimates(61.0)
    wide = Image.new("RGB", (96, 40), "gray")
    contents = [_upload(client, picture) for picture in (wide, wide.resize((96, 90)))]
    spec = {"size": 256, "iterations": 400}
    body = {"contents": contents, "styles": contents[:1], "spec": spec}
    answer = client.post("/v1/batches", json=body)

    assert (answer.status_code, answer.json()["code"]) == (422, "bad_spec")
    assert "IMPASTO_MAX_JOB_SECONDS" in answer.json()["detail"]
    assert store.list_page(limit=9)[0] == []


@pytest.mark.parametrize("seconds", [59.0, None])
def test_a_job_that_is_short_enough_or_has_no_estimate_is_accepted(
    limited_app: FastAPI, submit: Any, answer_estimates: Any, seconds: float | None
) -> None:
    answer_estimates(seconds)

    assert submit(**LARGE).status_code == 202


def test_a_worker_that_does_not_answer_delays_a_long_job_only(
    limited_app: FastAPI, submit: Any, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimates, "WAIT_SECONDS", 0.2)
    store.heartbeat("worker")

    assert submit(**LARGE).status_code == 202
    assert not estimates._estimates._running


@pytest.mark.parametrize(("wait_seconds", "places", "status"), [(0.1, 9, 503), (9, 0, 429)])
def test_a_long_job_for_which_too_many_estimates_wait_is_accepted(
    limited_app: FastAPI,
    client: TestClient,
    submit: Any,
    store: JobStore,
    monkeypatch: pytest.MonkeyPatch,
    wait_seconds: float,
    places: int,
    status: int,
) -> None:
    """They are those of all callers, or its caller's own. An estimate alone is refused."""
    busy = FairQueue("", 0, wait_seconds=wait_seconds, max_waiting_per_caller=places)
    monkeypatch.setattr(estimates, "_estimates", busy)
    store.heartbeat("worker")
    size = {"width": 96, "height": 72}
    body = {"content": size, "styles": [size], "spec": {"size": 256, "iterations": 400}}
    answer = client.post("/v1/estimate", json=body)

    assert answer.status_code == status
    assert "retry-after" in answer.headers
    assert submit(**LARGE).status_code == 202


def test_the_service_shows_its_limits(valkey: Any, tmp_path: Path, connect: Any) -> None:
    settings = Settings(
        redis_url=valkey.url,
        data_dir=tmp_path,
        max_size_px=1024,
        max_iterations=300,
        max_job_seconds=90,
    )
    limits = connect(create_app(settings, ApiSettings())).get("/v1/system").json()["limits"]

    assert (limits["max_size"], limits["max_iterations"], limits["max_job_seconds"]) == (
        1024,
        300,
        90.0,
    )


def test_a_retry_passes_the_checks_of_a_submission(
    client: TestClient, submit: Any, store: JobStore, painting: Image.Image
) -> None:
    """A size that is too small for the photo's shape, and a mask that is black all over."""
    narrow = _upload(client, Image.new("RGB", (640, 32), "red"))
    style, black = _upload(client, painting), _upload(client, Image.new("RGB", (40, 40)))
    spec: dict[str, Any] = {"size": 640, "style_weights": [1, 0]}
    masked = {"masks": [style, black], "styles": [style, style], "spec": spec}
    old = client.post("/v1/jobs", json={"content": narrow, **masked}).json()["id"]
    client.post(f"/v1/jobs/{old}/cancel")
    small, unmasked, same = (
        client.post(f"/v1/jobs/{old}/retry", json={"spec": change})
        for change in ({"size": 64}, {"style_weights": [1, 1]}, {})
    )

    assert [answer.status_code for answer in (small, unmasked, same)] == [422, 422, 202]
    assert [answer.json()["code"] for answer in (small, unmasked)] == ["bad_spec", "bad_image"]
    assert "size must be at least 640" in small.json()["detail"]
    assert {job.id for job in store.list_page(limit=9)[0]} == {old, same.json()["id"]}


def test_a_model_that_no_worker_has_is_refused_where_the_service_knows_its_models(
    client: TestClient, submit: Any, store: JobStore
) -> None:
    before = submit(model="mine").status_code  # no worker is there
    store.heartbeat("silent")
    undescribed = submit(model="mine").status_code
    info = WorkerInfo(device="cpu", precision="float32", network="vgg19", networks=["vgg19", "own"])
    store.heartbeat("silent", info)
    answers = {model: submit(model=model) for model in ("mine", "own", "auto", "vgg16")}

    assert (before, undescribed) == (202, 202)
    assert {model: answer.status_code for model, answer in answers.items()} == {
        "mine": 422,
        "own": 202,
        "auto": 202,
        "vgg16": 422,  # a worker does not fetch it on its own
    }
    assert "`impasto weights fetch vgg16`" in answers["vgg16"].json()["detail"]
    assert answers["mine"].json()["code"] == "bad_spec"
    assert "GET /v1/models lists" in answers["mine"].json()["detail"]


def test_a_continued_job_can_begin_again_with_the_photo(
    run_job: RunJob, client: TestClient, submit: Any, photo: Image.Image
) -> None:
    old = submit().json()["id"]
    run_job(photo)
    continued = client.post(f"/v1/jobs/{old}/retry", json={"continue": True}).json()
    client.post(f"/v1/jobs/{continued['id']}/cancel")
    path = f"/v1/jobs/{continued['id']}/retry"
    begun, noise = (
        client.post(path, json={"spec": {"init": init}}) for init in ("content", "noise")
    )
    client.post(f"/v1/jobs/{begun.json()['id']}/cancel")
    impossible = client.post(
        f"/v1/jobs/{begun.json()['id']}/retry", json={"spec": {"init": "picture"}}
    )

    for answer in (begun, noise):
        assert (answer.status_code, answer.json()["input"]["init_image"]) == (202, None)
    assert begun.json()["input"]["spec"]["init"] == "content"
    assert (impossible.status_code, impossible.json()["code"]) == (422, "bad_spec")
    assert "send continue" in impossible.json()["detail"]


def test_the_pictures_of_a_callers_unfinished_jobs_have_a_quota(
    app: FastAPI, client: TestClient, files: Any, notifications: list[int], tmp_path: Path
) -> None:
    """A refusal stores nothing; the end of a job makes room."""
    names = {name: data for name, (_, data) in files.items()}
    other = codec.encode(Image.effect_noise((96, 72), 60).convert("RGB"))
    quota = sum(map(len, names.values())) + len(other) - 1
    app.state.settings = ApiSettings(upload_quota_gb_per_caller=quota / 1e9)
    first = client.post("/v1/jobs", files=names, data={"size": "64"})
    again = client.post("/v1/jobs", files=names, data={"size": "64"})
    stored = len(list((tmp_path / "blobs").glob("??/*")))
    more = {**names, "content": other}
    refused = [client.post(path, files=more, data={"size": "64"}) for path in PATHS]
    kept = len(list((tmp_path / "blobs").glob("??/*")))
    uploaded = client.post("/v1/images", files={"image": other}).json()["id"]
    by_digest = {"content": uploaded, "styles": [uploaded], "spec": {"size": 64}}
    refused.append(client.post("/v1/jobs", json=by_digest))
    client.post(f"{first.headers['location']}/cancel")
    still = client.post("/v1/jobs", json=by_digest)
    client.post(f"{again.headers['location']}/cancel")
    accepted = client.post("/v1/jobs", json=by_digest)

    assert (first.status_code, again.status_code) == (202, 202), "the same pictures count once"
    for answer in (*refused, still):
        assert (answer.status_code, answer.json()["code"]) == (429, "quota_exceeded")
        assert "The pictures of your queued and running jobs fill" in answer.json()["detail"]
    assert kept == stored
    assert accepted.status_code == 202


PATHS = ("/v1/jobs", "/v1/batches")


def test_the_files_of_a_callers_unfinished_forms_have_a_quota(
    app: FastAPI, client: TestClient, files: Any, notifications: list[int], tmp_path: Path
) -> None:
    size = len(files["content"][1]) + len(files["style"][1])
    app.state.settings = ApiSettings(upload_quota_gb_per_caller=(size - 1) / 1e9)
    refused = [client.post(path, files=files, data={"size": "64"}) for path in PATHS]
    left = [path for path in tmp_path.rglob("*") if path.is_file() and path.stem != "store"]
    app.state.settings = ApiSettings(upload_quota_gb_per_caller=size / 1e9)
    broken = client.post("/v1/jobs", files={**files, "nothing": files["style"]})
    accepted = client.post("/v1/jobs", files=files, data={"size": "64"})

    for answer in refused:
        assert (answer.status_code, answer.json()["code"]) == (429, "quota_exceeded")
        assert "The files that you are sending" in answer.json()["detail"]
    assert left == []
    assert broken.status_code in (400, 429)
    assert accepted.status_code == 202
    assert not multipart._bytes_of_forms, "the end of a request forgets its bytes"


def test_the_forms_of_one_caller_share_their_quota() -> None:
    one, two, other = (multipart.FormQuota(caller, 100) for caller in ("a", "a", "b"))
    one.add(60)
    other.add(60)
    with pytest.raises(errors.QuotaExceeded):
        two.add(50)
    one.release()
    two.add(50)
    for quota in (two, other):
        quota.release()

    assert not multipart._bytes_of_forms
