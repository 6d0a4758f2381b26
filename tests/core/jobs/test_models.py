"""The status transitions and the ids."""

from core.jobs.models import TRANSITIONS, Status, is_job_id, new_job_id


def test_an_ended_status_is_final_and_every_other_status_can_end() -> None:
    ended = {status for status in Status if status.has_ended}

    assert ended == {Status.SUCCEEDED, Status.FAILED, Status.CANCELED, Status.EXPIRED}
    assert all(TRANSITIONS[status] & ended for status in set(Status) - ended)


def test_ids_are_unique_and_recognized() -> None:
    ids = {new_job_id() for _ in range(100)}

    assert len(ids) == 100
    assert all(is_job_id(job_id) for job_id in ids)
    assert not any(
        is_job_id(bad)
        for bad in ("", "job_", "job_../x", next(iter(ids)).upper(), next(iter(ids)) + "\n")
    )
