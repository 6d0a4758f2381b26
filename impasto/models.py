"""What a service answers, as frozen dataclasses, and how they are read from JSON.

Fields that this version does not know are ignored. A field with a default may be missing in the
answer of an earlier version. The service's own models are in core/jobs/; a test compares them.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from datetime import datetime
from enum import StrEnum
from functools import cache
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

Format = Literal["png", "jpeg", "webp"]  # of results


class Status(StrEnum):
    """The state of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"  # ended: has a result
    FAILED = "failed"  # ended: has an error
    CANCELED = "canceled"  # ended: a client canceled it
    EXPIRED = "expired"  # ended: no worker started or resumed it before its deadline

    @property
    def has_ended(self) -> bool:
        """Whether the status is final; an ended job never changes."""
        return self not in (Status.QUEUED, Status.RUNNING)


class Priority(StrEnum):
    """Which jobs run first."""

    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


@dataclass(frozen=True, kw_only=True)
class JobInput:
    """What was submitted: image digests, and the spec with every default filled in."""

    content: str
    styles: list[str]
    masks: list[str]
    style_masks: list[str]
    init_image: str | None
    spec: dict[str, Any]

    def digests(self) -> list[str]:
        """All images that the job needs."""
        digests = [self.content, *self.styles, *self.masks, *self.style_masks]
        return [*digests, self.init_image] if self.init_image else digests


@dataclass(frozen=True, kw_only=True)
class QueuePosition:
    """The position of a queued job, 0 is next, and the estimated seconds until it starts.

    waits_for: "pool" or "memory" if there is no live worker for the job; else None.
    has_worker: whether a live worker may take it; True if the service does not say.
    """

    position: int
    start_seconds: float | None = None
    waits_for: str | None = None
    has_worker: bool = True


@dataclass(frozen=True, kw_only=True)
class SpecUpdate:
    """A change of weights that a run has applied, and the iteration after which it did."""

    iteration: int
    before: dict[str, Any]
    after: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class JobProgress:
    """The progress of a run, `value` from 0 to 1. Iterations count over all scales.

    style_crops: for each style picture the box inside its frame that the run uses, [left, top,
    right, bottom] in px of the upright picture, or None if it is used whole; empty if all are.
    """

    value: float
    scale: int
    scales: int
    iteration: int
    iterations: int
    iterations_per_second: float | None
    seconds_left: float | None
    loss: dict[str, float]
    spec_updates: list[SpecUpdate]
    style_crops: list[list[int] | None] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A small intermediate image. Its index stays the same when other frames are dropped."""

    index: int
    iteration: int
    scale: int
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Output:
    """A finished image; `id` is its digest."""

    id: str
    content_type: str
    width: int
    height: int
    size_bytes: int


@dataclass(frozen=True, kw_only=True)
class ModelUsed:
    """The network and the weights that made a result."""

    name: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class JobError:
    """Why a job failed: a stable code and a sentence; a reason, where the code has several."""

    code: str
    message: str
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Job:
    """A job. Times are UTC."""

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
    pool: str | None = None
    cancel_requested: bool
    input: JobInput
    queue: QueuePosition | None
    progress: JobProgress | None
    preview: str | None
    outputs: list[Output]
    model: ModelUsed | None
    error: JobError | None
    metrics: dict[str, float]
    warnings: list[str] = field(default_factory=list)  # about the pictures

    @property
    def has_ended(self) -> bool:
        """Whether the status is final; an ended job never changes."""
        return self.status.has_ended


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The jobs of one batch submission, in order, without those that were deleted since."""

    id: str
    created_at: datetime
    counts: dict[Status, int]  # has every status as a key
    jobs: list[Job]
    # About the pictures; only in the answer to the submission.
    warnings: list[str] = field(default_factory=list)

    @property
    def has_ended(self) -> bool:
        """Whether all its jobs have ended."""
        return all(job.has_ended for job in self.jobs)


@dataclass(frozen=True, kw_only=True)
class ScaleEstimate:
    """The cost of one scale of a run. tile_px: side of its tiles; None: it runs untiled."""

    width: int
    height: int
    iterations: int
    seconds: float
    memory_bytes: int
    tile_px: int | None


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The cost of a run, without the network itself, and when it would start if submitted now.

    refused: why the job would fail; then there are no figures.
    """

    seconds: float | None
    memory_bytes: int | None
    width: int
    height: int
    scales: list[ScaleEstimate]
    refused: JobError | None
    device: str
    network: str
    queue: QueuePosition


@dataclass(frozen=True, kw_only=True)
class WorkerInfo:
    """A worker's description of itself."""

    device: str
    precision: str
    network: str
    networks: list[str]
    max_size_px: int | None = None  # the largest size that its memory holds, by classes; or 0


@dataclass(frozen=True, kw_only=True)
class Suspension:
    """Why a worker takes no jobs: kind is paused, draining or out_of_service."""

    kind: str
    since: datetime
    reason: str = ""
    device: str = ""
    release: bool = False


@dataclass(frozen=True, kw_only=True)
class WorkerState:
    """A worker and the job that it runs, as the operator sees it.

    id: of its device, for pause, drain and resume; name: of its process. pools: whose jobs it
    takes; "" for jobs without a pool. progress: 0 to 1.
    """

    id: str = ""
    name: str = ""
    info: WorkerInfo | None = None
    pools: list[str] = field(default_factory=list)
    suspension: Suspension | None = None
    seconds_since_heartbeat: float | None = None
    job_id: str | None = None
    owner: str | None = None
    progress: float | None = None


@dataclass(frozen=True, kw_only=True)
class WorkerList:
    """All live workers, and those that are suspended."""

    workers: list[WorkerState]


@dataclass(frozen=True, kw_only=True)
class BrokenDevice:
    """A device that its host has taken out of service, because it fails or is missing."""

    device: str
    since: datetime


@dataclass(frozen=True, kw_only=True)
class WorkerStatus:
    """One live worker. `info` is None until its first heartbeat with a description."""

    busy: bool
    info: WorkerInfo | None


@dataclass(frozen=True, kw_only=True)
class ServiceLimits:
    """The limits that a client must know before it sends an image."""

    formats: list[str]
    max_file_bytes: int
    max_request_bytes: int
    max_pixels: int
    max_webp_pixels: int
    max_side_px: int
    min_side_px: int
    max_aspect: int
    min_size: int
    max_size: int
    default_size: int | None = None
    max_iterations: int | None = None
    max_job_seconds: float | None = None  # of a run; None: no limit
    max_styles: int
    max_queued: int
    max_jobs_per_caller: int


@dataclass(frozen=True, kw_only=True)
class StoreReport:
    """Whether the service's store keeps accepted jobs (docs/operations.md)."""

    problems: list[str]
    risks: list[str] = field(default_factory=list)
    unchecked: list[str]
    identity: str


@dataclass(frozen=True, kw_only=True)
class SystemInfo:
    """The service as a whole."""

    version: str
    queued: int
    running: int
    average_job_seconds: float | None  # recent average run time
    workers: list[WorkerStatus]
    limits: ServiceLimits
    store: StoreReport | None = None
    intake_paused_at: datetime | None = None  # since when the operator accepts no new jobs
    # The estimated seconds that one worker would take for all queued jobs.
    queue_work_seconds: float | None = None
    out_of_service: list[BrokenDevice] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Readiness:
    """Whether the service can accept, run and keep a job. reason: the first failure."""

    ready: bool
    reason: str | None = None
    checks: dict[str, str] = field(default_factory=dict)  # by name: ok, or what fails
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """A network that a job may name as its `model`, and how many live workers have it."""

    name: str
    workers: int
    # Only for `auto`: the networks that live workers use for it.
    resolves_to: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A named set of parameters, for `submit(preset=name)`."""

    name: str
    description: str
    spec: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Form:
    """Each parameter and option by its name, as a JSON schema with a title for people."""

    parameters: dict[str, dict[str, Any]]
    options: dict[str, dict[str, Any]]
    presets: list[Preset]
    limits: ServiceLimits


def parse(kind: Any, value: Any) -> Any:
    """Return the JSON value as `kind`: a dataclass of this module, or a type of its fields.

    Raises ValueError if the value has another form.
    """
    origin, args = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin is UnionType:  # T | None
        return None if value is None else parse(args[0], value)
    if origin is list:
        return [parse(args[0], item) for item in _require(list, value)]
    if origin is dict:
        items = _require(dict, value).items()
        return {parse(args[0], name): parse(args[1], item) for name, item in items}
    if is_dataclass(kind):
        return _parse_record(kind, _require(dict, value))
    if issubclass(kind, StrEnum):
        return kind(value)
    if kind is datetime:
        return datetime.fromisoformat(_require(str, value))
    if kind is float and type(value) is int:
        return float(value)
    return _require(kind, value)


def _parse_record(kind: Any, values: Mapping[str, Any]) -> Any:
    hints, given = _hints(kind), {}
    for one in fields(kind):
        if one.name in values:
            given[one.name] = parse(hints[one.name], values[one.name])
        elif one.default is MISSING and one.default_factory is MISSING:
            raise ValueError(f"{kind.__name__}: {one.name} is missing")
    return kind(**given)


_hints = cache(get_type_hints)


def _require(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise ValueError(f"a {kind.__name__} is expected")
    return value
