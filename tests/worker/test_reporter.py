"""The reporter's thread, on a real Valkey."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from PIL import Image

from core import errors
from core.jobs.models import Job, JobProgress, Status
from core.jobs.store import JobStore
from worker import lease, reporter
from worker.lease import Lease
from worker.reporter import Reporter

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


@pytest.fixture(autouse=True)
def _report_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(reporter, "REPORT_SECONDS", 0.05)


@pytest.fixture
def renewed(store: JobStore, job: Job) -> Iterator[Lease]:
    with Lease(store, job.id, "t") as entered:
        yield entered


def _no_preview(_: Image.Image) -> str:
    raise AssertionError("no preview is expected")


def test_the_newest_progress_and_preview_reach_the_store(
    store: JobStore, job: Job, renewed: Lease, until: Callable[..., None]
) -> None:
    written: list[str] = []

    def write(_: Image.Image) -> str:
        written.append(f"sha256:{len(written):064d}")
        return written[-1]

    with Reporter(store, job.id, "t", renewed, write) as reports:
        reports.report(_progress(1), PREVIEW)
        reports.report(_progress(2))
        until(lambda: store.get(job.id).progress == _progress(2), "progress 2")

    assert written == ["sha256:" + "0" * 64]
    assert store.get(job.id).preview == written[0]


def test_the_first_progress_is_reported_at_once(
    store: JobStore,
    job: Job,
    renewed: Lease,
    until: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reporter, "REPORT_SECONDS", 60)
    with Reporter(store, job.id, "t", renewed, _no_preview) as reports:
        reports.report(_progress(1))
        until(lambda: store.get(job.id).progress == _progress(1), "progress 1", 5)


def test_each_preview_is_reported_at_once(
    store: JobStore,
    job: Job,
    renewed: Lease,
    until: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reporter, "REPORT_SECONDS", 60)
    digests = iter([f"sha256:{number:064d}" for number in range(2)])
    with Reporter(store, job.id, "t", renewed, lambda _: next(digests)) as reports:
        for number in range(2):
            reports.report(_progress(number), PREVIEW)
            until(
                lambda count=number: (store.get(job.id).preview or "")[-1:] == str(count), "it", 5
            )


def test_progress_is_reported_after_an_outage_of_the_store(
    own_valkey: Any, until: Callable[..., None], claim_job: Callable[[JobStore], Job]
) -> None:
    store = JobStore(own_valkey.url)
    job = claim_job(store)
    with (
        Lease(store, job.id, "t") as entered,
        Reporter(store, job.id, "t", entered, lambda _: "sha256:" + "0" * 64) as reports,
    ):
        own_valkey.kill()
        reports.report(_progress(1), PREVIEW)
        assert not entered.has_to_stop()
        own_valkey.start()
        reports.report(_progress(2))
        until(lambda: store.get(job.id).progress == _progress(2), "progress after the outage")
        assert not entered.has_to_stop()

    assert store.get(job.id).status is Status.RUNNING
    store.close()


@pytest.mark.parametrize("error", [errors.StorageFull(), RuntimeError("a bug")])
def test_a_preview_that_cannot_be_written_costs_only_itself(
    store: JobStore, job: Job, renewed: Lease, until: Callable[..., None], error: Exception
) -> None:
    def fail(_: Image.Image) -> str:
        raise error

    with Reporter(store, job.id, "t", renewed, fail) as reports:
        reports.report(_progress(1), PREVIEW)
        reports.report(_progress(2))
        until(lambda: reports._pending is None, "the report was tried")
        reports.report(_progress(3))
        until(lambda: store.get(job.id).progress == _progress(3), "progress 3")


def test_a_refused_report_marks_the_lease_as_lost(
    store: JobStore, job: Job, until: Callable[..., None]
) -> None:
    never_renewed = Lease(store, job.id, "t")
    store.delete(job.id)
    with Reporter(store, job.id, "t", never_renewed, _no_preview) as reports:
        reports.report(_progress(1))
        until(lambda: never_renewed.is_lost, "the lease is lost")


def test_urgent_calls_come_first_and_surplus_deferred_calls_are_dropped(
    store: JobStore, job: Job, renewed: Lease, until: Callable[..., None]
) -> None:
    calls: list[str] = []
    reports = Reporter(store, job.id, "t", renewed, _no_preview)
    for number in range(reporter.MAX_DEFERRED + 1):
        reports.defer(lambda number=number: calls.append(f"deferred {number}"))
    reports.call_soon(lambda: calls.append("urgent"))
    with reports:
        until(lambda: len(calls) > reporter.MAX_DEFERRED, "the calls")

    assert calls == ["urgent", *(f"deferred {n}" for n in range(reporter.MAX_DEFERRED))]
