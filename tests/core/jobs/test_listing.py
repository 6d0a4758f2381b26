"""Pages of jobs, and the visibility of jobs per owner."""

from typing import Any

import pytest

from core import errors
from core.jobs import serialization
from core.jobs.models import Status
from core.jobs.store import JobStore


def test_jobs_are_listed_newest_first_in_pages_and_by_status(driver: Any, store: JobStore) -> None:
    jobs = [driver.create() for _ in range(5)]
    driver.claim()

    first, cursor = store.list_page(limit=3)
    second, end = store.list_page(limit=3, before=cursor)
    queued, _ = store.list_page(limit=10, statuses=[Status.QUEUED])

    assert [job.id for job in first + second] == [job.id for job in reversed(jobs)]
    assert end is None
    assert [job.id for job in queued] == [job.id for job in reversed(jobs[1:])]


def test_a_job_of_another_owner_is_not_found(driver: Any, store: JobStore) -> None:
    job = driver.submit("anna")
    for operation in (store.get, store.cancel, store.set_pinned):
        with pytest.raises(errors.JobNotFound):
            operation(job.id, "ben")
    store.delete(job.id, "ben")

    assert store.get(job.id, "anna").status is Status.QUEUED
    assert store.list_page(limit=10, owner="ben") == ([], None)
    assert store.list_page(limit=10, owner="anna")[0] == [job]


def test_a_job_of_another_owner_is_not_even_read(driver: Any, store: JobStore) -> None:
    """Otherwise the time of the answer tells that the job exists."""
    job_id = driver.submit("anna").id

    assert store._call("read_changed", "ben", job_id, "")[0] == []
    assert store._call("read_changed", "anna", job_id, "")[0] != []


def test_a_list_reads_only_the_jobs_that_have_changed_since_the_last_one(
    driver: Any, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = driver.end()
    canceled, pinned, waiting = (driver.create() for _ in range(3))
    store.list_page(limit=10)
    another = driver.on(JobStore(driver.redis_url))
    another.store.set_pinned(pinned.id)
    another.store.cancel(canceled.id)  # the queue's other jobs move up, and their versions stay
    parsed: list[str] = []
    parse = serialization.parse_job

    def spy(fields: dict[str, Any]) -> Any:
        parsed.append(fields["id"])
        return parse(fields)

    monkeypatch.setattr(serialization, "parse_job", spy)
    jobs, _ = store.list_page(limit=10)

    assert sorted(parsed) == sorted([canceled.id, pinned.id])
    read = [another.store.get(job.id) for job in (waiting, pinned, canceled, ended)]
    times = {"queue": None}  # its estimate of the start differs a little with the time
    assert [job.model_copy(update=times) for job in jobs] == [
        job.model_copy(update=times) for job in read
    ]
    assert [job.queue.position for job in jobs[:2] if job.queue] == [1, 0]
    another.store.delete(ended.id)
    assert ended.id not in {job.id for job in store.list_page(limit=10)[0]}
    another.store.close()


def test_no_list_shows_a_job_of_another_owner_that_is_known(driver: Any, store: JobStore) -> None:
    job = driver.submit("anna")
    store.list_page(limit=10, owner="anna")

    assert store.list_page(limit=10, owner="ben")[0] == []
    assert store._read([job.id], "ben", [job]) == [None]
