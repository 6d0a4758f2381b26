"""Jobs over HTTP: submit, look, list, result, preview, cancel, delete."""

from itertools import islice
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from api import submission
from api.deps import Blobs, Ring, Store
from api.images import inspected, known
from core import errors, images
from core.jobs import Job, JobInput, Status, is_job_id, new_job_id
from core.spec import StyleSpec, parse_spec, result_size
from core.store import JobStore

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

POLL_SECONDS = 1


class JobResource(Job):
    """A job, and where to go from it. Follow the links; do not build addresses."""

    links: dict[str, str]


class JobPage(BaseModel):
    """Some jobs, newest first; `next` leads to older ones."""

    jobs: list[JobResource]
    next: str | None


def resource(job: Job) -> JobResource:
    """The job with its links."""
    path = f"{router.prefix}/{job.id}"
    links = {"self": path, "cancel": f"{path}/cancel"}
    if job.preview is not None:
        links["preview"] = f"{path}/preview"
    if job.outputs:
        links["result"] = f"{path}/result"
    return JobResource(**dict(job), links=links)


@router.post(
    "",
    status_code=202,
    response_model=JobResource,
    summary="Paint a picture",
    max_body_size=submission.BODY_BYTES,
    openapi_extra={"requestBody": submission.openapi_body()},
)
async def submit(request: Request, response: Response, store: Store, blobs: Blobs, ring: Ring) -> JobResource:
    """Send `content`, one or more `style`, and any knob; `mask` and `init_image` are further pictures.

    Answers at once with the job; poll its `self` link.
    """
    async with submission.received(request, blobs) as submitted:
        spec = await run_in_threadpool(_resolved, submitted, store, blobs)
        sizes = [await inspected(_file(picture, blobs)) for picture in submitted.pictures()]
        result_size(*sizes[0], spec.size, seamless=spec.seamless)
        job = await run_in_threadpool(_create, submitted, spec, store, blobs)
    await run_in_threadpool(ring)  # if nobody hears it, the reaper rings again
    response.headers["Location"] = f"{router.prefix}/{job.id}"
    response.headers["Retry-After"] = str(POLL_SECONDS)
    return resource(job)


def _resolved(submitted: submission.Submission, store: JobStore, blobs: Blobs) -> StyleSpec:
    """The knobs for these pictures; those named by digest are here, and stay."""
    spec = parse_spec(submitted.knobs)
    init = submitted.init_image is not None
    spec = spec.for_pictures(len(submitted.styles), len(submitted.masks), init_image=init)
    for digest in (picture for picture in submitted.pictures() if isinstance(picture, str)):
        known(digest, store, blobs)
    return spec


def _create(submitted: submission.Submission, spec: StyleSpec, store: JobStore, blobs: Blobs) -> Job:
    """All was checked before anything is stored; all is on disk, pictures and record, before the answer is given."""
    digests = iter([_kept(picture, store, blobs) for picture in submitted.pictures()])
    job_input = JobInput(
        content=next(digests),
        styles=list(islice(digests, len(submitted.styles))),
        masks=list(islice(digests, len(submitted.masks))),
        init_image=next(digests, None),
        spec=spec.model_dump(),
    )
    return store.create(new_job_id(), job_input)


def _kept(picture: submission.Picture, store: JobStore, blobs: Blobs) -> str:
    """Its digest. One that was named by it is held by now."""
    if isinstance(picture, str):
        return picture
    store.hold(picture.digest)
    return blobs.keep(picture)


def _file(picture: submission.Picture, blobs: Blobs) -> Path:
    return blobs.path(picture) if isinstance(picture, str) else picture.path


@router.get("", summary="List jobs")
def listing(
    store: Store,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[int | None, Query(ge=1, le=2**53)] = None,
    status: Status | None = None,
) -> JobPage:
    """Newest first; follow `next` for older ones."""
    jobs, before = store.page(limit=limit, before=cursor, status=status)
    following = None
    if before is not None:
        following = f"{router.prefix}?limit={limit}&cursor={before}" + (f"&status={status}" if status else "")
    return JobPage(jobs=[resource(job) for job in jobs], next=following)


@router.get("/{job_id}", response_model=JobResource, summary="How far is it?")
def look(
    job_id: str, store: Store, response: Response, if_none_match: Annotated[str | None, Header()] = None
) -> JobResource | Response:
    """The job. Send the ETag back as If-None-Match: 304 while nothing has changed."""
    job = _found(job_id, store)
    tag = f'"{job.version}-{job.queue.position if job.queue else ""}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if not job.status.ended:
        headers["Retry-After"] = str(POLL_SECONDS)
    if if_none_match is not None and tag in if_none_match:
        return Response(status_code=304, headers=headers)
    response.headers.update(headers)
    return resource(job)


@router.get("/{job_id}/result", response_class=Response, summary="The picture")
def result(job_id: str, store: Store, blobs: Blobs, format: images.Format = "png") -> Response:
    """The finished picture as PNG (with a record of how it was made), JPEG or WebP."""
    job = _found(job_id, store)
    if not job.status.ended:
        raise errors.JobNotEnded()
    if not job.outputs:
        raise errors.NoResult()
    try:
        data = blobs.get(job.outputs[0].id)
    except errors.ImageNotFound:
        raise errors.ResultGone() from None
    if format != "png":
        data = images.encode(images.reopened(data), format)
    return _picture(data, format, f'"{job.outputs[0].id}-{format}"', job.id)


@router.get("/{job_id}/preview", response_class=Response, summary="The picture so far")
def preview(job_id: str, store: Store, blobs: Blobs) -> Response:
    """A small JPEG of the newest state, while there is one."""
    job = _found(job_id, store)
    if job.preview is None:
        raise errors.NoResult("There is no preview yet.")
    return _picture(blobs.get(job.preview), "jpeg", f'"{job.preview}"', job.id)


@router.post("/{job_id}/cancel", response_model=JobResource, summary="Stop it")
def cancel(job_id: str, store: Store) -> JobResource:
    """A waiting job is canceled at once, a running one within about a second; an ended one stays. Safe to repeat."""
    if not is_job_id(job_id):
        raise errors.JobNotFound()
    return resource(store.cancel(job_id))


@router.delete("/{job_id}", status_code=204, response_class=Response, summary="Forget it")
def delete(job_id: str, store: Store) -> Response:
    """Stop it if it runs, and delete the record and every picture that no other job uses. Safe to repeat."""
    if not is_job_id(job_id):
        raise errors.JobNotFound()
    store.delete(job_id)
    return Response(status_code=204)


def _found(job_id: str, store: JobStore) -> Job:
    if not is_job_id(job_id):
        raise errors.JobNotFound()
    return store.get(job_id)


def _picture(data: bytes, kind: images.Format, tag: str, job_id: str) -> Response:
    headers = {
        "ETag": tag,
        "Cache-Control": "private, no-cache",
        "Content-Disposition": f'inline; filename="{job_id}.{"jpg" if kind == "jpeg" else kind}"',
    }
    return Response(data, media_type=f"image/{kind}", headers=headers)
