"""POST /v1/estimate: what a job would take, before it is submitted. A worker works it out; no torch is loaded here."""

from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from api.dependencies import Blobs, Owner, Store
from api.routes.images import inspect, resolve_digest
from api.submissions.parser import parameters_schema
from core import errors
from core.images.validation import MAX_SIDE_PX, MIN_SIDE_PX
from core.jobs.models import EstimateRequest, QueuePosition
from core.jobs.service_info import Estimate
from core.jobs.store import JobStore
from core.style.spec import MAX_STYLES, parse_spec, result_size

WAIT_SECONDS = 5.0
_BODY_BYTES = 100_000

# Questions at a time; each waits in a thread.
_ASKING = CapacityLimiter(8)

router = APIRouter(prefix="/v1/estimate", tags=["system"])

Side = Annotated[int, Field(ge=MIN_SIDE_PX, le=MAX_SIDE_PX)]


class Size(BaseModel):
    """Of a picture, turned upright, in px."""

    width: Side
    height: Side


Picture = Size | str  # its size will do, or the digest of an upload
Pictures = Annotated[list[Picture], Field(max_length=MAX_STYLES)]


class EstimateBody(BaseModel):
    """The JSON of a submission, with sizes where there are no pictures yet. What it has beside does not matter."""

    model_config = ConfigDict(extra="ignore")

    content: Picture
    styles: Annotated[Pictures, Field(min_length=1)]
    masks: Pictures = []
    init_image: Picture | None = None
    spec: dict[str, Any] = Field(
        {}, description="Parameters, as in a submission.", json_schema_extra=parameters_schema()
    )


@router.post("", summary="How long would it take?", max_body_size=_BODY_BYTES)
async def estimate(sketch: EstimateBody, owner: Owner, store: Store, blobs: Blobs) -> Estimate:
    """The plan that a worker would follow: its seconds and its memory; and the queue's."""
    spec = parse_spec(sketch.spec)
    spec = spec.for_pictures(
        len(sketch.styles), len(sketch.masks), init_image=sketch.init_image is not None
    )
    content, *styles = [
        await _size(picture, owner, store, blobs) for picture in (sketch.content, *sketch.styles)
    ]
    width, height = result_size(*content, spec.size, seamless=spec.seamless)
    load = await run_in_threadpool(store.get_load)
    if not load.workers:
        raise errors.NoWorker()
    if not _ASKING.available_tokens:
        raise errors.Unavailable("Too many estimates are asked for; try again in a few seconds.")
    question = EstimateRequest(
        content=content, styles=styles, masks=len(sketch.masks), spec=spec.model_dump()
    )
    forecast = await to_thread.run_sync(
        JobStore.request_estimate, store, question, WAIT_SECONDS, limiter=_ASKING
    )
    if forecast is None:
        raise errors.NoWorker("No worker has answered in time; try again in a few seconds.")
    scales = forecast.scales
    return Estimate(
        seconds=round(sum(scale.seconds for scale in scales), 1) if scales else None,
        memory_bytes=max((scale.memory_bytes for scale in scales), default=None),
        width=width,
        height=height,
        scales=scales,
        refused=forecast.refused,
        device=forecast.device,
        network=forecast.network,
        queue=QueuePosition(position=load.queued, start_seconds=load.start_seconds(load.queued)),
    )


async def _size(picture: Picture, owner: str, store: JobStore, blobs: Blobs) -> tuple[int, int]:
    """Raises ImageNotFound."""
    if isinstance(picture, Size):
        return picture.width, picture.height
    await run_in_threadpool(resolve_digest, picture, owner, store, blobs)
    return await inspect(blobs.path(picture))
