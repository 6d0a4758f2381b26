"""The monitors in the worker's parent process."""

import time

import pytest

from core import errors
from core.jobs.models import JobInput, new_job_id
from core.jobs.store import JobStore
from core.style.spec import StyleSpec
from worker import process, supervisor
from worker.process import process_name
from worker.supervisor import ChildMonitor, DrainMonitor, StallMonitor


class FakeStore:
    """The two methods of a store that the monitors call."""

    def __init__(self) -> None:
        self.requeued: list[str] = []
        self.idle: set[int] = set()
        self.unavailable = False
        self.jobs_per_worker = 1

    def requeue_jobs_of(self, worker: str) -> int:
        if self.unavailable:
            raise errors.StoreUnavailable()
        self.requeued.append(worker)
        return self.jobs_per_worker

    def is_idle_with_backlog(self, worker: str) -> bool:
        if self.unavailable:
            raise errors.StoreUnavailable()
        return worker in {process_name(pid) for pid in self.idle}


def test_an_exited_child_is_requeued_once_and_notified_for() -> None:
    store, notified, alive = FakeStore(), [], {1, 2}
    # Type: ignore[arg-type].
    monitor = ChildMonitor(store, lambda: notified.append(1), lambda: alive)
    monitor.poll()
    alive -= {1}
    monitor.poll()
    monitor.poll()

    assert (store.requeued, notified) == ([process_name(1)], [1])


@pytest.mark.parametrize(("jobs", "notifications"), [(0, 0), (2, 1)])
def test_an_exited_child_is_notified_for_once_if_it_had_jobs(jobs: int, notifications: int) -> None:
    store, notified, alive = FakeStore(), list[int](), {1}
    store.jobs_per_worker = jobs
    monitor = ChildMonitor(store, lambda: notified.append(1), lambda: alive)  # type: ignore[arg-type]
    monitor.poll()
    alive -= {1}
    monitor.poll()

    assert len(notified) == notifications


def test_while_the_store_is_unavailable_requeuing_is_retried() -> None:
    store, alive = FakeStore(), {1}
    monitor = ChildMonitor(store, lambda: None, lambda: alive)  # type: ignore[arg-type]
    monitor.poll()
    alive -= {1}
    store.unavailable = True
    with pytest.raises(errors.StoreUnavailable):
        monitor.poll()
    store.unavailable = False
    monitor.poll()

    assert store.requeued == [process_name(1)]


def test_a_worker_that_stays_idle_with_a_backlog_is_notified_once_and_then_stalled() -> None:
    store, notified = FakeStore(), list[int]()
    monitor = StallMonitor(store, lambda: notified.append(1), lambda: [1])  # type: ignore[arg-type]
    store.idle = {1}
    for _ in range(int(supervisor.CHILD_START_SECONDS)):
        monitor.poll(1)
    assert not notified, "the child may still be starting"
    for _ in range(int(supervisor.STALL_SECONDS)):
        monitor.poll(1)
    assert (notified, monitor.is_stalled) == ([1], False)
    monitor.poll(1)

    assert (notified, monitor.is_stalled) == ([1], True)


@pytest.mark.parametrize("reason", ["it runs a job", "another child has started"])
def test_a_worker_that_runs_a_job_now_and_then_is_not_stalled(reason: str) -> None:
    store, alive = FakeStore(), [1]
    monitor = StallMonitor(store, lambda: None, lambda: alive)  # type: ignore[arg-type]
    for number in range(1, 400):
        store.idle = {alive[0]} if number % 50 or reason != "it runs a job" else set()
        if number % 150 == 0 and reason != "it runs a job":
            alive = [number]
        monitor.poll(1)
        assert not monitor.is_stalled


def _drain(store: JobStore, running: set[int]) -> tuple[DrainMonitor, list[str]]:
    """A monitor of the worker `w` with the child 1, and what it has done."""
    done: list[str] = []
    store.is_running = lambda worker: worker in map(process_name, running)  # type: ignore[method-assign]
    return DrainMonitor(
        store, "w", lambda: [1], lambda: done.append("release"), lambda code: done.append(f"{code}")
    ), done


def test_a_drained_worker_stops_after_its_job(store: JobStore) -> None:
    running = {1}
    monitor, done = _drain(store, running)
    assert not monitor.poll()
    store.suspensions.suspend("w", "draining")
    assert not monitor.poll()
    running.clear()
    assert monitor.poll()

    assert done == [f"{process.DRAINED}"]


def test_a_drain_with_release_asks_for_it_once(store: JobStore) -> None:
    running = {1}
    monitor, done = _drain(store, running)
    monitor.poll()
    store.suspensions.suspend("w", "draining", release=True)
    assert [monitor.poll(), monitor.poll()] == [False, False]
    running.clear()
    assert monitor.poll()

    assert done == ["release", f"{process.DRAINED}"]


def test_a_drain_ends_no_later_process_and_a_pause_ends_none(store: JobStore) -> None:
    store.suspensions.suspend("w", "draining")
    monitor, done = _drain(store, set())
    assert not monitor.poll()
    store.suspensions.suspend("w", "paused")
    assert not monitor.poll()
    time.sleep(0.01)  # the times of two drains differ by a millisecond
    store.suspensions.suspend("w", "draining")
    assert monitor.poll()

    assert done == [f"{process.DRAINED}"]


def test_the_store_knows_which_worker_is_idle_while_jobs_are_queued(store: JobStore) -> None:
    job_input = JobInput(
        content="sha256:" + "a" * 64, styles=["sha256:" + "b" * 64], spec=StyleSpec().model_dump()
    )
    for digest in job_input.digests():
        store.reserve(digest)
    assert not store.is_idle_with_backlog("me"), "no job is queued"
    for _ in range(2):
        store.create(new_job_id(), job_input)
    assert store.is_idle_with_backlog("me")
    store.claim("t", "me")
    assert (store.is_idle_with_backlog("me"), store.is_idle_with_backlog("another")) == (
        False,
        True,
    )
    store.claim("u", "another")
    assert not store.is_idle_with_backlog("me"), "no job is queued any more"
