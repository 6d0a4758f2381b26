"""Every client of a store with Sentinel follows a failover, with real Sentinels.

The campaign `failover` shows the same of a whole service.
"""

import asyncio
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from fastapi.testclient import TestClient
from sentinel_store import SentinelStore

from api.app import create_app
from api.rate_limit import RateLimiter, RequestKind
from api.settings import ApiSettings
from core import errors
from core.auth.api_keys import ApiKeyStore
from core.backup import store_dump
from core.celery_app import QUEUE, make_celery, notify_workers
from core.config import Settings
from core.jobs.async_reader import JobReader
from core.jobs.models import Job, SubmissionContext, new_job_id
from core.jobs.store import JobStore
from core.redis_client import PREFIX, connect

pytestmark = pytest.mark.e2e
REQUEST = "a" * 64  # the hash of a request
Submit = Callable[..., Job]


@pytest.fixture(scope="module")
def sentinel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelStore]:
    with SentinelStore(tmp_path_factory.mktemp("sentinel")) as store:
        yield store


@pytest.fixture
def submit(driver: Any) -> Submit:
    """A function that creates a job, with an idempotency key or without."""

    def run(store: JobStore, key: str | None = None) -> Job:
        for digest in driver.INPUT.digests():
            store.reserve(digest)
        context = SubmissionContext(idempotency_key=key, request_hash=REQUEST)
        return store.create(new_job_id(), driver.INPUT, context=context)

    return run


def _is_safe(call: Callable[[], object]) -> bool:
    """Whether the call succeeds; not if too few replicas are connected at the moment."""
    try:
        return call() is not None
    except errors.StoreUnsafe:
        return False


def test_every_client_follows_a_failover_to_the_primary_and_its_job_is_there(
    sentinel: SentinelStore, submit: Submit, until: Callable[..., None]
) -> None:
    store, keys = JobStore(sentinel.url, replicas=1), ApiKeyStore(sentinel.url)
    celery, limiter = (
        make_celery(sentinel.url, timeout_seconds=2),
        RateLimiter(sentinel.url, 9, 9, 9),
    )
    reader = JobReader(sentinel.url)

    def use_all(job_id: str) -> bool:
        async def use_async_clients() -> Job | None:
            await limiter.count_request("caller", RequestKind.SUBMISSION)
            return (await reader.get_if_changed({job_id: None}))[job_id]

        try:
            read = loop.run_until_complete(use_async_clients())
            keys.create("Ada")
            return notify_workers(celery) and read == store.get(job_id)
        except errors.StoreUnavailable:
            return False

    loop = asyncio.new_event_loop()
    job = submit(store, "before")
    assert use_all(job.id)
    primary = connect(sentinel.url).connection_pool.get_master_address()

    sentinel.kill()
    until(lambda: use_all(job.id), "all clients use the new primary")
    sentinel.restart()

    assert connect(sentinel.url).connection_pool.get_master_address() != primary
    until(
        lambda: _is_safe(lambda: submit(store, "after")),
        "a job is accepted, so functions are there",
    )
    with connect(sentinel.url) as client:
        assert client.llen(QUEUE) >= 2
    with store_dump.connect(sentinel.url) as client:
        assert store_dump.dump_store(client, io.BytesIO()).keys > 2
    loop.run_until_complete(reader.close())
    loop.close()


def test_a_job_is_accepted_only_when_a_replica_has_it(
    sentinel: SentinelStore,
    submit: Submit,
    monkeypatch: pytest.MonkeyPatch,
    until: Callable[..., None],
) -> None:
    """Nor is it by a repeated request. Without a key, nobody can ask again, so it must not run."""
    store = JobStore(sentinel.url, replicas=1)
    queued = store.get_load().queued
    monkeypatch.setattr("core.jobs.store.REPLICATION_MS", 200)
    sentinel.hold_back(0)
    with pytest.raises(errors.StoreUnsafe, match="0 of 1 replicas"):
        submit(store)
    assert store.get_load().queued == queued

    for call in (lambda: submit(store, "key"), lambda: store.find_replay("key", REQUEST)):
        with pytest.raises(errors.StoreUnsafe, match="0 of 1 replicas"):
            call()
    assert store.get_load().queued == queued + 1
    sentinel.link.inject("none")
    until(lambda: _is_safe(lambda: store.find_replay("key", REQUEST)), "the replica has it")


@pytest.mark.parametrize(
    ("replicas", "warned", "settings_check"),
    [
        (0, True, "ok"),
        (1, False, "ok"),
        (2, False, "1 replica is connected and IMPASTO_STORE_REPLICAS is 2"),
    ],
    ids=["0", "1", "2"],
)
def test_readiness_names_a_store_whose_failover_may_lose_jobs(
    sentinel: SentinelStore,
    tmp_path: Path,
    until: Callable[..., None],
    replicas: int,
    warned: bool,
    settings_check: str,
) -> None:
    settings = Settings(redis_url=sentinel.url, data_dir=tmp_path, store_replicas=replicas)
    client = TestClient(create_app(settings, ApiSettings()), base_url="http://localhost")

    def is_as_expected() -> bool:  # not at once: Sentinel may be reconnecting the replica
        answer = client.get("/readyz").json()
        has_warning = any("failover" in warning for warning in answer["warnings"])
        return has_warning is warned and settings_check in answer["checks"]["store_settings"]

    until(is_as_expected, f"readiness has the warning: {warned}", seconds=10)


def test_a_server_with_a_replica_has_the_warning_without_sentinel_too(
    sentinel: SentinelStore,
) -> None:
    """A managed server may replace itself by its replica."""
    host, port = connect(sentinel.url).connection_pool.get_master_address()
    report = JobStore(f"redis://:hunter2@{host}:{port}/0").monitor.check()

    assert [risk for risk in report.risks if "IMPASTO_STORE_REPLICAS" in risk]


def test_the_answer_that_came_too_late_does_not_go_to_the_next_caller(
    sentinel: SentinelStore,
) -> None:
    with connect(sentinel.url) as client:
        with pytest.raises(redis.TimeoutError):
            client.execute_command("BLPOP", f"{PREFIX}nothing", 2)
        assert client.echo("mine") == "mine"


def test_many_threads_lose_no_sentinel(sentinel: SentinelStore) -> None:
    """One that lags behind the others swaps it to the front when it is there already."""
    sentinels = connect(sentinel.url).connection_pool.sentinel_manager
    first, second, third = sentinels.sentinels
    answer = second.sentinel_masters

    def ask_twice() -> Any:
        if sentinels.sentinels[0] is first:
            second.sentinel_masters = answer
            sentinels.discover_master("impasto")
        return answer()

    first.sentinel_masters = lambda: {}
    second.sentinel_masters = ask_twice
    sentinels.discover_master("impasto")

    assert {*sentinels.sentinels} == {first, second, third}
