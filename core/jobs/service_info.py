"""What a service tells of itself, and of work before it is submitted: made by the API, read by its clients.

Knows no HTTP, and no figure of its own.
"""

from pydantic import BaseModel, ConfigDict

from core.jobs.models import JobError, QueuePosition, ScaleEstimate, WorkerInfo


class _Told(BaseModel):
    model_config = ConfigDict(frozen=True, protected_namespaces=())


class WorkerStatus(_Told):
    """One worker. What it is, is null until it has said so."""

    busy: bool
    info: WorkerInfo | None


class ServiceLimits(_Told):
    """What a client needs to know before it sends a picture."""

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
    max_styles: int
    max_queued: int
    max_jobs_per_caller: int


class SystemInfo(_Told):
    """The service as a whole."""

    version: str
    queued: int
    running: int
    average_job_seconds: float | None  # that a job runs, of late
    workers: list[WorkerStatus]
    limits: ServiceLimits


class ModelInfo(_Told):
    """A network that a job may name as its `model`, and how many live workers have it."""

    name: str
    workers: int
    resolves_to: list[str] = []  # of auto: the networks that it is on live workers


class ModelList(_Told):
    """All of them."""

    models: list[ModelInfo]


class Estimate(_Told):
    """What the run would take beside the network itself, and when it would begin if it were submitted now.

    refused: why it would fail; there are no figures then.
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
