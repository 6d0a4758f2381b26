"""A store that an earlier version has written (commit dfcd409) keeps working.

earlier_store.json has its commands: two owners with ended, queued, running and pinned jobs, frames,
a batch, idempotency keys and uploads.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import redis

from core import errors
from core.jobs.models import Status
from core.jobs.store import JobStore
from core.redis_client import PREFIX

_FILE = Path(__file__).with_name("earlier_store.json")


@pytest.fixture
def ids(valkey: Any) -> dict[str, Any]:
    """Write the earlier store; return the ids of its jobs."""
    earlier = json.loads(_FILE.read_text(encoding="utf-8"))
    with redis.Redis(port=valkey.port) as client, client.pipeline() as pipe:
        for command in earlier["commands"]:
            pipe.execute_command(*command)
        pipe.execute()
    found: dict[str, Any] = earlier["ids"]
    return found


def test_its_jobs_are_listed_run_and_end(driver: Any, store: JobStore, ids: Any) -> None:
    store.rebuild_indexes()
    jobs, _ = store.list_page(limit=50)
    assert [job.id for job in reversed(jobs)] == [
        *(ids[name] for name in ("oldest", "framed", "pinned", "canceled", "failed")),
        *ids["batch_jobs"],
    ]
    assert store.get(ids["running"]).status is Status.RUNNING
    assert len(store.list_frames(ids["framed"])) == 3
    assert store.find_replay("k2", _request_of(store, "k2"), "local") == ids["batch"]

    store.succeed(ids["running"], "t", driver.OUTPUT, driver.MODEL, {})
    assert {driver.claim(token).id for token in "xy"} == {ids["batch_jobs"][1], ids["other"]}
    for job in (ids["batch_jobs"][1], ids["other"]):
        outcomes = [store.succeed(job, token, driver.OUTPUT, driver.MODEL, {}) for token in "xy"]
        assert sorted(outcomes) == ["ok", "stale"]
    assert store.get_batch(ids["batch"]).has_ended
    store.delete_batch(ids["batch"])
    store.delete(ids["other"], ids["key"])
    with pytest.raises(errors.BatchNotFound):
        store.get_batch(ids["batch"])


def _request_of(store: JobStore, key: str) -> str:
    from core.jobs.serialization import sha256_hex

    replay: Any = store._redis.get(f"{PREFIX}replay:local:{sha256_hex(key)}")
    return str(replay.split()[0])


def test_its_ended_jobs_make_room(
    driver: Any, store: JobStore, ids: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.patch_library(monkeypatch, "local MAX_RECORDS = 50000", "local MAX_RECORDS = 7")
    driver.patch_library(monkeypatch, "local MAX_INDEXED = 500", "local MAX_INDEXED = 2")
    with pytest.raises(errors.QuotaExceeded):
        driver.submit()
    store.rebuild_indexes()
    store.rebuild_indexes()  # twice does no harm
    for _ in range(4):
        driver.submit()

    left = {job.id for job in store.list_page(limit=50)[0]}
    assert left.isdisjoint({ids[name] for name in ("oldest", "framed", "canceled", "failed")})
    assert left >= {ids["pinned"], *ids["batch_jobs"]}
    with pytest.raises(errors.QuotaExceeded, match="pinned"):
        driver.submit()


def test_the_frames_of_its_jobs_count(
    driver: Any, store: JobStore, ids: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver.patch_library(monkeypatch, "local MAX_FRAMED = 5000", "local MAX_FRAMED = 1")
    store.rebuild_indexes()
    running = ids["running"]
    store.reserve(driver.PREVIEW, 60)
    store.add_frame(running, "t", driver.frame(1))

    assert store.list_frames(ids["framed"]) == []
    assert len(store.list_frames(running)) == 1


def test_its_uploads_count(store: JobStore, ids: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    store.rebuild_indexes()
    store.rebuild_indexes()
    new = "sha256:" + "9" * 64

    for owner, used in (("local", 90), (ids["key"], 70)):
        with pytest.raises(errors.QuotaExceeded):
            store.reserve(new, 60, owner, size_bytes=1, max_bytes=used)
        store.reserve(new, 60, owner, size_bytes=1, max_bytes=used + 1)
    with pytest.raises(errors.QuotaExceeded):
        store.reserve("sha256:" + "8" * 64, 60, "local", size_bytes=1, max_bytes=1e9, max_uploads=3)
