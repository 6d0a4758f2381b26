"""The job models: what a client submits, what a client sees, and the legal status transitions.

Knows nothing of Redis, Celery or HTTP. Only the store (store.py and scripts/) changes a job.
"""

import re
import secrets
from base64 import b32encode
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any, Literal, NamedTuple, Self

from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from core import errors
from core.images.transparency import Background
from core.style.limits import SIZE_CLASSES
from core.style.spec import MAX_SIZE_PX, SpecUpdate, parse_spec

MAX_ATTEMPTS = 3  # lost attempts in a row, without a new checkpoint, before the job fails
MAX_SPEC_UPDATES = 200  # per job
MAX_FRAMES = 60  # per job; beyond it, every other frame is dropped
# Of a job's record. A process leaves queued jobs of a later format to the processes that know it.
RECORD_FORMAT = 1  # scripts/lanes.lua has it as well
NO_POOL = ""  # of a job that any worker may run that is not dedicated
_ID = re.compile(r"(job|batch)_[a-z2-7]{26}")
LABEL_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}(=[A-Za-z0-9._-]{1,32})?"
Label = Annotated[str, StringConstraints(pattern=rf"^{LABEL_PATTERN}$")]


class Status(StrEnum):
    """The state of a job. TRANSITIONS lists the legal changes."""

    # Enters when it is created or released, or when its worker is lost.
    # Leaves when it is claimed or canceled, or when its deadline passes.
    QUEUED = "queued"
    # Enters when a worker claims it and renews the lease.
    # Leaves when the worker ends it, or when the lease expires.
    RUNNING = "running"
    SUCCEEDED = "succeeded"  # ended: has a result
    FAILED = "failed"  # ended: has an error
    CANCELED = "canceled"  # ended: a client canceled it
    EXPIRED = "expired"  # ended: no worker started or resumed it before its deadline

    @property
    def has_ended(self) -> bool:
        """Whether the status is final; an ended job never changes."""
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


class JobImages(NamedTuple):
    """The decoded pictures of a job."""

    content: Image.Image
    styles: list[Image.Image]
    masks: list[Image.Image]
    style_masks: list[Image.Image]
    init: Image.Image | None
    alpha: Image.Image | None  # of the content, mode L, if the result is to have it


def number_parts(field: str, count: int) -> list[str]:
    """Return the names of the pictures that a form sends in one field: style 1, style 2."""
    return [f"{field} {number}" for number in range(1, count + 1)] if count > 1 else [field] * count


def background_of(part: str, background: Background, transparency: str) -> Background:
    """Return what a job's picture is composited on. The others are parameters of the job's spec."""
    # A result that continues has painted colors under the alpha that it gets again.
    is_painted = part == "init_image" and transparency == "keep"
    return "none" if is_painted else background


class JobInput(_Record):
    """What the client submitted: image digests, and the spec with every default filled in."""

    content: str
    styles: list[str]
    masks: list[str] = []
    style_masks: list[str] = []
    init_image: str | None = None
    # As it was accepted. A later version shows it unchanged, even if it reads it differently.
    spec: dict[str, Any]

    def digests(self) -> list[str]:
        """All images that the job needs."""
        digests = [self.content, *self.styles, *self.masks, *self.style_masks]
        if self.init_image:
            digests.append(self.init_image)
        return digests

    def list_warnings(self, of_digest: Mapping[str, Sequence[str]]) -> list[str]:
        """Return the warnings of the pictures, each with the name of the picture."""
        fields = {
            "content": [self.content],
            "style": self.styles,
            "mask": self.masks,
            "style_mask": self.style_masks,
            "init_image": [self.init_image] if self.init_image else [],
        }
        return [
            f"{part}: {warning}"
            for field, digests in fields.items()
            for part, digest in zip(number_parts(field, len(digests)), digests, strict=True)
            for warning in of_digest.get(digest, ())
        ]

    def load_images(self, decode: Callable[..., Image.Image]) -> "JobImages":
        """Read and decode the pictures, large ones reduced (`codec.REDUCTION`).

        decode: has the signature of `codec.decode`, but takes a digest instead of bytes.
        Raises BadImage, which names the picture, and whatever `decode` raises.
        """
        # A job of an earlier version has no such parameters.
        background = self.spec.get("background", "auto")
        transparency = self.spec.get("transparency", "flatten")
        keep_alpha = transparency == "keep"
        # A larger picture only takes time and memory. Each side stays twice as long as
        # needed, so that what is reduced twice looks the same.
        photo_px = 2 * self.spec.get("size", MAX_SIZE_PX)
        painting_px = round(photo_px * max(1, self.spec.get("style_scale", 1)))

        def load(part: str, digest: str, **options: Any) -> Image.Image:
            try:
                return decode(digest, background_of(part, background, transparency), **options)
            except (errors.BadImage, errors.UploadTooLarge) as error:
                raise error.about(part) from error

        def load_all(field: str, digests: list[str], **options: Any) -> list[Image.Image]:
            parts = number_parts(field, len(digests))
            return [
                load(part, digest, **options) for part, digest in zip(parts, digests, strict=True)
            ]

        content = load("content", self.content, keep_alpha=keep_alpha, min_side_px=photo_px)
        alpha = content.getchannel("A") if content.mode == "RGBA" else None
        masks, style_masks = (
            [mask.convert("L") for mask in load_all(field, digests, mask=True)]
            for field, digests in (("mask", self.masks), ("style_mask", self.style_masks))
        )
        init = load("init_image", self.init_image, any_size=True) if self.init_image else None
        styles = load_all("style", self.styles, min_side_px=painting_px)
        return JobImages(content.convert("RGB"), styles, masks, style_masks, init, alpha)

    def with_updates(self, parameters: Mapping[str, Any]) -> "JobInput":
        """Return a copy with these spec parameters changed. Raises BadSpec."""
        spec = parse_spec(self.spec).with_updates(parameters)
        return self.model_copy(update={"spec": spec.model_dump()})

    def provenance(self, model: "ModelUsed") -> dict[str, Any]:
        """The metadata that a result's PNG carries, whether a service or the CLI made it."""
        return {"program": "impasto", **self.model_dump(), "model": model.model_dump()}

    @classmethod
    def from_provenance(cls, provenance: Mapping[str, Any] | None) -> "JobInput":
        """Parse the metadata of `provenance` from an untrusted file. Raises InvalidProvenance."""
        try:
            return cls.model_validate(provenance)
        except ValidationError as error:
            raise errors.InvalidProvenance() from error


class Priority(StrEnum):
    """Which jobs run first. Within one priority, owners take turns."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


LOCAL_OWNER = "local"  # owns all jobs of a service without API keys


class SubmissionOptions(_Record):
    """What a client may choose about a job besides its pictures and parameters."""

    model_config = ConfigDict(extra="forbid")

    priority: Priority = Field(
        Priority.NORMAL,
        title="Priority",
        description="Queued jobs with a higher priority run first: high, normal or low.",
    )
    deadline_seconds: float | None = Field(
        None,
        gt=0,
        le=30 * 86_400,
        allow_inf_nan=False,
        title="Time limit in seconds",
        description="Seconds after which the job ends in any case, at most 2592000 (30 days).",
    )
    reuse: bool = Field(
        False,
        title="Reuse an earlier result",
        description="Return the result of an earlier job of yours, if one has the same pictures, "
        "parameters and network.",
    )
    webhook: str | None = Field(
        None,
        title="Webhook",
        description="A URL, https://…, that receives a POST request when the job ends.",
    )
    pool: Label | None = Field(
        None,
        title="Pool",
        description="Only workers with this label run the job, for example team=a.",
    )


class SubmissionContext(_Record):
    """What the service adds to a submission."""

    owner: str = LOCAL_OWNER
    # How long images stay after the end of the job; 0: no limit.
    result_retention_seconds: float = 0
    idempotency_key: str | None = None
    # The hash of the request. With a repeated key, only the same request returns the same job.
    request_hash: str | None = None
    retried_from: str | None = None
    batch_id: str | None = None
    picture_bytes: dict[str, int] = {}  # of the pictures, by digest
    picture_sizes: dict[str, tuple[int, int]] = {}  # (width, height) in px, by digest
    picture_warnings: dict[str, list[str]] = {}  # what is doubtful about them, by digest
    root_path: str = ""  # of the request: the webhook's links begin with it
    traceparent: str | None = None  # the request's trace, to which the job's spans belong


class QueueLimits(_Record):
    """How many unfinished jobs the store accepts; None means no limit."""

    queued: int | None = None  # of all owners
    per_owner: int | None = None  # queued and running
    pending_bytes: int | None = None  # of the pictures of these, each counted once


class JobProgress(_Record):
    """The progress of a run. Iterations count over all scales; `loss` maps names to values."""

    value: float
    scale: int
    scales: int
    iteration: int
    iterations: int
    iterations_per_second: float | None
    seconds_left: float | None
    loss: dict[str, float]
    spec_updates: list[SpecUpdate] = []
    style_crops: list[tuple[int, int, int, int] | None] = Field(
        [],
        description="For each style picture the box inside its frame that the run uses: left, "
        "top, right and bottom in px of the upright picture; null if it is used whole. Empty if "
        "all are.",
    )


class Frame(_Record):
    """A small intermediate image. Its index stays the same when other frames are dropped."""

    index: int
    iteration: int
    scale: int
    seconds: float
    digest: str = Field("", exclude=True)  # not shown to clients


class Output(_Record):
    """A finished image."""

    id: str
    content_type: str
    width: int
    height: int
    size_bytes: int


class ModelUsed(_Record):
    """The network and the weights that made a result."""

    name: str
    sha256: str


class JobError(_Record):
    """Why a job failed: a stable code and a sentence; a reason, where the code has several."""

    code: str
    message: str
    reason: str | None = None

    @classmethod
    def of(cls, error: errors.ImpastoError) -> Self:
        """Return the record of an error."""
        return cls(code=error.code, message=error.message, reason=error.reason)


class QueuePosition(_Record):
    """A queued job's position (0 is next) and the estimated seconds until it starts.

    start_seconds: from the recent average run time, the workers that may take the job, and the jobs
    of its pool before it; None while there is no such worker, and before the first job has ended.
    waits_for: what it lacks beside its turn: a live worker in its `pool`, or one with enough
    `memory` (one was there within the hour); else None.
    has_worker: whether a live worker may take the job.
    """

    position: int
    start_seconds: float | None = None
    waits_for: Literal["pool", "memory"] | None = None
    has_worker: bool = False


class WorkerInfo(_Record):
    """A worker's description of itself."""

    device: str  # as its driver names it
    precision: str  # of the network
    network: str  # the one that `auto` resolves to
    networks: list[str]  # those whose weights are present
    max_size_px: int | None = None  # the largest of SIZE_CLASSES that its memory holds, or 0


class WorkerReport(WorkerInfo):
    """What a worker tells the store: its description, and which jobs it takes.

    id: how the operator names it; workers with the same id are paused together. pools: its labels,
    and NO_POOL unless it is dedicated to them.
    """

    id: str = ""
    pools: list[str] = [NO_POOL]

    @classmethod
    def of_unknown(cls) -> Self:
        """A worker that tells nothing: it takes every job without a pool."""
        return cls(device="", precision="", network="", networks=[])

    @property
    def claim_size_px(self) -> int:
        """Up to which size it takes jobs."""
        return SIZE_CLASSES[-1] if self.max_size_px is None else self.max_size_px


class WorkerUse(_Record):
    """What a worker uses of its device now. The memory is that of the device, or of the process."""

    device: str  # its kind, and a card's index or UUID: cpu, cuda:0
    memory_used_bytes: int = 0
    memory_total_bytes: int = 0
    utilization: float | None = None  # 0 to 1; None: not known
    iterations_per_second: float = 0.0  # 0 while no job runs


class WorkCounts(_Record):
    """What a worker has done since its last heartbeat."""

    iterations: int = 0
    evaluations: int = 0  # forward and backward passes of the network
    evaluated_pixels: int = 0

    def __add__(self, other: "WorkCounts") -> "WorkCounts":
        return WorkCounts(
            iterations=self.iterations + other.iterations,
            evaluations=self.evaluations + other.evaluations,
            evaluated_pixels=self.evaluated_pixels + other.evaluated_pixels,
        )


class EstimateRequest(_Record):
    """The question how long a run would take. Sizes are (width, height) in px."""

    content: tuple[int, int]
    styles: list[tuple[int, int]]
    masks: int
    init: tuple[int, int] | None = None
    spec: dict[str, Any]


class ScaleEstimate(_Record):
    """The cost of one scale of a run. tile_px: side of its tiles; None: it runs untiled."""

    width: int
    height: int
    iterations: int
    seconds: float
    memory_bytes: int
    tile_px: int | None


class EstimateResponse(_Record):
    """A worker's answer: the cost of the run without the network itself, or the refusal."""

    device: str
    network: str  # the one that the figures are for
    scales: list[ScaleEstimate] = []
    refused: JobError | None = None


class ServiceLoad(_Record):
    """The current load of the service."""

    queued: int
    running: int
    workers: int
    average_job_seconds: float | None  # moving average; None before the first job has succeeded


class Job(_Record):
    """A job as the store returns it. Fields with `exclude` are internal: clients never see them."""

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
    pool: str | None = None
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
    warnings: list[str] = Field(
        [],
        description="What is doubtful about the pictures, in sentences that name them.",
    )
    images_deleted: bool = Field(False, exclude=True)  # the retention time of its images is over
    checkpoint: str | None = Field(None, exclude=True)  # the next attempt resumes from it
    frames: int = Field(0, exclude=True)  # how many were ever added
    frame_thinnings: int = Field(0, exclude=True)  # how often every other frame was dropped
    spec_update_count: int = Field(0, exclude=True)
    owner: str = Field(LOCAL_OWNER, exclude=True)
    webhook: str | None = Field(None, exclude=True)
    root_path: str = Field("", exclude=True)  # the webhook's links begin with it
    claimed_at: datetime | None = Field(None, exclude=True)  # by the newest attempt
    traceparent: str | None = Field(None, exclude=True)  # of the request that submitted the job

    @property
    def has_ended(self) -> bool:
        """Whether the status is final; an ended job never changes."""
        return self.status.has_ended


class Batch(_Record):
    """The jobs of one batch submission, in order, without those that were deleted since."""

    id: str
    created_at: datetime
    counts: dict[Status, int]  # has every status as a key
    jobs: Sequence[Job]
    warnings: list[str] = Field(
        [],
        description="What is doubtful about the pictures; only in the answer to the submission.",
    )

    @classmethod
    def from_jobs(cls, batch_id: str, jobs: Sequence[Job]) -> Self:
        """Summarize one or more jobs."""
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
        """Whether all its jobs have ended."""
        return all(job.status.has_ended for job in self.jobs)


def new_job_id() -> str:
    """Return a new random job id of 128 bits, which cannot be guessed."""
    return _new_id("job")


def new_batch_id() -> str:
    """Return a new random batch id of 128 bits."""
    return _new_id("batch")


def _new_id(kind: str) -> str:
    return f"{kind}_" + b32encode(secrets.token_bytes(16)).decode().rstrip("=").lower()


def is_job_id(text: str) -> bool:
    """Whether the text has the form of a job id; other text needs no lookup."""
    return text.startswith("job_") and _ID.fullmatch(text) is not None


def is_batch_id(text: str) -> bool:
    """Whether the text has the form of a batch id."""
    return text.startswith("batch_") and _ID.fullmatch(text) is not None


def parse_timestamp(milliseconds: Any) -> datetime | None:
    """Convert the store's clock (ms since 1970) to UTC; None if there is no time."""
    if not milliseconds:
        return None
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)
