"""Estimate requests, from a caller to a worker and back."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import redis

from core.jobs.models import EstimateRequest, EstimateResponse
from core.jobs.store import JobStore
from core.redis_client import PREFIX

RESPONSE = EstimateResponse(device="cpu", network="vgg16")


def _request(width: int) -> EstimateRequest:
    return EstimateRequest(content=(width, 48), styles=[(64, 64)], masks=0, spec={})


def test_each_caller_gets_the_answer_to_its_own_request(store: JobStore) -> None:
    with ThreadPoolExecutor(2) as callers:
        asked = [callers.submit(store.estimates.request, _request(width), 5) for width in (64, 65)]
        requests: list[tuple[str, EstimateRequest]] = []
        while len(requests) < 2:
            requests += [found] if (found := store.estimates.next_request()) else []
        for name, request in requests:
            device = f"of {request.content[0]} px"
            store.estimates.reply(name, RESPONSE.model_copy(update={"device": device}))
        answers = [future.result() for future in asked]

    assert [answer and answer.device for answer in answers] == ["of 64 px", "of 65 px"]


def test_the_oldest_request_comes_first_and_late_ones_drop_the_oldest(
    store: JobStore, valkey: Any
) -> None:
    for width in range(102):
        assert store.estimates.request(_request(100 + width), 0) is None
    with redis.Redis.from_url(valkey.url) as client:
        assert client.llen(f"{PREFIX}estimate_requests") == 100
        assert 8_000 < client.pttl(f"{PREFIX}estimate_requests") <= 10_000

    widths = [request.content[0] for _, request in iter(store.estimates.next_request, None)]
    assert widths == list(range(102, 202))


def test_without_an_answer_the_caller_gives_up_after_its_timeout(store: JobStore) -> None:
    started = time.monotonic()

    assert store.estimates.request(_request(64), 0.7) is None
    assert 0.7 <= time.monotonic() - started < 1.4


def test_an_answer_that_nobody_takes_is_deleted(store: JobStore, valkey: Any) -> None:
    store.estimates.reply("name", RESPONSE)

    with redis.Redis.from_url(valkey.url) as client:
        assert 8_000 < client.pttl(f"{PREFIX}estimate_reply:name") <= 10_000
