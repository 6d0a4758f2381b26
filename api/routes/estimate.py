"""POST /v1/estimate: the time and memory of a job before its submission."""

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from api.dependencies import Blobs, CurrentWaiter, JobLimits, Owner, Store
from api.schemas.submission import check_digest_form, parameters_schema
from api.submissions.estimates import PictureSizes, request_estimate
from api.submissions.pictures import check_digest, inspect_picture
from core import errors
from core.images.validation import MAX_SIDE_PX, MIN_SIDE_PX, check_dimensions
from core.jobs.models import (
    EstimateResponse,
    JobError,
    background_of,
    number_parts,
)
from core.jobs.service_info import Estimate
from core.style.spec import MAX_STYLES, parse_spec, result_size

_BODY_BYTES = 100_000

router = APIRouter(prefix="/v1/estimate", tags=["system"])

Side = Annotated[int, Field(ge=MIN_SIDE_PX, le=MAX_SIDE_PX)]


class Size(BaseModel):
    """The size of a picture in px, after its EXIF orientation is applied."""

    width: Side
    height: Side


PictureOrSize = Size | str  # a size, or the digest of an upload
PicturesOrSizes = Annotated[list[PictureOrSize], Field(max_length=MAX_STYLES)]


class EstimateBody(BaseModel):
    """The JSON of a submission; a picture is a digest or a size. Other fields are ignored."""

    model_config = ConfigDict(extra="ignore")

    content: PictureOrSize
    styles: Annotated[PicturesOrSizes, Field(min_length=1)]
    masks: PicturesOrSizes = []
    style_masks: PicturesOrSizes = []
    init_image: PictureOrSize | None = None
    spec: dict[str, Any] = Field(
        {}, description="Parameters, as in a submission.", json_schema_extra=parameters_schema()
    )


@router.post("", summary="Estimate a job", max_body_size=_BODY_BYTES)
async def estimate_job(
    *,
    body: EstimateBody,
    owner: Owner,
    waiter: CurrentWaiter,
    store: Store,
    blobs: Blobs,
    limits: JobLimits,
) -> Estimate:
    """Return the plan that a worker would follow: its scales, seconds and memory, and the queue."""
    spec = parse_spec(body.spec).for_pictures(
        len(body.styles),
        len(body.masks),
        len(body.style_masks),
        init_image=body.init_image is not None,
    )

    async def get_size(
        part: str, picture: PictureOrSize, *, any_size: bool = False
    ) -> tuple[int, int]:
        """Return (width, height) in px. Raises ImageNotFound; BadImage as an upload would."""
        if isinstance(picture, Size):
            if not any_size:
                check_dimensions((picture.width, picture.height), "png")
            return picture.width, picture.height
        check_digest_form(part, picture)
        await run_in_threadpool(check_digest, picture, owner, store, blobs)
        background = background_of(part, spec.background, spec.transparency)
        found = await inspect_picture(
            picture, part, background, blobs=blobs, waiter=waiter, any_size=any_size
        )
        return found.size

    content = await get_size("content", body.content)
    parts = number_parts("style", len(body.styles))
    styles = [await get_size(*named) for named in zip(parts, body.styles, strict=True)]
    init = None
    if body.init_image is not None:
        init = await get_size("init_image", body.init_image, any_size=True)
    spec = limits.clip_defaults(spec, body.spec, *content)
    limits.check_spec(spec, *content)
    width, height = result_size(*content, spec.size, seamless=spec.seamless)
    load = await run_in_threadpool(store.get_load)
    if not load.workers:
        raise errors.NoWorker()
    sizes = PictureSizes(content, styles, init)
    answer = await request_estimate(spec, sizes, len(body.masks), store, waiter)
    if answer is None:
        raise errors.NoWorker("No worker has answered in time; try again in a few seconds.")
    answer = _apply_limit(answer, limits)
    scales = answer.scales
    return Estimate(
        seconds=round(sum(scale.seconds for scale in scales), 1) if scales else None,
        memory_bytes=max((scale.memory_bytes for scale in scales), default=None),
        width=width,
        height=height,
        scales=scales,
        refused=answer.refused,
        device=answer.device,
        network=answer.network,
        queue=await run_in_threadpool(store.get_queue_end, spec.size),
    )


def _apply_limit(answer: EstimateResponse, limits: JobLimits) -> EstimateResponse:
    """Return the answer, or the refusal of a job that would take too long on this service."""
    try:
        limits.check_seconds(sum(scale.seconds for scale in answer.scales))
    except errors.BadSpec as error:
        refused = JobError.of(error)
        return answer.model_copy(update={"scales": [], "refused": refused})
    return answer
