"""Wherever work waits, it waits in turns, by caller."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from PIL import Image
from starlette.testclient import TestClient

from api.fair_queue import FairQueue, Waiter
from api.http import image_response
from api.submissions import estimates, pictures
from core.images import codec
from core.jobs.models import Frame
from core.jobs.store import JobStore
from core.storage.blobs import Blobs
from core.style.limits import JobLimits

Turns = list[tuple[FairQueue, str]]
SIZE = {"width": 1200, "height": 900}
ESTIMATE = {"content": SIZE, "styles": [SIZE], "spec": {"size": 256}}


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> Turns:
    """The queues and callers of all turns. No picture counts as known."""
    monkeypatch.setattr(pictures, "_find_inspection", lambda *_: None)
    seen: Turns = []
    stock = FairQueue.turn

    @asynccontextmanager
    async def record(queue: FairQueue, waiter: Waiter) -> AsyncIterator[None]:
        seen.append((queue, waiter.caller))
        async with stock(queue, waiter):
            yield

    monkeypatch.setattr(FairQueue, "turn", record)
    return seen


@pytest.fixture(autouse=True)
def _anna(switch_caller: Callable[[str], None]) -> None:
    switch_caller("anna")


def _callers(turns: Turns, queue: FairQueue) -> list[str]:
    return [caller.strip() for used, caller in turns if used is queue]


def test_every_way_of_sending_a_picture_takes_a_turn(
    client: TestClient, submit: Any, files: dict[str, Any], turns: Turns
) -> None:
    digest = client.post("/v1/images", files={"image": files["content"]}).json()["id"]
    job = submit().json()
    client.post(f"{job['links']['self']}/cancel")
    batch = {"contents": [digest], "styles": [digest], "spec": {"size": 64}}
    counts = [len(turns)]
    for send in (
        lambda: client.post(f"{job['links']['self']}/retry"),
        lambda: client.post("/v1/batches", json=batch),
        lambda: client.post("/v1/estimate", json=ESTIMATE | {"content": digest}),
    ):
        send()
        counts.append(len(turns))

    assert counts == [3, 5, 7, 8]
    assert _callers(turns, pictures.decoders) == ["anna"] * 8


def test_the_update_of_a_mask_takes_a_turn(
    client: TestClient, files: dict[str, Any], notifications: list[int], turns: Turns
) -> None:
    mask = ("m", codec.encode(Image.new("RGB", (40, 40), "white")))
    parts = [("content", files["content"]), *[("style", files["style"]), ("mask", mask)] * 2]
    job = client.post("/v1/jobs", files=parts, data={"style_weights": "1,0"}).json()
    turns.clear()
    client.patch(job["links"]["self"], json={"spec": {"style_weights": [1, 1]}})

    assert _callers(turns, pictures.decoders) == ["anna"]


def test_results_small_copies_and_time_lapses_take_turns(
    client: TestClient,
    submit: Any,
    run_job: Callable[[Image.Image], bytes],
    store: JobStore,
    blobs: Blobs,
    turns: Turns,
) -> None:
    path = f"/v1/jobs/{submit().json()['id']}"
    run_job(Image.new("RGB", (96, 72)))
    other = f"/v1/jobs/{submit(seed='1').json()['id']}"
    store.claim("other", "worker")
    digest = blobs.put(codec.encode(Image.new("RGB", (33, 24), "green"), "jpeg"))
    store.reserve(digest)
    frame = Frame(index=0, iteration=0, scale=1, seconds=0, digest=digest)
    store.add_frame(other.rpartition("/")[2], "other", frame)
    photo = f"/v1/images/{store.get(path.rpartition('/')[2]).input.content}"
    addresses = (f"{path}/result?width=51", f"{other}/timelapse", f"{photo}?width=51")

    assert [client.get(address).status_code for address in addresses] == [200, 200, 200]
    assert _callers(turns, image_response._conversions) == ["anna"] * 3


def test_estimates_take_turns(
    app: FastAPI,
    client: TestClient,
    submit: Any,
    store: JobStore,
    turns: Turns,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that are requested, and those of a submission that may be too long."""
    monkeypatch.setattr(estimates, "WAIT_SECONDS", 0.1)
    app.state.job_limits = JobLimits(seconds=60)
    store.heartbeat("worker")
    answers = [client.post("/v1/estimate", json=ESTIMATE), submit(size="256", iterations="400")]

    assert [answer.status_code for answer in answers] == [503, 202]
    assert _callers(turns, estimates._estimates) == ["anna"] * 2


def test_a_caller_has_one_estimate_at_a_worker() -> None:
    """A worker answers in the order of the requests."""
    assert estimates._estimates._slots_per_caller == 1
