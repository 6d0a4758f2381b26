"""A worker does not process a painting again for the next job."""

from typing import Any

import pytest
from PIL import Image

from core.jobs.models import Status
from core.jobs.store import JobStore
from core.neural.transfer import objective, style_cache
from worker.runner import JobRunner


def test_the_second_and_third_job_do_not_measure_the_painting_again(
    runner: JobRunner,
    store: JobStore,
    submit: Any,
    photo: Image.Image,
    painting: Image.Image,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    measured: list[int] = []

    def spy(*args: Any) -> Any:
        measured.append(1)
        return objective.measure_styles(*args)

    monkeypatch.setattr(style_cache, "measure_styles", spy)
    other_photo = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    counts = []
    same, other = (photo, painting), (other_photo, painting)
    for pictures in (same, same, other, (painting, photo)):
        job = submit(*pictures, iterations=1)
        runner.run_next()
        assert store.get(job.id).status is Status.SUCCEEDED
        counts.append(len(measured))

    assert counts[0] == counts[1] == counts[2] < counts[3]
