"""What there is: GET /v1/system, GET /v1/models, GET /metrics. Tells nothing of callers, nor of their jobs."""

from collections import Counter
from importlib.metadata import version

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from api import metrics
from api.dependencies import Configuration, Store
from api.settings import ApiSettings
from api.submissions.parser import BODY_BYTES
from core.images import validation
from core.jobs.service_info import ModelInfo, ModelList, ServiceLimits, SystemInfo, WorkerStatus
from core.style.spec import MAX_SIZE_PX, MAX_STYLES, MIN_SIZE_PX

router = APIRouter(tags=["system"])

FETCHED = ("vgg16", "vgg19")  # that any worker may have by one command


def limits_of(config: ApiSettings) -> ServiceLimits:
    """Of what may be sent, and how much may wait."""
    return ServiceLimits(
        formats=[*validation.FORMATS],
        max_file_bytes=validation.MAX_BYTES,
        max_request_bytes=BODY_BYTES,
        max_pixels=validation.MAX_PIXELS,
        max_webp_pixels=validation.MAX_PIXELS_WEBP,
        max_side_px=validation.MAX_SIDE_PX,
        min_side_px=validation.MIN_SIDE_PX,
        max_aspect=validation.MAX_ASPECT,
        min_size=MIN_SIZE_PX,
        max_size=MAX_SIZE_PX,
        max_styles=MAX_STYLES,
        max_queued=config.max_queued,
        max_jobs_per_caller=config.max_jobs_per_caller,
    )


@router.get("/v1/system", summary="Who works, what waits, what is taken")
def system(store: Store, config: Configuration) -> SystemInfo:
    """Workers with device and network, the queue's length, the version, and the limits of a submission."""
    load = store.get_load()
    return SystemInfo(
        version=version("impasto"),
        queued=load.queued,
        running=load.running,
        average_job_seconds=load.average_job_seconds,
        workers=[WorkerStatus(busy=busy, info=info) for info, busy in store.list_workers()],
        limits=limits_of(config),
    )


@router.get("/v1/models", summary="The networks")
def models(store: Store) -> ModelList:
    """What can be named as `model`. One that no worker has fails with `weights_unavailable`."""
    workers = [info for info, _ in store.list_workers() if info is not None]
    having = Counter(name for info in workers for name in info.networks)
    having.update(dict.fromkeys(FETCHED, 0))
    resolves_to = sorted({info.network for info in workers})
    named = [ModelInfo(name=name, workers=having[name]) for name in sorted(having)]
    return ModelList(
        models=[ModelInfo(name="auto", workers=len(workers), resolves_to=resolves_to), *named]
    )


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
    summary="Figures for Prometheus",
)
def figures(store: Store) -> Response:
    """Requests of this process; queue, workers and ends of the service."""
    return Response(
        generate_latest(metrics.REQUESTS) + metrics.of_service(store),
        media_type=CONTENT_TYPE_LATEST,
    )
