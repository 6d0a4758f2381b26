"""The cache of converted pictures, and the limit of conversions at the same time."""

from functools import partial

import anyio
import pytest

from api.fair_queue import FairQueue, Waiter
from api.http import image_response
from core import errors

WAITER = Waiter("caller", anyio.sleep_forever)  # type: ignore[arg-type]


def test_the_cache_keeps_the_most_recently_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_response, "_cache", image_response.create_cache(10))
    rendered: list[str] = []

    async def get(tag: str, size: int) -> None:
        def render() -> bytes:
            rendered.append(tag)
            return b"x" * size

        assert await image_response.render_cached(tag, render, WAITER) == b"x" * size

    async def run() -> None:
        for tag, size in (("a", 4), ("b", 4), ("a", 4), ("c", 5), ("a", 4), ("b", 4)):
            await get(tag, size)
        assert rendered == ["a", "b", "c", "b"], "c replaces b, which was not used for longer"
        for _ in range(2):
            await get("d", 11)
        assert rendered[4:] == ["d", "d"], "a picture above the limit is not cached"
        await get("b", 4)
        assert len(rendered) == 6

    anyio.run(run)


def test_few_conversions_run_at_once_and_a_request_that_waits_too_long_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(image_response, "_conversions", FairQueue("pictures", 1, wait_seconds=0.2))
    monkeypatch.setattr(image_response, "_cache", image_response.create_cache(100))
    refused: list[BaseException] = []

    async def ask(tag: str, done: anyio.Event | None = None) -> None:
        try:
            render = partial(_render, tag, done)
            assert await image_response.render_cached(tag, render, WAITER) == tag.encode()
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
