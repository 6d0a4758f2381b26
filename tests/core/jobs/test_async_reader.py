"""The asynchronous reader, on the event loop that the API has."""

from typing import Any

import pytest
import redis
import uvloop

from core import errors
from core.jobs.async_reader import JobReader
from core.jobs.models import JobInput, new_job_id
from core.jobs.store import JobStore
from core.redis_client import PREFIX


def _job(store: JobStore) -> str:
    return store.create(new_job_id(), JobInput(content="sha256:a", styles=["sha256:b"], spec={})).id


def _cut(reader: JobReader) -> None:
    """As a reset does, between two estimate_requests."""
    for line in reader._redis.connection_pool._available_connections:
        line._writer.transport.abort()


@pytest.fixture
def job_id(store: JobStore) -> str:
    for digest in ("sha256:a", "sha256:b"):
        store.reserve(digest)
    return _job(store)


def test_a_record_that_the_disk_has_damaged_hides_no_other(
    valkey: Any, store: JobStore, job_id: str
) -> None:
    other = _job(store)
    with redis.Redis(port=valkey.port) as client:
        client.hset(f"{PREFIX}job:{job_id}", "input", b'{"content\xe3')

    async def look() -> None:
        reader = JobReader(valkey.url)
        seen = await reader.get_if_changed({job_id: None, other: None})
        assert [job and job.id for job in seen.values()] == [None, other]
        await reader.close()

    uvloop.run(look())


def test_a_line_that_was_cut_is_laid_again(valkey: Any, job_id: str) -> None:
    async def look() -> None:
        reader = JobReader(valkey.url)
        for _ in range(2):
            job = (await reader.get_if_changed({job_id: None}))[job_id]
            assert job is not None
            assert job.id == job_id
            _cut(reader)
        await reader.close()

    uvloop.run(look())


def test_a_line_that_is_cut_again_and_again_is_a_store_that_is_away(
    valkey: Any, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def look() -> None:
        reader = JobReader(valkey.url)

        async def cut(*_: Any) -> None:
            raise RuntimeError("the handler is closed")

        monkeypatch.setattr(reader._redis, "fcall", cut)
        with pytest.raises(errors.StoreUnavailable):
            await reader.get_if_changed({job_id: None})
        await reader.close()

    uvloop.run(look())


def test_a_damaged_record_is_no_job(valkey: Any, job_id: str) -> None:
    async def look() -> None:
        reader = JobReader(valkey.url)
        assert await reader.get_if_changed({job_id: None}) == {job_id: None}
        await reader.close()

    with redis.Redis.from_url(valkey.url) as client:
        client.hset(f"{PREFIX}job:{job_id}", "input", '{"content')
    uvloop.run(look())
