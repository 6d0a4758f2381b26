"""What many ask at once, and a store that does not answer."""

import asyncio
import time
from typing import Any

import pytest

from api.job_feed import MAX_BATCH, JobFeed
from core import errors


@pytest.fixture
def nowhere() -> str:
    """A store that is not there."""
    return "redis://127.0.0.1:1/0"


def test_a_store_that_is_away_is_asked_once_for_all_who_wait(
    nowhere: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = []

    async def read(known: dict[str, Any]) -> Any:
        reads.append(len(known))
        await asyncio.sleep(0.01)
        raise errors.StoreUnavailable()

    async def ask() -> list[Any]:
        lookout = JobFeed(nowhere, 10)
        monkeypatch.setattr(lookout._reader, "get_if_changed", read)
        asked = [lookout.get(f"job_{number}", "anna") for number in range(3 * MAX_BATCH)]
        try:
            return await asyncio.gather(*asked, return_exceptions=True)
        finally:
            await lookout.stop()

    answers = asyncio.run(ask())
    assert {type(answer) for answer in answers} == {errors.StoreUnavailable}
    assert reads == [MAX_BATCH]


def test_a_crowd_that_wants_the_same_reads_once_and_each_sees_what_came_after_they_asked(
    nowhere: str,
) -> None:
    reads: list[float] = []

    def read() -> int:
        reads.append(time.monotonic())
        return len(reads)

    async def ask() -> list[int]:
        lookout = JobFeed(nowhere, 10)
        crowd = await asyncio.gather(*(lookout.share("batch", read) for _ in range(50)))
        later = await lookout.share("batch", read)
        await lookout.stop()
        return [*crowd, later]

    assert asyncio.run(ask()) == [1] * 50 + [2]
