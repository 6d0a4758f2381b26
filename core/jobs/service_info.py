"""Models that describe the service and the cost of a job: the API fills them, clients read them.

Knows no HTTP and defines no limit itself.
"""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

from core.jobs.models import JobError, QueuePosition, ScaleEstimate, WorkerInfo
from core.jobs.store_report import StoreReport


class _ServiceModel(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


SuspensionKind = Literal["paused", "draining", "out_of_service"]


class Suspension(_ServiceModel):
    """Why a worker takes no jobs.

    paused: its process stays. draining: its process ends after its job; with `release` it hands the
    job back at once. out_of_service: its device is broken or gone, as `reason` says.
    """

    kind: SuspensionKind
    since: datetime
    reason: str = ""
    device: str = ""
    release: bool = False


class WorkerState(_ServiceModel):
    """A worker and the job that it runs.

    id: of its device, for pause, drain and resume; name: of its process. pools: whose jobs it
    takes; "" for jobs without a pool. suspension: why it takes none. A worker that is suspended and
    has no live process has neither a name nor a heartbeat.
    """

    id: str = ""
    name: str = ""
    info: WorkerInfo | None = None
    pools: list[str] = []
    suspension: Suspension | None = None
    seconds_since_heartbeat: float | None = None
    job_id: str | None = None
    owner: str | None = None
    progress: float | None = None  # 0 to 1


class WorkerList(_ServiceModel):
    """All live workers, and those that are suspended."""

    workers: list[WorkerState]


class WorkerStatus(_ServiceModel):
    """One live worker. `info` is null until its first heartbeat with a description."""

    busy: bool
    info: WorkerInfo | None


class BrokenDevice(_ServiceModel):
    """A device that its host has taken out of service, because it fails or is missing."""

    device: str
    since: datetime


class ServiceLimits(_ServiceModel):
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
    default_size: int | None = None  # None: a service of an earlier version
    max_iterations: int | None = None  # None: a service of an earlier version
    max_job_seconds: float | None = None  # of a run; None: no limit
    max_styles: int
    max_queued: int
    max_jobs_per_caller: int


class SystemInfo(_ServiceModel):
    """The service as a whole."""

    version: str
    queued: int
    running: int
    average_job_seconds: float | None  # recent average run time
    workers: list[WorkerStatus]
    limits: ServiceLimits
    store: StoreReport | None = None  # None: a service of an earlier version
    intake_paused_at: datetime | None = None  # since when the operator accepts no new jobs
    # The estimated seconds that one worker would take for all queued jobs.
    queue_work_seconds: float | None = None  # None: a service of an earlier version
    out_of_service: list[BrokenDevice] = []


class Readiness(_ServiceModel):
    """Whether the service can accept, run and keep a job. reason: the first failure."""

    ready: bool
    reason: str | None = None
    checks: dict[str, str] = {}  # by name: ok, or what fails
    warnings: list[str] = []  # for the operator: the service works all the same


class ModelInfo(_ServiceModel):
    """A network that a job may name as its `model`, and how many live workers have it."""

    name: str
    workers: int
    resolves_to: list[str] = []  # only for `auto`: the networks that live workers use for it


class ModelList(_ServiceModel):
    """All models that a job may name."""

    models: list[ModelInfo]


class Estimate(_ServiceModel):
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
