"""POST /v1/estimate."""

from collections.abc import Callable
from threading import Thread
from typing import Any

import pytest
from PIL import Image, ImageDraw
from starlette.testclient import TestClient

from api.submissions import estimates
from core.images import codec
from core.jobs.models import EstimateResponse, JobError, ScaleEstimate
from core.jobs.store import JobStore

RequestEstimate = Callable[..., Any]
SCALES = [
    ScaleEstimate(
        width=181, height=136, iterations=70, seconds=4.0, memory_bytes=2_000_000, tile_px=None
    ),
    ScaleEstimate(
        width=256, height=192, iterations=35, seconds=6.04, memory_bytes=3_000_000, tile_px=512
    ),
]
ESTIMATE = EstimateResponse(device="cpu", network="vgg16", scales=SCALES)
BODY: dict[str, Any] = {
    "content": {"width": 1200, "height": 900},
    "styles": [{"width": 640, "height": 480}],
    "spec": {"size": 256},
}


@pytest.fixture
def request_estimate(client: TestClient, store: JobStore) -> RequestEstimate:
    """POST /v1/estimate while a worker answers; returns the response and the worker's request."""

    def post(body: dict[str, Any], estimate_response: EstimateResponse = ESTIMATE) -> Any:
        store.heartbeat("worker")
        asked: list[Any] = []

        def listen() -> None:
            while not asked:
                if found := store.estimates.next_request():
                    asked.append(found[1])
                    store.estimates.reply(found[0], estimate_response)

        listener = Thread(target=listen)
        listener.start()
        answer = client.post("/v1/estimate", json=body)
        if answer.status_code != 200:
            asked.append(None)
        listener.join()
        return answer, asked[0]

    return post


def test_sizes_are_sufficient_for_an_estimate(
    request_estimate: RequestEstimate, submit: Any
) -> None:
    submit()
    answer, asked = request_estimate(BODY)
    body = answer.json()

    assert answer.status_code == 200
    assert tuple(
        body[name] for name in ("seconds", "memory_bytes", "width", "height", "refused")
    ) == (10.0, 3_000_000, 256, 192, None)
    assert (body["device"], body["network"], body["scales"]) == (
        "cpu",
        "vgg16",
        [step.model_dump() for step in SCALES],
    )
    assert body["queue"] == {
        "position": 1,
        "start_seconds": None,
        "waits_for": None,
        "has_worker": True,
    }
    assert (asked.content, asked.styles, asked.masks, asked.spec["size"]) == (
        (1200, 900),
        [(640, 480)],
        0,
        256,
    )


def test_the_json_of_a_submission_can_be_estimated(
    request_estimate: RequestEstimate, client: TestClient, files: Any
) -> None:
    digests = [
        client.post("/v1/images", files={"image": files[name]}).json()["id"]
        for name in ("content", "style")
    ]
    body = {
        "content": digests[0],
        "styles": digests[1:],
        "masks": digests[:1],
        "init_image": digests[1],
        "spec": {"init": "picture"},
        "priority": "low",
        "reuse": True,
    }
    answer, asked = request_estimate(body)
    assert answer.status_code == 200
    assert (asked.content, asked.styles, asked.masks) == ((96, 72), [(96, 75)], 1)
    assert asked.init == (96, 75)


def test_a_picture_to_start_from_is_judged_as_in_a_submission(
    request_estimate: RequestEstimate, client: TestClient, files: Any, notifications: list[int]
) -> None:
    """Its transparent parts have colors if the result keeps the alpha: white here."""
    drawing = Image.new("RGBA", (96, 96), (255, 255, 255, 0))
    ImageDraw.Draw(drawing).ellipse((10, 10, 80, 80), "white")
    photo, init = (
        client.post("/v1/images", files={"image": image}).json()["id"]
        for image in (files["content"], codec.encode(drawing))
    )
    body: dict[str, Any] = {"content": photo, "styles": [photo], "init_image": init}
    for transparency, statuses in (("keep", (202, 200)), ("flatten", (422, 422))):
        parameters = {"init": "picture", "transparency": transparency, "background": "white"}
        body["spec"] = {"size": 64, **parameters}
        submitted = client.post("/v1/jobs", json=body)
        estimated, _ = request_estimate(body)

        assert (submitted.status_code, estimated.status_code) == statuses


def test_a_job_that_would_fail_has_a_reason(request_estimate: RequestEstimate) -> None:
    refused = EstimateResponse(
        device="cpu", network="vgg16", refused=JobError(code="out_of_memory", message="Smaller.")
    )
    body = request_estimate(BODY, refused)[0].json()
    assert (body["seconds"], body["memory_bytes"], body["scales"]) == (None, None, [])
    assert body["refused"] == {"code": "out_of_memory", "message": "Smaller.", "reason": None}


def test_without_a_worker_there_is_no_estimate(
    client: TestClient, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimates, "WAIT_SECONDS", 0.2)
    answer = client.post("/v1/estimate", json=BODY)
    assert (answer.status_code, answer.json()["code"]) == (503, "no_worker")
    store.heartbeat("stalled")
    answer = client.post("/v1/estimate", json=BODY)
    assert (answer.status_code, answer.json()["code"]) == (503, "no_worker")
    assert "retry-after" in answer.headers


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"content": "sha256:" + "0" * 64}, 404, "image_not_found"),
        ({"content": {"width": 8, "height": 8}}, 422, "bad_input"),
        ({"content": {"width": 3000, "height": 100}}, 422, "bad_image"),
        ({"styles": [{"width": 9000, "height": 9000}]}, 422, "image_too_large"),
        ({"content": {"width": 1200}}, 422, "bad_input"),
        ({"styles": []}, 422, "bad_input"),
        ({"styles": BODY["styles"] * 9}, 422, "bad_input"),
        ({"spec": {"size": 9999}}, 422, "bad_spec"),
        ({"spec": {"style_weights": [0.5, 0.5]}}, 422, "bad_spec"),
        ({"content": {"width": 1200, "height": 62}}, 422, "bad_spec"),
    ],
)
def test_a_bad_request_is_refused_as_a_submission_is(
    client: TestClient, change: dict[str, Any], status: int, code: str
) -> None:
    answer = client.post("/v1/estimate", json=BODY | change)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
