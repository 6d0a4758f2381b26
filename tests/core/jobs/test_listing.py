"""Pages of jobs, and the visibility of jobs per owner."""

from typing import Any

import pytest

from core import errors
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
