"""The frames of a job over HTTP: small pictures of the run on its way, one by one or as an animation."""

import hashlib
from contextlib import suppress
from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from api.dependencies import Blobs, Owner, Store
from api.http import image_response
from api.routes.jobs import found, pictures
from api.routes.jobs import router as jobs
from core import errors
from core.images import codec
from core.jobs.models import Frame
from core.jobs.store import JobStore
from core.storage import blobs

router = APIRouter(prefix=f"{jobs.prefix}/{{job_id}}", tags=["frames"])

# The animation's length is about the same for few frames and for many; its last picture stays for a while.
_WHOLE_MS = 6000
_LEAST_MS, _MOST_MS, _LAST_MS = 80, 400, 1500


class FrameResource(Frame):
    """A frame, and where its picture is."""

    url: str


class Frames(BaseModel):
    """Of one job, in their order."""

    frames: list[FrameResource]


@router.get("/frames", response_model=Frames, summary="How it came about")
def frames(job_id: str, owner: Owner, store: Store) -> Frames:
    """Small pictures of the run, while it goes on and after it; every other one goes when there are more than 60."""
    path = f"{jobs.prefix}/{job_id}/frames"
    kept = _frames(job_id, owner, store)
    return Frames(
        frames=[FrameResource(**dict(frame), url=f"{path}/{frame.index}") for frame in kept]
    )


@router.get(
    "/frames/{index}", response_class=Response, responses=pictures("jpeg"), summary="One frame"
)
def frame(
    *,
    job_id: str,
    index: Annotated[int, Path(ge=0, le=2**31)],
    request: Request,
    owner: Owner,
    store: Store,
    blobs: Blobs,
) -> Response:
    """A JPEG of at most 256 px a side. Frames keep their index when others go."""
    for one in _frames(job_id, owner, store):
        if one.index == index:
            tag = f'"{one.digest}"'
            if image_response.is_cached(request, tag):
                return image_response.not_modified(tag)
            return image_response.image_response(
                blobs.get(one.digest), "jpeg", tag, f"{job_id}-{index}"
            )
    raise errors.ImageNotFound("There is no such frame, or no longer.")


@router.get(
    "/timelapse",
    response_class=Response,
    responses=pictures("webp"),
    summary="The frames as an animation",
)
async def timelapse(
    *,
    job_id: str,
    request: Request,
    owner: Owner,
    store: Store,
    blobs: Blobs,
    format: Literal["webp"] = "webp",
) -> Response:
    """An animated WebP of all frames that there are by now."""
    kept = await run_in_threadpool(_frames, job_id, owner, store)
    if not kept:
        raise errors.NoResult("There are no frames yet.")
    tag = f'"{hashlib.sha256(" ".join(one.digest for one in kept).encode()).hexdigest()}"'
    if image_response.is_cached(request, tag):
        return image_response.not_modified(tag)
    data = await image_response.render_cached(tag, partial(_animated, kept, blobs))
    return image_response.image_response(data, format, tag, job_id)


def _frames(job_id: str, owner: str, store: JobStore) -> list[Frame]:
    if found(job_id, owner, store).images_deleted:
        raise errors.ResultGone()
    return store.list_frames(job_id, owner)


def _animated(frames: list[Frame], blobs: blobs.Blobs) -> bytes:
    pictures = []
    for one in frames:
        with suppress(
            errors.ImageNotFound, errors.BadImage
        ):  # it went meanwhile, or the disk has damaged it
            pictures.append(codec.open_result(blobs.get(one.digest)))
    if not pictures:
        raise errors.ResultGone()
    each_ms = min(max(_WHOLE_MS // len(pictures), _LEAST_MS), _MOST_MS)
    return codec.animate(pictures, each_ms, _LAST_MS)
