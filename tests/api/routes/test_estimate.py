"""What a job would take, asked before it is there."""

from collections.abc import Callable
from threading import Thread
from typing import Any

import pytest
from starlette.testclient import TestClient

from api.routes import estimate
from core.jobs.models import EstimateResponse, JobError, ScaleEstimate
from core.jobs.store import JobStore

Ask = Callable[..., Any]
STEPS = [
    ScaleEstimate(
        width=181, height=136, iterations=70, seconds=4.0, memory_bytes=2_000_000, tile_px=None
    ),
    ScaleEstimate(
        width=256, height=192, iterations=35, seconds=6.04, memory_bytes=3_000_000, tile_px=512
    ),
]
FORECAST = EstimateResponse(device="cpu", network="vgg16", scales=STEPS)
SKETCH: dict[str, Any] = {
    "content": {"width": 1200, "height": 900},
    "styles": [{"width": 640, "height": 480}],
    "spec": {"size": 256},
}


@pytest.fixture
def ask(client: TestClient, store: JobStore) -> Ask:
    """A worker that gives this answer to one question; what it was asked, and what the client is told."""

    def post(sketch: dict[str, Any], forecast: EstimateResponse = FORECAST) -> Any:
        store.heartbeat("worker")
        asked: list[Any] = []

        def listen() -> None:
            while not asked:
                if found := store.next_estimate_request():
                    asked.append(found[1])
                    store.reply_to_estimate(found[0], forecast)

        listener = Thread(target=listen)
        listener.start()
        answer = client.post("/v1/estimate", json=sketch)
        if answer.status_code != 200:
            asked.append(None)
        listener.join()
        return answer, asked[0]

    return post


def test_sizes_are_enough_to_ask(ask: Ask, submit: Any) -> None:
    submit()
    answer, asked = ask(SKETCH)
    told = answer.json()

    assert answer.status_code == 200
    assert tuple(
        told[name] for name in ("seconds", "memory_bytes", "width", "height", "refused")
    ) == (10.0, 3_000_000, 256, 192, None)
    assert (told["device"], told["network"], told["scales"]) == (
        "cpu",
        "vgg16",
        [step.model_dump() for step in STEPS],
    )
    assert told["queue"] == {"position": 1, "start_seconds": None}
    assert (asked.content, asked.styles, asked.masks, asked.spec["size"]) == (
        (1200, 900),
        [(640, 480)],
        0,
        256,
    )


def test_the_json_of_a_submission_is_a_question(ask: Ask, client: TestClient, files: Any) -> None:
    digests = [
        client.post("/v1/images", files={"image": files[name]}).json()["id"]
        for name in ("content", "style")
    ]
    sketch = {
        "content": digests[0],
        "styles": digests[1:],
        "masks": digests[:1],
        "priority": "low",
        "reuse": True,
    }
    answer, asked = ask(sketch)
    assert answer.status_code == 200
    assert (asked.content, asked.styles, asked.masks) == ((96, 72), [(96, 75)], 1)


def test_what_would_fail_is_told_so(ask: Ask) -> None:
    refused = EstimateResponse(
        device="cpu", network="vgg16", refused=JobError(code="out_of_memory", message="Smaller.")
    )
    told = ask(SKETCH, refused)[0].json()
    assert (told["seconds"], told["memory_bytes"], told["scales"]) == (None, None, [])
    assert told["refused"] == {"code": "out_of_memory", "message": "Smaller."}


def test_without_a_worker_nobody_can_tell(
    client: TestClient, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "WAIT_SECONDS", 0.2)
    answer = client.post("/v1/estimate", json=SKETCH)
    assert (answer.status_code, answer.json()["code"]) == (503, "no_worker")
    store.heartbeat("deaf")
    answer = client.post("/v1/estimate", json=SKETCH)
    assert (answer.status_code, answer.json()["code"]) == (503, "no_worker")
    assert "retry-after" in answer.headers


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"content": "sha256:" + "0" * 64}, 404, "image_not_found"),
        ({"content": {"width": 8, "height": 8}}, 422, "bad_input"),
        ({"content": {"width": 1200}}, 422, "bad_input"),
        ({"styles": []}, 422, "bad_input"),
        ({"styles": SKETCH["styles"] * 9}, 422, "bad_input"),
        ({"spec": {"size": 9999}}, 422, "bad_spec"),
        ({"spec": {"style_weights": [0.5, 0.5]}}, 422, "bad_spec"),
        ({"content": {"width": 12000, "height": 40}}, 422, "bad_spec"),
    ],
)
def test_a_bad_question_is_refused_as_a_submission_is(
    client: TestClient, change: dict[str, Any], status: int, code: str
) -> None:
    answer = client.post("/v1/estimate", json=SKETCH | change)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
