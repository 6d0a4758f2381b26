"""The asynchronous reader, on uvloop as in the API."""

from typing import Any

import pytest
import redis
import uvloop

from core import errors
from core.jobs.async_reader import JobReader
from core.jobs.models import JobInput, new_job_id
from core.jobs.store import JobStore
from core.redis_client import PREFIX


def _create(store: JobStore) -> str:
    return store.create(new_job_id(), JobInput(content="sha256:a", styles=["sha256:b"], spec={})).id


def _abort_connections(reader: JobReader) -> None:
    """Abort the idle connections, as a reset by the network does."""
    for connection in reader._redis.connection_pool._available_connections:
        connection._writer.transport.abort()


@pytest.fixture
def job_id(store: JobStore) -> str:
    for digest in ("sha256:a", "sha256:b"):
        store.reserve(digest)
    return _create(store)


def test_a_damaged_record_hides_no_other(valkey: Any, store: JobStore, job_id: str) -> None:
    other = _create(store)
    with redis.Redis(port=valkey.port) as client:
        client.hset(f"{PREFIX}job:{job_id}", "input", b'{"content\xe3')

    async def read() -> None:
        reader = JobReader(valkey.url)
        seen = await reader.get_if_changed({job_id: None, other: None})
        assert [job and job.id for job in seen.values()] == [None, other]
        await reader.close()

    uvloop.run(read())


def test_an_aborted_connection_is_replaced(valkey: Any, job_id: str) -> None:
    async def read() -> None:
        reader = JobReader(valkey.url)
        for _ in range(2):
            job = (await reader.get_if_changed({job_id: None}))[job_id]
            assert job is not None
            assert job.id == job_id
            _abort_connections(reader)
        await reader.close()

    uvloop.run(read())


def test_a_connection_that_is_aborted_twice_means_an_outage(
    valkey: Any, job_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read() -> None:
        reader = JobReader(valkey.url)

        async def fail(*_: Any) -> None:
            raise RuntimeError("the handler is closed")

        monkeypatch.setattr(reader._redis, "fcall", fail)
        with pytest.raises(errors.StoreUnavailable):
            await reader.get_if_changed({job_id: None})
        await reader.close()

    uvloop.run(read())


def test_a_damaged_record_reads_as_no_job(valkey: Any, job_id: str) -> None:
    async def read() -> None:
        reader = JobReader(valkey.url)
        assert await reader.get_if_changed({job_id: None}) == {job_id: None}
        await reader.close()

    with redis.Redis.from_url(valkey.url) as client:
        client.hset(f"{PREFIX}job:{job_id}", "input", '{"content')
    uvloop.run(read())
