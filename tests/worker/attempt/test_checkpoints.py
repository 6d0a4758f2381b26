"""The next attempt resumes from a checkpoint of the last one."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from core.images import codec
from core.jobs.models import Job, Status
from core.jobs.store import JobStore
from core.storage.blobs import Blobs
from worker import attempt, process
from worker.reporter import Reporter
from worker.runner import JobRunner

Submit = Callable[..., Job]


def _list_checkpoints(folder: Path) -> list[Path]:
    return [*(folder / "checkpoints").glob("*")]


def test_the_next_attempt_resumes_and_ends_with_the_same_bits(
    checkpointing_runner: JobRunner,
    store: JobStore,
    submit: Submit,
    blobs: Blobs,
    until: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    whole = submit(iterations=600)
    checkpointing_runner.run_next()
    job = submit(iterations=600)
    run = threading.Thread(target=checkpointing_runner.run_next)
    run.start()
    until(lambda: store.get(job.id).checkpoint, "a checkpoint")
    process.shutting_down.set()  # releases the job in the middle
    run.join()
    process.shutting_down.clear()
    back = store.get(job.id)
    assert back.status is Status.QUEUED
    assert back.progress is not None
    assert 0 < back.progress.iteration < back.progress.iterations
    assert len(_list_checkpoints(tmp_path)) == 1

    reported: list[int] = []
    usual = checkpointing_runner._store.report_progress

    def record(job_id: str, token: str, progress: Any, *more: Any) -> Any:
        reported.append(progress.iteration)
        return usual(job_id, token, progress, *more)

    monkeypatch.setattr(checkpointing_runner._store, "report_progress", record)
    checkpointing_runner.run_next()
    ended = store.get(job.id)

    assert (ended.status, ended.attempt) == (Status.SUCCEEDED, 1)
    assert reported[0] >= back.progress.iteration
    pixels = [
        codec.decode(blobs.get(store.get(job_id).outputs[0].id)).tobytes()
        for job_id in (whole.id, job.id)
    ]
    assert pixels[1] == pixels[0]
    assert _list_checkpoints(tmp_path) == []


def test_attempts_that_die_where_they_resumed_count_as_no_progress(
    checkpointing_runner: JobRunner,
    store: JobStore,
    submit: Submit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Died(BaseException):
        pass

    def deadly(*args: Any, resume: Any, **_: Any) -> Any:
        inputs, spec, network, on_progress, planner = args

        def die(event: Any) -> bool:
            while resume is None and not store.get(job.id).checkpoint:
                time.sleep(0.06)  # a checkpoint is due
                on_progress(event)
            if resume is not None:
                time.sleep(0.06)
                on_progress(event)
            raise Died

        return stylize(inputs, spec, network, die, planner, resume=resume)

    stylize = attempt.stylize
    monkeypatch.setattr(attempt, "stylize", deadly)
    job = submit(iterations=50)
    for _ in range(3):
        with pytest.raises(Died):
            checkpointing_runner.run_next()
        store.requeue_jobs_of(checkpointing_runner._name)
    ended = store.get(job.id)

    assert (ended.status, ended.attempt) == (Status.FAILED, 3)
    assert ended.error is not None
    assert ended.error.code == "worker_lost"


def test_a_torn_checkpoint_costs_the_work_but_not_the_job(
    checkpointing_runner: JobRunner, store: JobStore, submit: Submit, tmp_path: Path
) -> None:
    job = submit()
    store.claim("t", "worker")
    store.save_checkpoint(job.id, "t", "job_torn")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "job_torn").write_bytes(b"PK")
    store.release(job.id, "t")
    checkpointing_runner.run_next()

    assert store.get(job.id).status is Status.SUCCEEDED
    assert _list_checkpoints(tmp_path) == []


def test_a_run_that_was_interrupted_after_its_last_iteration_succeeds(
    checkpointing_runner: JobRunner, store: JobStore, submit: Submit
) -> None:
    """Only the result is left to publish."""
    job = submit(iterations=8, scales=1)

    class LastStep(Reporter):
        def report(self, progress: Any, preview: Any = None) -> None:
            super().report(progress, preview)
            if progress and progress.iteration == 7:
                process.shutting_down.set()  # a shutdown in the last iteration

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attempt, "Reporter", LastStep)
        checkpointing_runner.run_next()
    process.shutting_down.clear()
    assert store.get(job.id).status is Status.QUEUED
    checkpointing_runner.run_next()

    ended = store.get(job.id)
    assert ended.status is Status.SUCCEEDED
    assert ended.progress is not None
    assert (ended.progress.value, ended.progress.iteration) == (1.0, 8)
