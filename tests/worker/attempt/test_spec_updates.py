"""A client changes the spec of a queued or running job."""

import threading
from collections.abc import Callable
from typing import Any

import pytest

from core import errors
from core.images import codec
from core.jobs.models import Job, Status
from core.jobs.store import JobStore
from core.storage.blobs import Blobs
from worker import process
from worker.runner import JobRunner

Submit = Callable[..., Job]
RunningJob = tuple[Job, threading.Thread]


def _update(store: JobStore, job: Job, **parameters: Any) -> Job:
    return store.update_spec(job.id, lambda job_input: job_input.with_updates(parameters))


def _read_provenance(store: JobStore, blobs: Blobs, job: Job) -> dict[str, Any]:
    record = codec.read_provenance(blobs.get(store.get(job.id).outputs[0].id))
    assert record is not None
    return record


def test_a_job_updated_before_it_starts_equals_a_job_with_that_spec(
    runner: JobRunner, store: JobStore, submit: Submit, blobs: Blobs
) -> None:
    job, other = submit(), submit(strength=0.9)
    _update(store, job, strength=0.9)
    runner.run_next()
    runner.run_next()
    first, second = (
        codec.decode(blobs.get(store.get(each.id).outputs[0].id)) for each in (job, other)
    )

    assert second.tobytes() == first.tobytes()
    assert _read_provenance(store, blobs, job)["spec"]["strength"] == 0.9
    assert "spec_updates" not in _read_provenance(store, blobs, job)


def test_a_running_job_applies_an_update_and_records_it(
    running_job: RunningJob, store: JobStore, blobs: Blobs, until: Callable[..., None]
) -> None:
    job, run = running_job
    _update(store, job, strength=0.9)

    def spec_updates() -> Any:
        progress = store.get(job.id).progress
        return progress and progress.spec_updates

    until(spec_updates, "the update in the progress")
    change = spec_updates()[0]
    assert (change.before, change.after) == ({"strength": 0.5}, {"strength": 0.9})
    store.cancel(job.id)
    run.join()

    record = _read_provenance(store, blobs, job)
    assert (record["spec"]["strength"], record["spec_updates"]) == (0.9, [change.model_dump()])
    assert store.get(job.id).input.spec["strength"] == 0.9


def test_an_update_after_the_last_iteration_extends_the_run_and_later_ones_are_refused(
    runner: JobRunner,
    store: JobStore,
    submit: Submit,
    blobs: Blobs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The picture contains each acknowledged update; an update that comes too late is refused."""
    job, usual, refused = submit(scales=1), JobStore.lock_spec, []

    def update_then_lock(self: JobStore, job_id: str, token: str, spec_update_count: int) -> Any:
        if not spec_update_count:
            _update(store, job, strength=0.9)
        status = usual(self, job_id, token, spec_update_count)
        if status == "ok":
            with pytest.raises(errors.JobAlreadyEnded) as caught:
                _update(store, job, strength=0.1)
            refused.append(caught.value)
        return status

    monkeypatch.setattr(JobStore, "lock_spec", update_then_lock)
    runner.run_next()
    ended, record = store.get(job.id), _read_provenance(store, blobs, job)

    assert ended.progress is not None
    assert (ended.status, ended.progress.iteration, ended.input.spec["strength"]) == (
        Status.SUCCEEDED,
        9,
        0.9,
    )
    assert [(change["iteration"], change["after"]) for change in record["spec_updates"]] == [
        (6, {"strength": 0.9})
    ]
    assert len(refused) == 1


@pytest.mark.parametrize(
    "before",
    [True, False],
    ids=["update, then release", "release, then update"],
)
def test_the_next_attempt_keeps_an_update(
    checkpointing_runner: JobRunner,
    store: JobStore,
    submit: Submit,
    blobs: Blobs,
    until: Callable[..., None],
    before: bool,
) -> None:
    job = submit(iterations=800)
    run = threading.Thread(target=checkpointing_runner.run_next)
    run.start()
    if before:
        until(lambda: store.get(job.id).progress, "progress")
        _update(store, job, strength=0.9)
        until(lambda: (at := store.get(job.id).progress) and at.spec_updates, "the update")
    until(lambda: store.get(job.id).checkpoint, "a checkpoint")
    process.shutting_down.set()
    run.join()
    process.shutting_down.clear()
    if not before:
        _update(store, job, strength=0.9)
    checkpointing_runner.run_next()
    ended, record = store.get(job.id), _read_provenance(store, blobs, job)

    assert ended.progress is not None
    assert (ended.status, record["spec"]["strength"]) == (Status.SUCCEEDED, 0.9)
    assert [change["after"] for change in record["spec_updates"]] == [{"strength": 0.9}]
    assert 0 < record["spec_updates"][0]["iteration"] < ended.progress.iterations
