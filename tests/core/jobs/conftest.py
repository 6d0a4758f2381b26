"""Drives jobs into the states that the tests of the store need."""

from typing import Any

import pytest
import redis

from core import errors
from core.jobs import store as store_module
from core.jobs.models import (
    Frame,
    Job,
    JobInput,
    JobProgress,
    ModelUsed,
    Output,
    QueueLimits,
    SubmissionContext,
    SubmissionOptions,
    new_job_id,
)
from core.jobs.serialization import sha256_hex
from core.jobs.store import JobStore
from core.redis_client import PREFIX
from core.style.spec import StyleSpec


class Driver:
    """Short forms of the operations on one store, and the values that they use."""

    CONTENT, STYLE, RESULT, PREVIEW = (f"sha256:{digit * 64}" for digit in "abcd")
    INPUT = JobInput(content=CONTENT, styles=[STYLE], spec=StyleSpec().model_dump())
    OUTPUT = Output(id=RESULT, content_type="image/png", width=4, height=3, size_bytes=9)
    MODEL = ModelUsed(name="vgg16", sha256="0" * 64)
    PROGRESS = JobProgress(
        value=0.5,
        scale=1,
        scales=2,
        iteration=5,
        iterations=10,
        iterations_per_second=2.0,
        seconds_left=3.0,
        loss={"total": 1.0},
    )
    DIVERGED = errors.Diverged()
    OPTIONS, LIMITS = SubmissionOptions(), QueueLimits()

    def __init__(self, store: JobStore, redis_url: str) -> None:
        self.store, self.redis_url = store, redis_url

    def on(self, store: JobStore) -> "Driver":
        """The same for another store on the same server."""
        return Driver(store, self.redis_url)

    def create(self) -> Job:
        return self.submit()

    def submit(
        self, owner: str = "local", limits: QueueLimits | None = None, **options: Any
    ) -> Job:
        """Queue a job whose blobs are reserved."""
        self.store.reserve(self.CONTENT, 60)
        self.store.reserve(self.STYLE, 60)
        chosen = {
            name: options.pop(name) for name in SubmissionOptions.model_fields if name in options
        }
        return self.store.create(
            new_job_id(),
            self.INPUT,
            SubmissionOptions(**chosen),
            limits or QueueLimits(),
            SubmissionContext(owner=owner, **options),
        )

    def claim(self, token: str = "t") -> Job:
        job = self.store.claim(token, "worker")
        assert job is not None
        return job

    def end(self, **options: Any) -> Job:
        """Queue a job, claim it (it must be the next one) and end it with a result."""
        job = self.submit(**options)
        self.claim(job.id)
        self.store.reserve(self.RESULT, 0)
        self.store.succeed(job.id, job.id, self.OUTPUT, self.MODEL, {})
        return self.store.get(job.id)

    def context(self, idempotency_key: str) -> SubmissionContext:
        return SubmissionContext(idempotency_key=idempotency_key)

    def frame(self, iteration: int) -> Frame:
        """A frame of the picture PREVIEW, which must be reserved."""
        return Frame(index=0, iteration=iteration, scale=1, seconds=1.0, digest=self.PREVIEW)

    def expire_leases(self) -> None:
        """Let all leases expire now."""
        self._make_due("leases")

    def reach_expiry(self) -> None:
        """Let the images and records of all ended jobs expire now."""
        self._make_due("expiry", "records")

    def end_reservations(self) -> None:
        """Let all reservations of blobs expire now."""
        self._make_due("orphans")

    def make_webhooks_due(self) -> None:
        """Let all delivery leases and all pauses between tries end now."""
        self._make_due("outbox")

    def server_time_ms(self) -> int:
        """The time by which the store decides what is due."""
        with redis.Redis.from_url(self.redis_url) as client:
            seconds, microseconds = client.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    def _make_due(self, *indexes: str) -> None:
        with redis.Redis.from_url(self.redis_url) as client:
            for index in indexes:
                for member in client.zrange(PREFIX + index, 0, -1):
                    client.zadd(PREFIX + index, {member: 1})

    def patch_library(self, monkeypatch: pytest.MonkeyPatch, line: str, replacement: str) -> None:
        """Change a number in the Lua library, for this test."""
        version, code = store_module.load_library()
        assert line in code
        # A name of its own, because the server keeps the functions of earlier tests.
        name = f"impasto_{sha256_hex(code + replacement)[:12]}"
        changed = code.replace(line, replacement).replace(version, name)
        monkeypatch.setattr("core.jobs.store.load_library", lambda: (name, changed))


@pytest.fixture
def driver(store: JobStore, valkey: Any) -> Driver:
    return Driver(store, valkey.url)
