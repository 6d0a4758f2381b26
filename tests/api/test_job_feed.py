"""Coalesced reads, and a store that does not answer."""

import asyncio
import gc
import time
import tracemalloc
import types
from typing import Any

import pytest
import uvloop

from api.job_feed import MAX_BATCH, JobFeed, JobSnapshot
from core import errors
from core.jobs.models import Job, JobInput
from core.jobs.serialization import parse_job
from core.style.spec import parse_spec


@pytest.fixture
def unreachable_url() -> str:
    """The URL of a store that does not exist."""
    return "redis://127.0.0.1:1/0"


def test_an_unavailable_store_is_asked_once_for_all_pending_requests(
    unreachable_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_sizes = []

    async def read(known: dict[str, Any]) -> Any:
        batch_sizes.append(len(known))
        await asyncio.sleep(0.01)
        raise errors.StoreUnavailable()

    async def get_many() -> list[Any]:
        feed = JobFeed(unreachable_url, 10)
        monkeypatch.setattr(feed._reader, "get_if_changed", read)
        requests = [feed.get(f"job_{number}", "anna") for number in range(3 * MAX_BATCH)]
        try:
            return await asyncio.gather(*requests, return_exceptions=True)
        finally:
            await feed.stop()

    answers = asyncio.run(get_many())
    assert {type(answer) for answer in answers} == {errors.StoreUnavailable}
    assert batch_sizes == [MAX_BATCH]


def test_callers_of_the_same_name_share_one_read_that_starts_after_they_asked(
    unreachable_url: str,
) -> None:
    reads: list[float] = []

    def read() -> int:
        reads.append(time.monotonic())
        return len(reads)

    async def read_often() -> list[int]:
        feed = JobFeed(unreachable_url, 10)
        together = await asyncio.gather(*(feed.share_read("batch", read) for _ in range(50)))
        afterwards = await feed.share_read("batch", read)
        await feed.stop()
        return [*together, afterwards]

    assert asyncio.run(read_often()) == [1] * 50 + [2]


def test_a_subscription_reports_each_change_of_its_jobs_once_until_it_is_closed(
    unreachable_url: str,
) -> None:
    async def follow() -> tuple[list[bool], set[str]]:
        feed = JobFeed(unreachable_url, 2)
        both, second = (feed.subscribe_to_many(ids, "anna") for ids in (["a", "b"], ["b"]))
        with pytest.raises(errors.TooManyStreams):
            feed.subscribe_to_many(["c"], "anna")
        feed._topics["a"].notify()
        changes = [await both.wait(1), await both.wait(0), await second.wait(0)]
        feed._topics["b"].notify()
        changes += [await both.wait(1), await second.wait(1)]
        both.close()
        both.close()
        topics = set(feed._topics)
        feed.subscribe_to_many(["c"], "anna").close()  # `close` makes room for another
        feed.close_subscriptions()
        changes.append(await second.wait(60))
        await feed.stop()
        return changes, topics

    assert asyncio.run(follow()) == ([True, False, False, True, True, False], {"b"})


def test_a_change_that_comes_as_a_wait_ends_does_not_end_the_stream(unreachable_url: str) -> None:
    """The timer of the wait is due then, and uvloop's own class of timers does not hold it."""

    async def run() -> list[bool]:
        feed = JobFeed(unreachable_url, 10)
        subscription = feed.subscribe_to_many([], "anna")
        changes = []
        for _ in range(3):
            subscription._set_timer(asyncio.get_running_loop().time())
            subscription.notify()
            changes.append(await subscription.wait(10))
        changes.append(await subscription.wait(0.01))
        subscription.close()
        await feed.stop()
        return changes

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(run()) == [True, True, True, False]


def test_a_request_never_gets_the_result_of_a_read_that_began_before_it(
    unreachable_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the client could miss a change that has been reported to it."""

    async def get_twice() -> list[int]:
        feed, started = JobFeed(unreachable_url, 10), 0
        has_begun, may_end = asyncio.Event(), asyncio.Event()

        async def read(known: dict[str, Any]) -> Any:
            nonlocal started
            started += 1
            job = types.SimpleNamespace(owner="anna", version=started)
            has_begun.set()
            await may_end.wait()
            return dict.fromkeys(known, job)

        monkeypatch.setattr(feed._reader, "get_if_changed", read)
        first = asyncio.create_task(feed.get("job_1", "anna"))
        await has_begun.wait()
        others = [asyncio.create_task(feed.get("job_1", "anna")) for _ in range(3)]
        await asyncio.sleep(0)
        others[0].cancel()  # must not cancel the read for the others
        await asyncio.sleep(0)
        may_end.set()
        snapshots = await asyncio.wait_for(asyncio.gather(first, *others[1:]), 5)
        await feed.stop()
        return [snapshot.job.version for snapshot in snapshots]

    assert asyncio.run(get_twice()) == [1, 2, 2]


def test_a_job_that_is_followed_takes_little_memory() -> None:
    """Thousands are followed at the same time."""
    spec = parse_spec({"size": 512}).for_pictures(1).model_dump()
    records = []
    for number in range(200):
        digests = [f"sha256:{number:063d}{last}" for last in range(2)]
        job_input = JobInput(content=digests[0], styles=digests[1:], spec=spec)
        fields = {
            **dict.fromkeys(("created_at", "started_at", "claimed_at"), "1800000000000"),
            **{"id": f"job_{number:026d}", "status": "running", "version": "3", "attempt": "1"},
            **{"priority": "normal", "owner": "anna", "rank": "-1"},
            "input": job_input.model_dump_json(),
            "progress": '{"value":0.5,"scale":1,"scales":3,"iteration":7,"iterations":48,'
            '"iterations_per_second":2.5,"seconds_left":9.5,"loss":{"content":1.5,"total":2.5}}',
        }
        records.append(fields)
    snapshots = [JobSnapshot(_parse(records[0]))]
    gc.collect()
    tracemalloc.start()
    try:
        snapshots += [JobSnapshot(_parse(fields)) for fields in records[1:]]
        for snapshot in snapshots[1:]:
            assert b'"running"' in snapshot.serialize()
        gc.collect()
        used_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert used_bytes / 199 < 4000
    assert snapshots[7].job.input.spec == spec


def _parse(fields: dict[str, Any]) -> Job:
    job = parse_job(fields)
    assert job is not None
    return job
