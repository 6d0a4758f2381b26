"""A runner with a tiny network, and jobs of two small pictures, for the tests of attempts."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from core.config import Settings
from core.images import codec
from core.jobs.models import Job, JobInput, new_job_id
from core.jobs.store import JobStore
from core.neural.transfer.planner import NOMINAL_THROUGHPUT
from core.neural.vgg import Network
from core.neural.weights.cache import CacheEntry, WeightsCache, random_parameters
from core.storage.blobs import Blobs
from core.style import vgg_layers
from core.style.spec import parse_spec
from worker import lease, process, reporter
from worker.runner import JobRunner
from worker.settings import WorkerSettings

MakeRunner = Callable[..., JobRunner]
Submit = Callable[..., Job]
RunningJob = tuple[Job, threading.Thread]


class TinyCache(WeightsCache):
    """A cache whose only network has 4 channels per layer and random weights."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vgg_layers, "WIDTHS", (4, 4, 4, 4, 4))
            self._network = Network(
                "vgg16",
                random_parameters("vgg16"),
                name="vgg16",
                sha256="tiny",
                device="cpu",
                dtype=torch.float32,
            )

    def load(self, *_: Any) -> Network:
        return self._network

    def entry(self, name: str) -> CacheEntry:
        return CacheEntry(name, self.path(name), 0, {"sha256": "tiny"})

    def has(self, name: str) -> bool:
        return name == "vgg16"


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory: pytest.TempPathFactory) -> TinyCache:
    """The network is built, and its throughput measured, once in the session."""
    return TinyCache(tmp_path_factory.mktemp("weights"))


@pytest.fixture
def make_runner(valkey: Any, tmp_path: Path, tiny_cache: TinyCache) -> MakeRunner:
    """Make a runner with these settings of the worker, on the session's server or another one."""

    def make(url: str | None = None, **settings: Any) -> JobRunner:
        shared = Settings(redis_url=url or valkey.url, data_dir=tmp_path)
        made = JobRunner(shared, WorkerSettings(**settings))
        made._weights = tiny_cache
        return made

    return make


@pytest.fixture
def runner(make_runner: MakeRunner) -> JobRunner:
    """A runner with the tiny network and frequent previews."""
    return make_runner(preview_seconds=0.1)


@pytest.fixture
def checkpointing_runner(make_runner: MakeRunner) -> JobRunner:
    """A runner that writes checkpoints as often as it can."""
    return make_runner(checkpoint_seconds=0.05)


@pytest.fixture
def vgg_runner(runner: JobRunner, weights: WeightsCache) -> JobRunner:
    """The same with the real VGG-16."""
    runner._weights = weights
    return runner


@pytest.fixture
def nominal_throughput(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a network takes no measurement, which takes seconds."""
    monkeypatch.setattr("worker.runner.load_throughput", lambda *_: NOMINAL_THROUGHPUT)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(lease, "RENEW_SECONDS", 0.05)
    monkeypatch.setattr(reporter, "REPORT_SECONDS", 0.05)
    yield
    process.shutting_down.clear()


@pytest.fixture
def make_submit(
    blobs: Blobs, photo: Image.Image, painting: Image.Image
) -> Callable[[JobStore], Submit]:
    """Make a function that submits a small job of these two pictures, or of others."""

    def make(store: JobStore) -> Submit:
        def submit(*pictures: Image.Image, **parameters: Any) -> Job:
            chosen = pictures or (photo, painting)
            content, *styles = [blobs.put(codec.encode(picture)) for picture in chosen]
            for digest in (content, *styles):
                store.reserve(digest)
            spec = parse_spec({"size": 64, "iterations": 6, **parameters})
            spec = spec.for_pictures(len(styles))
            job_input = JobInput(content=content, styles=styles, spec=spec.model_dump())
            return store.create(new_job_id(), job_input)

        return submit

    return make


@pytest.fixture
def submit(store: JobStore, make_submit: Callable[[JobStore], Submit]) -> Submit:
    """Submit to the session's store."""
    return make_submit(store)


@pytest.fixture
def running_job(
    runner: JobRunner, store: JobStore, submit: Submit, until: Callable[..., None]
) -> RunningJob:
    """A long job, and the thread that runs it."""
    job = submit(iterations=5000)
    thread = threading.Thread(target=runner.run_next)
    thread.start()
    until(lambda: store.get(job.id).progress, "progress")
    return job, thread
