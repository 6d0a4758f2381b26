"""References to blobs, reservations, and the upload quota."""

import threading
import time
from typing import Any

import pytest

from core import errors
from core.jobs.models import new_job_id
from core.jobs.store import JobStore


def test_blobs_stay_until_no_job_uses_them(driver: Any, store: JobStore) -> None:
    one, two = driver.create(), driver.create()
    driver.claim()
    store.report_progress(one.id, "t", driver.PROGRESS, driver.PREVIEW)
    store.succeed(one.id, "t", driver.OUTPUT, driver.MODEL, {})
    assert store.mark_deleting() == []

    store.delete(one.id)
    assert set(store.mark_deleting()) == {driver.RESULT, driver.PREVIEW}
    store.delete(two.id)
    # The reservations of the other two have not ended.
    assert set(store.mark_deleting()) == {driver.RESULT, driver.PREVIEW}
    driver.end_reservations()
    assert set(store.mark_deleting()) == {
        driver.RESULT,
        driver.PREVIEW,
        driver.CONTENT,
        driver.STYLE,
    }


def test_a_replaced_preview_is_marked_for_deletion(driver: Any, store: JobStore) -> None:
    driver.create()
    job = driver.claim()
    store.report_progress(job.id, "t", driver.PROGRESS, driver.PREVIEW)
    store.report_progress(job.id, "t", driver.PROGRESS, driver.RESULT)

    assert store.mark_deleting() == [driver.PREVIEW]


def test_a_preview_without_progress_leaves_the_progress(driver: Any, store: JobStore) -> None:
    driver.create()
    job = driver.claim()
    store.report_progress(job.id, "t", None, driver.PREVIEW)
    early = store.get(job.id)
    store.report_progress(job.id, "t", driver.PROGRESS)
    store.report_progress(job.id, "t", None, driver.RESULT)
    late = store.get(job.id)

    assert (early.progress, early.preview) == (None, driver.PREVIEW)
    assert (late.progress, late.preview) == (driver.PROGRESS, driver.RESULT)


def test_a_reservation_protects_a_blob_until_it_expires(driver: Any, store: JobStore) -> None:
    store.reserve(driver.CONTENT, 60)
    store.reserve(driver.STYLE, 0)
    time.sleep(0.01)

    assert store.mark_deleting() == [driver.STYLE]
    assert store.mark_deleting() == [driver.STYLE]
    store.confirm_deleted(driver.STYLE)
    assert store.mark_deleting() == []


def test_a_reservation_waits_while_the_old_file_is_deleted(driver: Any, store: JobStore) -> None:
    """Otherwise the deletion would delete the new file."""
    store.reserve(driver.STYLE, 0)
    time.sleep(0.01)
    store.mark_deleting()
    with pytest.raises(errors.Unavailable):
        store.reserve(driver.STYLE)

    deletion = threading.Timer(0.3, store.confirm_deleted, [driver.STYLE])
    deletion.start()
    started = time.monotonic()
    store.reserve(driver.STYLE)
    assert time.monotonic() - started > 0.25
    deletion.join()


@pytest.mark.parametrize("state", ["never reserved", "reservation expired", "being deleted"])
def test_a_job_whose_image_may_be_deleted_is_refused(
    driver: Any, store: JobStore, state: str
) -> None:
    store.reserve(driver.CONTENT, 60)
    if state != "never reserved":
        store.reserve(driver.STYLE, 60)
        driver.end_reservations()
        store.reserve(driver.CONTENT, 60)
    if state == "being deleted":
        store.mark_deleting()

    with pytest.raises(errors.ImageNotFound):
        store.create(new_job_id(), driver.INPUT)
    assert store.get_load().queued == 0


def test_a_second_reservation_never_shortens_the_first(driver: Any, store: JobStore) -> None:
    store.reserve(driver.CONTENT, 60)
    store.reserve(driver.CONTENT, 0)
    time.sleep(0.01)

    assert store.mark_deleting() == []


def test_an_owner_may_name_their_uploads_and_the_blobs_of_their_jobs(
    driver: Any, store: JobStore
) -> None:
    store.reserve(driver.PREVIEW, 60, "anna")
    store.reserve(driver.RESULT, 0, "anna")
    driver.submit("anna")
    time.sleep(0.01)

    digests = (driver.PREVIEW, driver.RESULT, driver.CONTENT)
    assert [store.is_owner("anna", digest) for digest in digests] == [True, False, True]
    assert [store.is_owner("ben", digest) for digest in digests] == [False, False, False]


def test_an_upload_counts_for_as_long_as_its_owner_may_name_it(
    driver: Any, store: JobStore
) -> None:
    store.reserve(driver.PREVIEW, 0.2, "anna", size_bytes=10, max_bytes=15)
    store.reserve(driver.PREVIEW, 60, "anna")
    time.sleep(0.3)

    with pytest.raises(errors.QuotaExceeded):
        store.reserve(driver.RESULT, 60, "anna", size_bytes=10, max_bytes=15)


def test_a_reservation_without_a_size_does_not_bypass_the_quota(
    driver: Any, store: JobStore
) -> None:
    store.reserve(driver.PREVIEW, 60, "anna")

    with pytest.raises(errors.QuotaExceeded):
        store.reserve(driver.PREVIEW, 60, "anna", size_bytes=20, max_bytes=15)


def test_only_blobs_that_the_store_does_not_know_become_orphans(
    driver: Any, store: JobStore
) -> None:
    """A used blob stays, a reservation keeps its end, and a file that is being deleted goes."""
    driver.create()
    driver.end_reservations()
    store.reserve(driver.PREVIEW, 60)
    store.reserve(driver.RESULT, 0)
    time.sleep(0.01)
    assert store.mark_deleting() == [driver.RESULT]
    unknown = [f"sha256:{digit * 64}" for digit in "ef"]

    known = [driver.CONTENT, driver.STYLE, driver.PREVIEW, driver.RESULT]
    assert store.register_orphans([*known, *unknown], 0.05) == 2
    assert store.register_orphans([], 0.05) == 0
    assert store.mark_deleting() == [driver.RESULT]
    time.sleep(0.06)
    assert set(store.mark_deleting()) == {driver.RESULT, *unknown}
