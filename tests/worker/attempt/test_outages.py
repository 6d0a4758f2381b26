"""An attempt while the store is unavailable, or a disk is broken or full."""

import io
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from PIL import Image

from core import errors
from core.images import codec, validation
from core.jobs.models import Job, Status
from core.jobs.store import JobStore
from core.redis_client import PREFIX
from core.storage.blobs import Blobs
from worker import attempt, process, retry
from worker.finisher import JobFinisher
from worker.lease import Lease
from worker.runner import JobRunner

MakeRunner = Callable[..., JobRunner]
Submit = Callable[..., Job]
Outage = tuple[JobRunner, JobStore, threading.Event]


@pytest.fixture
def outage(
    own_valkey: Any, make_runner: MakeRunner, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Outage]:
    """A runner whose store dies when the run completes; and the event of that."""
    runner, store = make_runner(own_valkey.url), JobStore(own_valkey.url)
    killed = threading.Event()
    real = attempt.stylize

    def run_and_kill_the_store(*args: Any, **more: Any) -> Any:
        result = real(*args, **more)
        own_valkey.kill()
        killed.set()
        return result

    monkeypatch.setattr(attempt, "stylize", run_and_kill_the_store)
    yield runner, store, killed
    store.close()


def test_a_result_waits_for_an_unavailable_store(
    outage: Outage, own_valkey: Any, make_submit: Callable[[JobStore], Submit]
) -> None:
    runner, store, killed = outage
    job = make_submit(store)()
    run = threading.Thread(target=runner.run_next)
    run.start()
    assert killed.wait(60)
    own_valkey.start()
    run.join()

    assert store.get(job.id).status is Status.SUCCEEDED


def test_a_result_waits_for_a_store_that_lacks_replicas(
    own_valkey: Any,
    make_runner: MakeRunner,
    make_submit: Callable[[JobStore], Submit],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It answers, but takes no writes: one such answer must not fail a job that is done."""
    runner, store = make_runner(own_valkey.url), JobStore(own_valkey.url)
    real, refusals = attempt.stylize, []

    def set_replicas(number: int) -> None:
        with redis.Redis(port=own_valkey.port) as client:
            client.config_set("min-replicas-to-write", number)

    def run_and_lose_replicas(*args: Any, **more: Any) -> Any:
        result = real(*args, **more)
        set_replicas(1)
        return result

    def get_replicas_back(_: JobFinisher, error: errors.Unavailable) -> None:
        refusals.append(error.message)
        set_replicas(0)

    monkeypatch.setattr(attempt, "stylize", run_and_lose_replicas)
    monkeypatch.setattr(JobFinisher, "_before_sleep", get_replicas_back)
    job = make_submit(store)()
    runner.run_next()

    assert "Too few of its replicas" in refusals[0]
    assert store.get(job.id).status is Status.SUCCEEDED
    store.close()


def test_a_shutdown_during_a_short_outage_hands_the_job_back(
    runner: JobRunner, store: JobStore, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It counts as no attempt: three lost attempts in a row would fail the job."""

    def fail(*_: Any) -> None:
        process.shutting_down.set()
        raise errors.StoreUnavailable()

    monkeypatch.setattr(runner._store, "succeed", fail)
    job = submit()
    runner.run_next()

    assert ((back := store.get(job.id)).status, back.attempt) == (Status.QUEUED, 0)


@pytest.mark.parametrize("failure", ["a moment", "this picture", "the disk"])
def test_an_input_that_cannot_be_read_costs_no_attempt(
    runner: JobRunner,
    store: JobStore,
    submit: Submit,
    monkeypatch: pytest.MonkeyPatch,
    failure: str,
) -> None:
    """The attempt waits for a disk that fails; a single unreadable picture fails the job."""
    job, tries, usual = submit(), list[Path](), Path.read_bytes

    def refuse(path: Path) -> bytes:
        tries.append(path)
        if failure == "a moment" and len(tries) > 2:
            return usual(path)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    monkeypatch.setattr(retry, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(Blobs, "is_writable", lambda _: failure != "the disk")
    runner.run_next()

    ended = store.get(job.id)
    assert (ended.status, ended.attempt, ended.error and ended.error.code) == {
        "a moment": (Status.SUCCEEDED, 1, None),
        "this picture": (Status.FAILED, 1, "image_not_found"),
        "the disk": (Status.QUEUED, 0, None),
    }[failure]


def test_a_damaged_input_fails_the_job_and_is_not_painted(
    runner: JobRunner, store: JobStore, submit: Submit
) -> None:
    job = submit()
    path = runner._blobs.path(job.input.content)
    picture = Image.open(io.BytesIO(path.read_bytes()))
    path.write_bytes(codec.encode(picture.convert("RGB").rotate(180)))  # a picture, but another one
    runner.run_next()

    ended = store.get(job.id)
    assert (ended.status, ended.outputs) == (Status.FAILED, [])
    assert ended.error is not None
    assert (ended.error.code, job.input.content in ended.error.message) == ("image_damaged", True)


def test_a_result_waits_for_room_on_the_disk(
    runner: JobRunner, store: JobStore, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = submit()
    real, tries = runner._blobs.put, []

    def full_once(data: bytes, *_: str) -> str:
        tries.append(1)
        if len(tries) == 1:
            raise errors.StorageFull()
        return real(data)

    monkeypatch.setattr(runner._blobs, "put", full_once)
    runner.run_next()

    assert store.get(job.id).status is Status.SUCCEEDED
    assert len(tries) > 1


def test_a_canceled_job_keeps_its_result_if_the_disk_is_full_during_a_shutdown(
    runner: JobRunner, store: JobStore, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No worker would resume it."""
    job = submit()
    usual, stylize, tries = runner._blobs.put, attempt.stylize, list[bytes]()

    def cancel_and_run(*args: Any, **more: Any) -> Any:
        store.cancel(job.id)
        return stylize(*args, **more)

    def full_once(data: bytes, *_: str) -> str:
        if validation.detect_format(data) == "png":  # the result, not a preview
            tries.append(data)
            if len(tries) == 1:
                process.shutting_down.set()
                raise errors.StorageFull()
        return usual(data)

    monkeypatch.setattr(attempt, "stylize", cancel_and_run)
    monkeypatch.setattr(Lease, "has_to_stop", lambda _: True)
    monkeypatch.setattr(attempt.Attempt, "_end_early", lambda *_: None)
    monkeypatch.setattr(runner._blobs, "put", full_once)
    runner.run_next()

    ended = store.get(job.id)
    assert (ended.status, len(ended.outputs), len(tries)) == (Status.CANCELED, 1, 2)


@pytest.mark.parametrize("end", ["canceled", "deadline_exceeded", "deleted", "lost"])
def test_a_job_that_must_stop_does_not_wait_for_room_on_the_disk(
    runner: JobRunner,
    store: JobStore,
    submit: Submit,
    monkeypatch: pytest.MonkeyPatch,
    valkey: Any,
    end: str,
) -> None:
    job, waiting = submit(), threading.Event()

    def full(data: bytes, *_: str) -> str:
        if validation.detect_format(data) == "png":  # the result, not a preview
            waiting.set()
        raise errors.StorageFull()

    monkeypatch.setattr(runner._blobs, "put", full)
    run = threading.Thread(target=runner.run_next, daemon=True)
    run.start()
    assert waiting.wait(30)
    with redis.Redis.from_url(valkey.url) as client:
        if end == "canceled":
            store.cancel(job.id)
        elif end == "deadline_exceeded":
            client.hset(f"{PREFIX}job:{job.id}", "deadline_at", 1)
        elif end == "deleted":
            store.delete(job.id)
        else:
            client.hset(f"{PREFIX}job:{job.id}", "token", "another")
    run.join(10)

    assert not run.is_alive()
    if end in ("canceled", "deadline_exceeded"):
        ended = store.get(job.id)
        assert (ended.status, ended.outputs) == (
            Status.CANCELED if end == "canceled" else Status.FAILED,
            [],
        )
