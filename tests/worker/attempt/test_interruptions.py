"""An attempt that must stop: at a shutdown, a cancel, a deadline, a limit, a lost lease."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import redis
from PIL import Image

from core.images import codec
from core.jobs.models import Job, Status
from core.jobs.store import JobStore
from core.neural.transfer import checkpoint
from core.neural.transfer.checkpoint import Checkpoint
from core.redis_client import PREFIX
from core.storage.blobs import Blobs
from core.style.limits import JobLimits
from worker import attempt, lease, process
from worker.runner import JobRunner

MakeRunner = Callable[..., JobRunner]
Submit = Callable[..., Job]
RunningJob = tuple[Job, threading.Thread]


def test_at_a_shutdown_the_worker_hands_its_job_back(
    running_job: RunningJob, store: JobStore
) -> None:
    job, run = running_job
    process.shutting_down.set()
    run.join()

    back = store.get(job.id)
    assert (back.status, back.attempt) == (Status.QUEUED, 0)


def test_a_job_canceled_after_the_release_keeps_its_last_picture_as_its_preview(
    make_runner: MakeRunner,
    store: JobStore,
    submit: Submit,
    blobs: Blobs,
    until: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attempt, "FIRST_PREVIEW_SECONDS", 600)
    runner = make_runner(preview_seconds=600)
    job = submit(iterations=5000)
    run = threading.Thread(target=runner.run_next)
    run.start()
    until(lambda: store.get(job.id).preview, "the only preview")
    early = store.get(job.id).preview
    until(lambda: (progress := store.get(job.id).progress) and progress.iteration > 5, "progress")
    process.shutting_down.set()
    run.join()
    ended = store.cancel(job.id)

    assert (ended.status, ended.outputs) == (Status.CANCELED, [])
    assert ended.preview not in (None, early)
    assert ended.preview is not None
    assert codec.decode(blobs.get(ended.preview)).width == 64
    assert ended.preview not in store.mark_deleting()


def test_an_attempt_that_lost_its_lease_publishes_nothing(
    running_job: RunningJob, store: JobStore, valkey: Any
) -> None:
    job, run = running_job
    # As if the lease had expired and another worker had claimed the job.
    with redis.Redis.from_url(valkey.url) as client:
        client.hset(f"{PREFIX}job:{job.id}", "token", "another")
    run.join()

    untouched = store.get(job.id)
    assert (untouched.status, untouched.outputs) == (Status.RUNNING, [])


@pytest.mark.parametrize("end", ["canceled", "deadline_exceeded"])
def test_a_job_stopped_in_a_long_iteration_ends_at_once_with_its_picture(
    runner: JobRunner,
    store: JobStore,
    submit: Submit,
    blobs: Blobs,
    monkeypatch: pytest.MonkeyPatch,
    until: Callable[..., None],
    valkey: Any,
    end: str,
) -> None:
    """One iteration of a large picture takes a minute, and the client must not wait for it."""
    stuck, usual = threading.Event(), attempt.Attempt._on_step

    def watch(self: attempt.Attempt, event: Any) -> Any:
        stop = usual(self, event)
        if event.progress.iteration == 5:
            stuck.set()
            until(lambda: store.get(job.id).status.has_ended, "the end")
        return stop

    monkeypatch.setattr(attempt.Attempt, "_on_step", watch)
    job = submit(iterations=100)
    run = threading.Thread(target=runner.run_next)
    run.start()
    assert stuck.wait(30)
    if end == "canceled":
        store.cancel(job.id)
    else:
        with redis.Redis.from_url(valkey.url) as client:
            client.hset(f"{PREFIX}job:{job.id}", "deadline_at", 1)
    run.join()
    ended = store.get(job.id)

    assert ended.status is (Status.CANCELED if end == "canceled" else Status.FAILED)
    assert (ended.error.code if ended.error else None) == (
        "deadline_exceeded" if end == "deadline_exceeded" else None
    )
    assert codec.decode(blobs.get(ended.outputs[0].id)).size == (64, 48)


def test_a_shutdown_in_a_long_iteration_hands_the_job_back_without_it(
    runner: JobRunner,
    store: JobStore,
    submit: Submit,
    monkeypatch: pytest.MonkeyPatch,
    until: Callable[..., None],
) -> None:
    monkeypatch.setattr(lease, "RELEASE_SECONDS", 0.2)
    stuck, usual = threading.Event(), attempt.Attempt._on_step

    def watch(self: attempt.Attempt, event: Any) -> Any:
        if event.progress.iteration == 5:
            stuck.set()
            until(lambda: store.get(job.id).status is Status.QUEUED, "the release")
        return usual(self, event)

    monkeypatch.setattr(attempt.Attempt, "_on_step", watch)
    job = submit(iterations=100)
    run = threading.Thread(target=runner.run_next)
    run.start()
    assert stuck.wait(30)
    process.shutting_down.set()
    run.join()

    assert ((back := store.get(job.id)).status, back.attempt) == (Status.QUEUED, 0)


@pytest.mark.parametrize("end", ["canceled", "deadline_exceeded"])
def test_a_stopped_run_keeps_a_picture_that_takes_longer_than_a_lease_to_write(
    valkey: Any,
    runner: JobRunner,
    store: JobStore,
    submit: Submit,
    monkeypatch: pytest.MonkeyPatch,
    until: Callable[..., None],
    end: str,
) -> None:
    """Even in an iteration that takes longer still."""
    runner._store.lease_seconds = 0.5
    usual, watch, over = codec.encode, attempt.Attempt._on_step, threading.Event()

    def slow(picture: Image.Image, kind: Any = "png", *args: Any, **more: Any) -> bytes:
        if kind == "png":
            time.sleep(1.5)
        return usual(picture, kind, *args, **more)

    def long(self: attempt.Attempt, event: Any) -> Any:
        if event.progress.iteration == 3:
            over.wait(20)
        return watch(self, event)

    job = submit(iterations=5000)
    monkeypatch.setattr(codec, "encode", slow)
    monkeypatch.setattr(attempt.Attempt, "_on_step", long)
    run = threading.Thread(target=runner.run_next)
    run.start()
    until(lambda: store.get(job.id).progress, "progress")
    if end == "canceled":
        store.cancel(job.id)
    else:
        with redis.Redis.from_url(valkey.url) as client:
            client.hset(f"{PREFIX}job:{job.id}", "deadline_at", 1)
    until(lambda: (store.reap_expired_leases(), store.get(job.id).status.has_ended)[1], "its end")
    over.set()
    run.join()

    ended = store.get(job.id)
    assert (ended.status, len(ended.outputs)) == (
        Status.CANCELED if end == "canceled" else Status.FAILED,
        1,
    )


def _limit_seconds(runner: JobRunner, seconds: float) -> None:
    runner._limits = JobLimits(seconds=seconds)


def test_a_run_that_reaches_the_operators_limit_fails_with_its_picture(
    runner: JobRunner, store: JobStore, submit: Submit, blobs: Blobs
) -> None:
    _limit_seconds(runner, 0.3)
    job = submit(iterations=5000)
    runner.run_next()
    ended = store.get(job.id)

    assert (ended.status, ended.error and ended.error.code) == (
        Status.FAILED,
        "time_limit_exceeded",
    )
    assert ended.error is not None
    assert "0.3 s that this service allows (IMPASTO_MAX_JOB_SECONDS)" in ended.error.message
    assert codec.decode(blobs.get(ended.outputs[0].id)).size == (64, 48)


def test_a_finished_run_is_kept_if_its_file_takes_longer_than_the_limit(
    runner: JobRunner,
    store: JobStore,
    submit: Submit,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The limit is for the run. A full disk, or a large PNG, takes its time afterwards."""
    real, usual = attempt.stylize, codec.encode

    def run_and_limit(*args: Any, **more: Any) -> Any:
        result = real(*args, **more)
        args[3].__self__._limits = JobLimits(seconds=1e-6)  # of the attempt
        return result

    monkeypatch.setattr(attempt, "stylize", run_and_limit)
    runner._store.lease_seconds = 0.5

    def slow(picture: Image.Image, kind: Any = "png", *args: Any, **more: Any) -> bytes:
        if kind == "png":
            time.sleep(1)
        return usual(picture, kind, *args, **more)

    monkeypatch.setattr(codec, "encode", slow)
    job = submit(iterations=1)
    runner.run_next()

    assert store.get(job.id).status is Status.SUCCEEDED


def test_a_run_in_a_long_iteration_ends_at_the_limit_at_once(
    runner: JobRunner,
    store: JobStore,
    submit: Submit,
    monkeypatch: pytest.MonkeyPatch,
    until: Callable[..., None],
) -> None:
    usual = attempt.Attempt._on_step

    def watch(self: attempt.Attempt, event: Any) -> Any:
        stop = usual(self, event)
        if event.progress.iteration == 5:
            until(lambda: store.get(job.id).status.has_ended, "the end")
        return stop

    monkeypatch.setattr(attempt.Attempt, "_on_step", watch)
    _limit_seconds(runner, 0.3)
    job = submit(iterations=100)
    runner.run_next()
    ended = store.get(job.id)

    assert ((ended.error and ended.error.code), len(ended.outputs)) == ("time_limit_exceeded", 1)


def test_the_seconds_of_earlier_attempts_count_for_the_limit(
    checkpointing_runner: JobRunner,
    store: JobStore,
    submit: Submit,
    monkeypatch: pytest.MonkeyPatch,
    until: Callable[..., None],
) -> None:
    """A job that is interrupted again and again must not run for ever."""
    load = checkpoint.load

    def load_aged(path: Path) -> Checkpoint | None:
        found = load(path)
        if found is not None:
            found.header = replace(found.header, seconds=1000.0)
        return found

    monkeypatch.setattr(checkpoint, "load", load_aged)
    _limit_seconds(checkpointing_runner, 500)
    job = submit(iterations=5000)
    run = threading.Thread(target=checkpointing_runner.run_next)
    run.start()
    until(lambda: store.get(job.id).checkpoint, "a checkpoint")
    process.shutting_down.set()
    run.join()
    process.shutting_down.clear()
    assert store.get(job.id).status is Status.QUEUED
    checkpointing_runner.run_next()

    assert (error := store.get(job.id).error) is not None
    assert error.code == "time_limit_exceeded"
