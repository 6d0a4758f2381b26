"""A job: one request to stylise, with an id and a life.

What it looks like to a client, and which steps its life may take.
Knows nothing of Redis, Celery or HTTP. The store (store.py, scripts/) is the only one that changes a job.
"""

import re
import secrets
from base64 import b32encode
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Self

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core import errors
from core.images import codec
from core.style.spec import SpecUpdate, parse_spec

MAX_ATTEMPTS = 3  # in a row that brought it no further
MAX_SPEC_UPDATES = 200  # of one job
MAX_FRAMES = 60  # of one job
_ID = re.compile(r"(job|batch)_[a-z2-7]{26}")


class Status(StrEnum):
    """Where a job is in its life."""

    QUEUED = "queued"  # in: created, handed back, or its worker was lost. out: claimed, canceled, or too late
    RUNNING = "running"  # in: claimed by a worker, which renews a lease. out: the worker ends it, or the lease runs out
    SUCCEEDED = "succeeded"  # ended: has a result
    FAILED = "failed"  # ended: has an error
    CANCELED = "canceled"  # ended: someone asked for it
    EXPIRED = "expired"  # ended: nobody could begin it, or go on with it, in time

    @property
    def has_ended(self) -> bool:
        """An ended job never changes."""
        return not TRANSITIONS[self]


TRANSITIONS: dict[Status, frozenset[Status]] = {
    Status.QUEUED: frozenset({Status.RUNNING, Status.CANCELED, Status.EXPIRED}),
    Status.RUNNING: frozenset({Status.QUEUED, Status.SUCCEEDED, Status.FAILED, Status.CANCELED}),
    Status.SUCCEEDED: frozenset(),
    Status.FAILED: frozenset(),
    Status.CANCELED: frozenset(),
    Status.EXPIRED: frozenset(),
}


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class JobInput(_Record):
    """What was asked: digests of the pictures, and the spec with every default filled in."""

    content: str
    styles: list[str]
    masks: list[str] = []
    init_image: str | None = None
    spec: dict[str, Any]  # as it was accepted; shown as it is, whatever later versions make of it

    def digests(self) -> list[str]:
        """Every picture that the job needs."""
        return [
            self.content,
            *self.styles,
            *self.masks,
            *([self.init_image] if self.init_image else []),
        ]

    def pictures(
        self, get: Callable[[str], bytes], decode: Callable[..., Image.Image] = codec.decode
    ) -> tuple[Image.Image, list[Image.Image], list[Image.Image], Image.Image | None]:
        """The photo, the paintings, the masks and what to begin with. `get`: a digest to its bytes.

        decode: as `codec.decode`. Raises BadImage, and what `get` and `decode` raise.
        """
        content, *styles = (decode(get(digest)) for digest in (self.content, *self.styles))
        # As `codec.decode_mask`.
        masks = [decode(get(digest), "black").convert("L") for digest in self.masks]
        init = decode(get(self.init_image), any_size=True) if self.init_image else None
        return content, styles, masks, init

    def with_updates(self, parameters: Mapping[str, Any]) -> "JobInput":
        """The same with other weights. Raises BadSpec."""
        spec = parse_spec(self.spec).with_updates(parameters)
        return self.model_copy(update={"spec": spec.model_dump()})

    def provenance(self, model: "ModelUsed") -> dict[str, Any]:
        """What a result's PNG tells of its making, with a service or without."""
        return {"program": "impasto", **self.model_dump(), "model": model.model_dump()}

    @classmethod
    def from_provenance(cls, provenance: Mapping[str, Any] | None) -> "JobInput":
        """What `provenance` told, from a file that anybody may have written. Raises BadRecord."""
        try:
            return cls.model_validate(provenance)
        except ValidationError as error:
            raise errors.InvalidProvenance() from error


class Priority(StrEnum):
    """Which jobs go first; among those of one priority, callers take turns."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


LOCAL_OWNER = "local"  # who owns the jobs of a service without keys


class SubmissionOptions(_Record):
    """What a client may choose about a job besides its pictures and parameters."""

    model_config = ConfigDict(extra="forbid")

    priority: Priority = Field(
        Priority.NORMAL,
        description="Queued jobs with a higher priority run first: high, normal or low.",
    )
    deadline_seconds: float | None = Field(
        None,
        gt=0,
        le=30 * 86_400,
        allow_inf_nan=False,
        description="Seconds after which the job ends in any case, at most 2592000 (30 days).",
    )
    reuse: bool = Field(
        False,
        description="Return the result of an earlier job of yours, if one has the same pictures, "
        "parameters and network.",
    )
    webhook: str | None = Field(
        None, description="A URL, https://…, that receives a POST request when the job ends."
    )


class SubmissionContext(_Record):
    """What the service adds to a submission."""

    owner: str = LOCAL_OWNER
    keep_seconds: float = 0  # retention of pictures and record after the job's end; 0: no limit
    idempotency_key: str | None = None
    # The hash of the request. With a repeated key, only the same request returns the same job.
    request_hash: str | None = None
    retried_from: str | None = None
    batch_id: str | None = None


class QueueLimits(_Record):
    """How many jobs are taken; None: any number."""

    queued: int | None = None
    per_owner: int | None = None  # waiting and running


class JobProgress(_Record):
    """How far the run is. Iterations count over all scales; losses are by name."""

    value: float
    scale: int
    scales: int
    iteration: int
    iterations: int
    iterations_per_second: float | None
    seconds_left: float | None
    loss: dict[str, float]
    spec_updates: list[SpecUpdate] = []


class Frame(_Record):
    """A small picture of the run on its way. Its index stays the same when others go to make room."""

    index: int
    iteration: int
    scale: int
    seconds: float
    digest: str = Field("", exclude=True)  # which clients are not told


class Output(_Record):
    """The finished picture."""

    id: str
    content_type: str
    width: int
    height: int
    size_bytes: int


class ModelUsed(_Record):
    """Which weights painted it."""

    name: str
    sha256: str


class JobError(_Record):
    """Why it failed: a stable code and a sentence."""

    code: str
    message: str


class QueuePosition(_Record):
    """Place in the queue; 0 is next. Seconds until it begins, by the pace of late, while a worker lives."""

    position: int
    start_seconds: float | None = None


class WorkerInfo(_Record):
    """What a worker tells of itself."""

    device: str  # as the device's driver names it
    precision: str  # of the network
    network: str  # that `auto` means there
    networks: list[str]  # whose weights are there


class EstimateRequest(_Record):
    """How long would it take? Sizes are width and height in px."""

    content: tuple[int, int]
    styles: list[tuple[int, int]]
    masks: int
    spec: dict[str, Any]


class ScaleEstimate(_Record):
    """One scale of a run. tile_px: the side of its tiles; None: it is painted whole."""

    width: int
    height: int
    iterations: int
    seconds: float
    memory_bytes: int
    tile_px: int | None


class EstimateResponse(_Record):
    """A worker's answer: what the run would take there, beside the network itself; or why there would be none."""

    device: str
    network: str  # whose figures these are
    scales: list[ScaleEstimate] = []
    refused: JobError | None = None


class ServiceLoad(_Record):
    """What the service has to do."""

    queued: int
    running: int
    workers: int
    average_job_seconds: (
        float | None
    )  # that a job runs, a moving average; None before the first has ended
    remaining_seconds: float  # until all that runs now is over

    def start_seconds(self, position: int) -> float | None:
        """Until the job at this place begins. None where nobody can tell."""
        if not self.workers or self.average_job_seconds is None:
            return None
        free = position < self.workers - self.running
        return (
            0.0
            if free
            else (self.remaining_seconds + max(0, position) * self.average_job_seconds)
            / self.workers
        )


class Job(_Record):
    """The whole of what a client may know of a job."""

    id: str
    status: Status
    version: int
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None
    expires_at: datetime | None
    deadline_at: datetime | None
    pinned: bool
    priority: Priority
    attempt: int
    max_attempts: int
    retried_from: str | None
    reused_from: str | None
    batch_id: str | None = None
    cancel_requested: bool
    input: JobInput
    queue: QueuePosition | None
    progress: JobProgress | None
    preview: str | None
    outputs: list[Output]
    model: ModelUsed | None
    error: JobError | None
    metrics: dict[str, float]
    images_deleted: bool = Field(
        False, exclude=True
    )  # it has expired: its pictures are no longer kept
    checkpoint: str | None = Field(None, exclude=True)  # where the next attempt goes on
    frames: int = Field(0, exclude=True)  # that were ever kept
    frame_thinnings: int = Field(0, exclude=True)  # how often every other frame went
    spec_update_count: int = Field(0, exclude=True)  # how often its spec was changed
    owner: str = Field(LOCAL_OWNER, exclude=True)
    webhook: str | None = Field(None, exclude=True)

    @property
    def has_ended(self) -> bool:
        """An ended job never changes."""
        return self.status.has_ended


class Batch(_Record):
    """Jobs that were submitted together, in their order; those that were deleted since are missing."""

    id: str
    created_at: datetime
    counts: dict[Status, int]  # of every status
    jobs: Sequence[Job]

    @classmethod
    def of(cls, batch_id: str, jobs: Sequence[Job]) -> Self:
        """One or more."""
        counts = Counter(job.status for job in jobs)
        created_at = min(job.created_at for job in jobs)
        return cls(
            id=batch_id,
            created_at=created_at,
            counts={status: counts[status] for status in Status},
            jobs=jobs,
        )

    @property
    def has_ended(self) -> bool:
        """Whether all of them have."""
        return all(job.status.has_ended for job in self.jobs)


def new_job_id() -> str:
    """128 random bits: nobody guesses a job."""
    return _new_id("job")


def new_batch_id() -> str:
    """As unguessable as a job's."""
    return _new_id("batch")


def _new_id(kind: str) -> str:
    return f"{kind}_" + b32encode(secrets.token_bytes(16)).decode().rstrip("=").lower()


def is_job_id(text: str) -> bool:
    """Whether this could be a job's id at all; anything else needs no look-up."""
    return text.startswith("job_") and _ID.fullmatch(text) is not None


def is_batch_id(text: str) -> bool:
    """The same for a batch."""
    return text.startswith("batch_") and _ID.fullmatch(text) is not None


def parse_timestamp(milliseconds: Any) -> datetime | None:
    """The store's clock (ms since 1970) as a UTC time; None for what has not happened."""
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC) if milliseconds else None
