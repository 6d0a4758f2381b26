"""GET /v1/system, GET /v1/models, GET /metrics. Reveals nothing about callers or their jobs."""

from collections import Counter
from importlib.metadata import version

from fastapi import APIRouter, Request, Response

from api import dependencies, metrics
from api.dependencies import Configuration, Store
from api.settings import ApiSettings
from api.submissions.parser import BODY_BYTES
from core.images import validation
from core.jobs.service_info import (
    BrokenDevice,
    ModelInfo,
    ModelList,
    ServiceLimits,
    SystemInfo,
    WorkerStatus,
)
from core.style.limits import JobLimits
from core.style.spec import MAX_STYLES, MIN_SIZE_PX
from core.style.vgg_layers import DOWNLOADABLE_MODELS

router = APIRouter(tags=["system"])


def get_limits(config: ApiSettings, job_limits: JobLimits) -> ServiceLimits:
    """Return the limits of a submission and of the queue."""
    return ServiceLimits(
        formats=[*validation.INPUT_FORMATS],
        max_file_bytes=validation.MAX_BYTES,
        max_request_bytes=BODY_BYTES,
        max_pixels=validation.MAX_PIXELS,
        max_webp_pixels=validation.MAX_PIXELS_WEBP,
        max_side_px=validation.MAX_SIDE_PX,
        min_side_px=validation.MIN_SIDE_PX,
        max_aspect=validation.MAX_ASPECT,
        min_size=MIN_SIZE_PX,
        max_size=job_limits.size_px,
        default_size=job_limits.default_size_px,
        max_iterations=job_limits.iterations,
        max_job_seconds=job_limits.seconds or None,
        max_styles=MAX_STYLES,
        max_queued=config.max_queued,
        max_jobs_per_caller=config.max_jobs_per_caller,
    )


@router.get("/v1/system", summary="Workers, queue and limits")
def get_system(
    store: Store, config: Configuration, job_limits: dependencies.JobLimits
) -> SystemInfo:
    """Return the workers with device and network, queue length, version, limits, and the store."""
    load = store.get_load()
    return SystemInfo(
        version=version("impasto"),
        queued=load.queued,
        running=load.running,
        average_job_seconds=load.average_job_seconds,
        workers=[WorkerStatus(busy=busy, info=info) for info, busy in store.list_workers()],
        limits=get_limits(config, job_limits),
        store=store.monitor.check(),
        intake_paused_at=store.operations.get_intake_pause(),
        queue_work_seconds=round(store.get_queue_work_seconds(), 1),
        out_of_service=[
            BrokenDevice(device=suspension.device, since=suspension.since)
            for suspension in store.suspensions.list().values()
            if suspension.kind == "out_of_service"
        ],
    )


@router.get("/v1/models", summary="List the networks")
def list_models(store: Store) -> ModelList:
    """Return the valid values of `model`.

    A job of a network that no worker has is refused.
    """
    workers = [info for info, _ in store.list_workers() if info is not None]
    counts = Counter(name for info in workers for name in info.networks)
    counts.update(dict.fromkeys(DOWNLOADABLE_MODELS, 0))
    resolves_to = sorted({info.network for info in workers})
    named = [ModelInfo(name=name, workers=counts[name]) for name in sorted(counts)]
    return ModelList(
        models=[ModelInfo(name="auto", workers=len(workers), resolves_to=resolves_to), *named]
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    summary="Metrics for Prometheus",
)
def get_metrics(request: Request, store: Store) -> Response:
    """Return metrics of this process's requests and of the service's queue, workers and jobs."""
    accept = request.headers.get("accept", "")
    text, content_type = metrics.render(store, request.app.state.data_dir, accept)
    return Response(text, headers={"Content-Type": content_type})
