"""Machines that share nothing but the job store and a bucket, whose answers often fail."""

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from fleet import Fleet
from PIL import Image
from s3_server import Fault, S3Server, answer, flip

from core import errors
from core.images import codec
from core.jobs.models import Status
from core.jobs.store import JobStore
from core.storage.blobs import digest_of
from impasto import Client

pytestmark = pytest.mark.e2e

FAILURES = 8  # one request of so many is answered with 500


class Intermittent(Fault):
    """Spoils every n-th request."""

    def __init__(self) -> None:
        super().__init__("", "", answer("500 Internal Server Error", "InternalError"))
        self._numbers = count(1)

    def applies(self, environ: dict[str, Any]) -> bool:
        return next(self._numbers) % FAILURES == 0 and super().applies(environ)


@pytest.fixture
def url(s3: S3Server) -> Iterator[str]:
    yield s3.create_bucket()
    s3.faults.clear()


def test_a_worker_resumes_from_the_checkpoint_of_a_killed_one_on_another_machine(
    s3: S3Server,
    url: str,
    tmp_path_factory: pytest.TempPathFactory,
    photo: Image.Image,
    painting: Image.Image,
    until: Callable[..., None],
) -> None:
    folder = tmp_path_factory.mktemp("s3")
    settings = {"BLOBS_URL": url, "WORKER_PREVIEW_SECONDS": "0.2", "API_RESULT_LINKS": "true"}
    s3.faults.append(fault := Intermittent())
    with Fleet(folder, tiny=True, hosts=True, **settings) as fleet, Client(fleet.url) as client:
        store = JobStore(f"redis://127.0.0.1:{fleet.store_port}/0")
        pictures = [codec.encode(picture) for picture in (photo, painting)]
        job = client.submit(*pictures, size=96, iterations=5000)
        until(lambda: store.get(job.id).checkpoint, "a checkpoint is published", 60)
        before = _iterations(store, job.id)
        busy, other = sorted(fleet.workers, key=lambda worker: not _has_run(folder, worker.name))
        for child in busy.children():
            child.kill()
        busy.stop_at_once()

        until(lambda: "attempt 2 resumes" in _read_log(folder, other.name), "it is taken over", 60)
        until(lambda: _iterations(store, job.id) > before, "it goes on", 60)
        client.cancel(job.id)
        ended = client.wait(job.id)
        until(lambda: not _checkpoints(s3, url), "the checkpoints are deleted", 60)
        s3.faults.clear()
        result = client.result(job.id)
        frames = client.frames(job.id)
        s3.faults.append(Fault("GET", "blobs/", flip))
        with pytest.raises(errors.ImageDamaged, match="on its way"):
            client.result(job.id)
        store.close()

    assert (ended.status, ended.attempt) == (Status.CANCELED, 2)
    assert digest_of(result) == ended.outputs[0].id
    assert codec.decode(result).size == (96, 72)
    assert frames
    assert "unreadable" not in _read_log(folder, other.name)
    assert len(fault.seen) > 5, "the bucket failed often"
    hosts = folder / "hosts"
    assert {path.name for path in hosts.iterdir()} == {"api", "worker-0", "worker-1"}
    assert {path.parent.name for path in hosts.glob("*/*")} == {"api", "worker-0", "worker-1"}
    assert not [*hosts.glob("*/blobs")], "nothing is kept but copies"


def _iterations(store: JobStore, job_id: str) -> tuple[int, int]:
    progress = store.get(job_id).progress
    return (progress.scale, progress.iteration) if progress else (0, 0)


def _read_log(folder: Path, name: str) -> str:
    return (folder / f"{name}.log").read_text(errors="replace")


def _has_run(folder: Path, name: str) -> bool:
    return "attempt 1" in _read_log(folder, name)


def _checkpoints(s3: S3Server, url: str) -> list[str]:
    return [key for key in s3.keys(url) if key.startswith("checkpoints/")]
