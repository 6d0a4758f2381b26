"""The frames of a run."""

from typing import Any

import pytest
import redis

from core import errors
from core.jobs.models import LOCAL_OWNER, Frame, Job
from core.jobs.store import JobStore
from core.redis_client import PREFIX


def _add_frame(driver: Any, job: Job, iteration: int, token: str = "t") -> int:
    digest = f"sha256:{iteration:064}"
    driver.store.reserve(digest, 60)
    frame = Frame(index=0, iteration=iteration, scale=1, seconds=iteration / 4, digest=digest)
    return int(driver.store.add_frame(job.id, token, frame))


def _used_digests(url: str) -> set[bytes]:
    with redis.Redis.from_url(url) as client:
        return {
            digest for digest in client.hkeys(PREFIX + "refs") if digest.startswith(b"sha256:00")
        }


def test_too_many_frames_are_thinned_out_and_keep_their_index(
    driver: Any, store: JobStore, valkey: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("core.jobs.store.MAX_FRAMES", 4)
    job = driver.create()
    driver.claim()
    thinnings = [_add_frame(driver, job, iteration) for iteration in range(8)]

    assert thinnings == [0, 0, 0, 0, 1, 1, 2, 2]
    assert [(frame.index, frame.iteration) for frame in store.list_frames(job.id)] == [
        (0, 0),
        (4, 4),
        (6, 6),
        (7, 7),
    ]
    assert _used_digests(valkey.url) == {f"sha256:{number:064}".encode() for number in (0, 4, 6, 7)}
    assert ((seen := store.get(job.id)).frames, seen.frame_thinnings) == (8, 2)


def test_an_iteration_that_is_computed_again_has_one_frame(
    driver: Any, store: JobStore, valkey: Any
) -> None:
    """The next attempt resumes from a checkpoint that is older than the newest frame."""
    job = driver.create()
    driver.claim()
    store.save_checkpoint(job.id, "t", "c")
    for iteration in (1, 5, 9):
        _add_frame(driver, job, iteration)
    store.release(job.id, "t")
    driver.claim("u")
    _add_frame(driver, job, 5, "u")

    assert [frame.iteration for frame in store.list_frames(job.id)] == [1, 5]
    assert len(_used_digests(valkey.url)) == 2


@pytest.mark.parametrize("reason", ["deleted", "expired", "restarted"])
def test_frames_are_deleted_with_their_job(
    driver: Any, store: JobStore, valkey: Any, reason: str
) -> None:
    job = driver.create()
    driver.claim()
    _add_frame(driver, job, 1)
    if reason == "deleted":
        store.delete(job.id)
    elif reason == "restarted":
        store.release(job.id, "t")
    else:
        store.fail(job.id, "t", driver.DIVERGED)
        with redis.Redis.from_url(valkey.url) as client:
            client.zadd(PREFIX + "expiry", {job.id: 1})
        assert store.expire_due(1000) == 1

    assert _used_digests(valkey.url) == set()
    with redis.Redis.from_url(valkey.url) as client:
        assert not client.exists(f"{PREFIX}frames:{job.id}")


def test_a_stale_token_adds_no_frame_and_another_owner_sees_none(
    driver: Any, store: JobStore
) -> None:
    job = driver.create()
    driver.claim()
    _add_frame(driver, job, 1)

    assert _add_frame(driver, job, 2, "stale") == -1
    assert len(store.list_frames(job.id, LOCAL_OWNER)) == 1
    with pytest.raises(errors.JobNotFound):
        store.list_frames(job.id, "anna")
