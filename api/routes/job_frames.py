"""The frames of a job over HTTP: small pictures of the run, singly or as an animation."""

import hashlib
from contextlib import suppress
from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Path, Request, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from api.dependencies import Blobs, CurrentWaiter, Owner, Store
from api.http import image_response
from api.http.root_path import add_root_path
from api.routes.jobs import get_owned_job, image_responses
from api.routes.jobs import router as jobs
from core import errors
from core.images import codec
from core.jobs.models import Frame
from core.jobs.store import JobStore
from core.storage import blobs

router = APIRouter(prefix=f"{jobs.prefix}/{{job_id}}", tags=["frames"])

# The animation lasts about 6 s for any number of frames; the last frame is shown longer.
_ANIMATION_MS = 6000
_MIN_FRAME_MS, _MAX_FRAME_MS, _LAST_FRAME_MS = 80, 400, 1500


class FrameResource(Frame):
    """A frame, and the path of its picture."""

    url: str


class FrameList(BaseModel):
    """The frames of a job, in the order of the run."""

    frames: list[FrameResource]


@router.get("/frames", response_model=FrameList, summary="List the frames of a job")
def list_frames(job_id: str, owner: Owner, store: Store) -> FrameList:
    """Return small pictures of the run, during and after it.

    When there are more than 60, the service deletes every other one.
    """
    path = add_root_path(f"{jobs.prefix}/{job_id}/frames")
    frames = [
        FrameResource(**dict(frame), url=f"{path}/{frame.index}")
        for frame in _read_frames(job_id, owner, store)
    ]
    return FrameList(frames=frames)


@router.get(
    "/frames/{index}",
    response_class=Response,
    responses=image_responses("jpeg"),
    summary="Get a frame",
)
def get_frame(
    *,
    job_id: str,
    index: Annotated[int, Path(ge=0, le=2**31)],
    request: Request,
    owner: Owner,
    store: Store,
    blobs: Blobs,
) -> Response:
    """Return a JPEG of at most 256 px a side. A frame keeps its index when others are deleted."""
    for frame in _read_frames(job_id, owner, store):
        if frame.index == index:
            tag = f'"{frame.digest}"'
            if image_response.is_cached_by_client(request, tag):
                return image_response.not_modified(tag)
            return image_response.image_response(
                blobs.get(frame.digest), "jpeg", tag, f"{job_id}-{index}"
            )
    raise errors.ImageNotFound("There is no such frame, or it has been deleted.")


@router.get(
    "/timelapse",
    response_class=Response,
    responses=image_responses("webp"),
    summary="Get the frames as an animation",
)
async def get_timelapse(
    *,
    job_id: str,
    request: Request,
    owner: Owner,
    waiter: CurrentWaiter,
    store: Store,
    blobs: Blobs,
    format: Literal["webp"] = "webp",
) -> Response:
    """Return an animated WebP of all frames so far."""
    digests = await run_in_threadpool(_find_pictures, job_id, owner, store, blobs)
    tag = f'"{hashlib.sha256(" ".join(digests).encode()).hexdigest()}"'
    if image_response.is_cached_by_client(request, tag):
        return image_response.not_modified(tag)
    data = await image_response.render_cached(tag, partial(_animate, digests, blobs), waiter)
    return image_response.image_response(data, format, tag, job_id)


def _read_frames(job_id: str, owner: str, store: JobStore) -> list[Frame]:
    """Raises JobNotFound, ResultGone."""
    if get_owned_job(job_id, owner, store).images_deleted:
        raise errors.ResultGone()
    return store.list_frames(job_id, owner)


def _find_pictures(job_id: str, owner: str, store: JobStore, blobs: blobs.Blobs) -> list[str]:
    """Return the digests of the frames that can be read: the disk may have damaged one.

    Raises NoResult, ResultGone.
    """
    frames = _read_frames(job_id, owner, store)
    if not frames:
        raise errors.NoResult("There are no frames.")
    digests = []
    for frame in frames:
        with suppress(errors.ImageNotFound):
            blobs.path(frame.digest)
            digests.append(frame.digest)
    if not digests:
        raise errors.ResultGone()
    return digests


def _animate(digests: list[str], blobs: blobs.Blobs) -> bytes:
    """Raises Unavailable if a frame is deleted meanwhile: the tag names all of `digests`."""
    try:
        pictures = [codec.open_result(blobs.get(digest)) for digest in digests]
    except errors.ImageNotFound as error:
        raise errors.Unavailable("The frames are changing; try again.") from error
    frame_ms = min(max(_ANIMATION_MS // len(pictures), _MIN_FRAME_MS), _MAX_FRAME_MS)
    return codec.animate(pictures, frame_ms, _LAST_FRAME_MS)
