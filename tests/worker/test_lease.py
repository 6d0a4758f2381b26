"""The lease beside the painting, on a real Valkey."""

from collections.abc import Callable
from typing import Any

import pytest
import redis
from PIL import Image

from core import errors
from core.jobs.models import Job, JobInput, JobProgress, Status, new_job_id
from core.jobs.store import JobStore
from core.redis_client import PREFIX
from core.style.spec import StyleSpec
from worker import lease
from worker.lease import Lease

INPUT = JobInput(
    content="sha256:" + "a" * 64, styles=["sha256:" + "b" * 64], spec=StyleSpec().model_dump()
)
PREVIEW = Image.new("RGB", (4, 3))


def _progress(iteration: int) -> JobProgress:
    return JobProgress(
        value=0.1,
        scale=1,
        scales=1,
        iteration=iteration,
        iterations=9,
        iterations_per_second=1,
        seconds_left=1,
        loss={},
    )


def _hold(store: JobStore) -> None:
    for digest in (INPUT.content, *INPUT.styles):
        store.reserve(digest)


@pytest.fixture(autouse=True)
def _quick_beat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)


@pytest.fixture
def job(store: JobStore) -> Job:
    _hold(store)
    store.create(new_job_id(), INPUT)
    claimed = store.claim("t", "worker")
    assert claimed is not None
    return claimed


def _keep(kept: list[str]) -> Callable[[Image.Image], str]:
    def keep(_: Image.Image) -> str:
        kept.append(f"sha256:{len(kept):064d}")
        return kept[-1]

    return keep


def test_the_newest_progress_and_preview_reach_the_store(
    store: JobStore, job: Job, until: Callable[..., None]
) -> None:
    kept: list[str] = []
    with Lease(store, job.id, "t", _keep(kept)) as held:
        held.report(_progress(1), PREVIEW)
        held.report(_progress(2))
        until(lambda: store.get(job.id).progress == _progress(2), "progress 2")

    assert kept == ["sha256:" + "0" * 64]
    assert store.get(job.id).preview == kept[0]


def test_the_lease_is_renewed_until_it_is_left(valkey: Any, until: Callable[..., None]) -> None:
    store = JobStore(valkey.url, lease_seconds=0.5)
    _hold(store)
    store.create(new_job_id(), INPUT)
    job = store.claim("t", "worker")
    assert job is not None
    client = redis.Redis.from_url(valkey.url)
    with Lease(store, job.id, "t", _keep([])) as held:
        ends = client.zscore(PREFIX + "leases", job.id)
        until(
            lambda: client.zscore(PREFIX + "leases", job.id) > ends + 500,
            "a lease longer than the first",
        )
        assert store.reap_expired_leases() == (0, 0)
        assert not held.should_stop()

    until(lambda: store.reap_expired_leases() == (1, 0), "the lease runs out")
    client.close()
    store.close()


def test_a_cancel_arrives_at_the_next_beat(
    store: JobStore, job: Job, until: Callable[..., None]
) -> None:
    with Lease(store, job.id, "t", _keep([])) as held:
        assert not held.should_stop()
        store.cancel(job.id)
        until(held.should_stop, "told to stop")


def test_a_lost_lease_interrupts(store: JobStore, job: Job, until: Callable[..., None]) -> None:
    def lost() -> bool:
        try:
            held.should_stop()
        except errors.LeaseLost:
            return True
        return False

    with Lease(store, job.id, "t", _keep([])) as held:
        store.delete(job.id)
        until(lost, "the lease is lost")


def test_the_painting_goes_on_while_the_store_is_away(
    own_valkey: Any, until: Callable[..., None]
) -> None:
    store = JobStore(own_valkey.url)
    _hold(store)
    store.create(new_job_id(), INPUT)
    job = store.claim("t", "worker")
    assert job is not None
    with Lease(store, job.id, "t", _keep([])) as held:
        own_valkey.kill()
        held.report(_progress(1), PREVIEW)
        assert not held.should_stop()
        own_valkey.start()
        held.report(_progress(2))
        until(lambda: store.get(job.id).progress == _progress(2), "progress after the outage")
        assert not held.should_stop()

    assert store.get(job.id).status is Status.RUNNING
    store.close()


@pytest.mark.parametrize("trouble", [errors.StorageFull(), RuntimeError("a mistake of ours")])
def test_a_preview_that_cannot_be_kept_costs_only_itself(
    store: JobStore, job: Job, until: Callable[..., None], trouble: Exception
) -> None:
    def full(_: Image.Image) -> str:
        raise trouble

    with Lease(store, job.id, "t", full) as held:
        held.report(_progress(1), PREVIEW)
        held.report(_progress(2))
        until(lambda: held._news is None, "the beat took it")
        held.report(_progress(3))
        until(lambda: store.get(job.id).progress == _progress(3), "progress 3")


def test_a_mistake_while_it_sleeps_does_not_end_the_lease(
    store: JobStore, job: Job, until: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> bool:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(store, "wait_for_signal", broken)
    with Lease(store, job.id, "t", _keep([])) as held:
        held.report(_progress(1))
        until(lambda: store.get(job.id).progress == _progress(1), "progress")
        store.cancel(job.id)
        until(held.should_stop, "told to stop")
