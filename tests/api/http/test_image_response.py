"""The cache of converted pictures, and the limit of conversions at the same time."""

from functools import partial

import anyio
import pytest

from api.http import image_response
from api.http.image_response import BytesCache
from core import errors


def test_the_cache_keeps_the_most_recently_used() -> None:
    cache = BytesCache(10)
    for tag, size in (("a", 4), ("b", 4), ("a", 5)):
        cache.put(tag, b"x" * size)
    assert cache.get("b") == b"x" * 4
    cache.put("c", b"x" * 4)

    assert [cache.get(tag) for tag in "abc"] == [None, b"x" * 4, b"x" * 4]
    cache.put("d", b"x" * 11)
    assert [cache.get(tag) for tag in "abcd"] == [None] * 4


def test_few_conversions_run_at_once_and_a_request_that_waits_too_long_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(image_response, "_conversion_slots", anyio.CapacityLimiter(1))
    monkeypatch.setattr(image_response, "_cache", BytesCache(100))
    monkeypatch.setattr(image_response, "WAIT_SECONDS", 0.2)
    refused: list[BaseException] = []

    async def ask(tag: str, done: anyio.Event | None = None) -> None:
        try:
            assert (
                await image_response.render_cached(tag, partial(_render, tag, done)) == tag.encode()
            )
        except errors.Unavailable as error:
            refused.append(error)

    def _render(tag: str, done: anyio.Event | None) -> bytes:
        if done is not None:
            anyio.from_thread.run(done.wait)
        return tag.encode()

    async def run() -> None:
        done = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, "slow", done)
            await anyio.wait_all_tasks_blocked()
            await ask("other")
            assert len(refused) == 1
            done.set()
        await ask("other")

    anyio.run(run)
    assert len(refused) == 1
    assert image_response._cache.get("slow") == b"slow"
