"""The frames that a run leaves."""

from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from core import errors
from core.images import codec
from core.jobs.models import Job, Status
from core.jobs.store import JobStore
from core.storage.blobs import Blobs
from worker import images
from worker.runner import JobRunner

Submit = Callable[..., Job]


def test_a_run_leaves_frames_and_the_last_one_is_the_result(
    runner: JobRunner,
    store: JobStore,
    submit: Submit,
    blobs: Blobs,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(images, "FRAME_SECONDS", 0.01)
    monkeypatch.setattr(images, "FRAME_COST_FACTOR", 0)
    job = submit(iterations=60)
    runner.run_next()
    ended, frames = store.get(job.id), store.list_frames(job.id)
    result = codec.decode(blobs.get(ended.outputs[0].id))

    assert ended.progress is not None
    assert 3 <= len(frames) <= 60
    assert [frame.iteration for frame in frames] == sorted({frame.iteration for frame in frames})
    assert frames[-1].iteration == ended.progress.iteration
    assert blobs.get(frames[-1].digest) == codec.encode(result, "jpeg", quality=80)


def test_a_run_continues_without_room_for_frames(
    runner: JobRunner, store: JobStore, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise errors.StorageFull()

    monkeypatch.setattr(JobStore, "add_frame", full)
    job = submit()
    runner.run_next()

    assert store.get(job.id).status is Status.SUCCEEDED


def test_a_run_continues_without_memory_for_frames(
    runner: JobRunner, store: JobStore, submit: Submit, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = codec.thumbnail

    def short(picture: Image.Image, side_px: int) -> Image.Image:
        if side_px == images.FRAME_PX:
            raise MemoryError
        return usual(picture, side_px)

    job = submit(iterations=2)
    monkeypatch.setattr(images, "FRAME_SECONDS", 1e9)
    monkeypatch.setattr(codec, "thumbnail", short)
    runner.run_next()

    assert store.get(job.id).status is Status.SUCCEEDED
