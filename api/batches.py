"""Batches over HTTP: every photo in the style of every painting, in one request and behind one link.

A batch is no more than its jobs: each has its own place in the queue and counts for itself.
"""

import hashlib
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request, Response
from starlette.concurrency import run_in_threadpool

from api import submission, tags
from api.deps import Owner, Store
from api.images import inspected, known
from api.look import POLL_SECONDS
from api.resource import JobResource, resource
from api.taker import KEY, Taker, file_of, kept
from core import errors
from core.jobs import Batch, JobInput, Terms, is_batch_id, new_batch_id
from core.spec import StyleSpec, parse_spec, result_size

router = APIRouter(prefix="/v1/batches", tags=["batches"])


class BatchResource(Batch):
    """Jobs that were submitted together: how many are in which status, and each of them."""

    jobs: list[JobResource]
    links: dict[str, str]


def batch_resource(batch: Batch) -> BatchResource:
    """The batch with its links, and its jobs with theirs."""
    path = f"{router.prefix}/{batch.id}"
    links = {"self": path, "cancel": f"{path}/cancel"}
    return BatchResource(**{**dict(batch), "jobs": [resource(job) for job in batch.jobs]}, links=links)


@router.post(
    "",
    status_code=202,
    response_model=BatchResource,
    summary="Paint many pictures",
    max_body_size=submission.BODY_BYTES,
    openapi_extra={"requestBody": submission.openapi_batch()},
)
async def submit(
    request: Request,
    response: Response,
    taker: Annotated[Taker, Depends()],
    idempotency_key: Annotated[str | None, Header(pattern=KEY)] = None,
) -> BatchResource:
    """Send several `content`, several `style`, and any knob, for all; all jobs are taken, or none.

    Each `content` is painted in each `style`, by a job of its own: the first in all of them, then the second.
    """
    batch, replayed = await _submitted(request, taker, idempotency_key)
    response.headers["Location"] = f"{router.prefix}/{batch.id}"
    response.headers["Retry-After"] = str(POLL_SECONDS)
    if replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return batch_resource(batch)


async def _submitted(request: Request, taker: Taker, key: str | None) -> tuple[Batch, bool]:
    """The batch, and whether the same request had made it before."""
    async with submission.received_batch(request, taker.blobs) as came:
        sent = await run_in_threadpool(lambda: submission.print_of(came.sent()))
        if before := await run_in_threadpool(_before, key, sent, taker):
            return before, True
        wishes = taker.agreed(came.wishes)
        spec = await run_in_threadpool(_resolved, came, taker)
        for number, picture in enumerate([*came.contents, *came.styles]):
            size = await inspected(file_of(picture, taker.blobs))
            if number < len(came.contents):
                result_size(*size, spec.size, seamless=spec.seamless)
        return await run_in_threadpool(_taken, came, spec, taker.terms(wishes, key, request=sent), taker)


def _before(key: str | None, sent: str, taker: Taker) -> Batch | None:
    found = taker.before(key, sent)
    return None if found is None else taker.store.batch(found, taker.caller.owner)


def _resolved(sent: submission.BatchSubmission, taker: Taker) -> StyleSpec:
    """The knobs of each job; pictures named by digest are here, and stay."""
    spec = parse_spec(sent.knobs).for_pictures()
    if len(sent.contents) * len(sent.styles) > taker.config.max_jobs_per_caller:
        raise errors.BadRequest(f"You may have {taker.config.max_jobs_per_caller} jobs; this batch has more.")
    for digest in (picture for picture in (*sent.contents, *sent.styles) if isinstance(picture, str)):
        known(digest, taker.caller.owner, taker.store, taker.blobs)
    return spec


def _taken(sent: submission.BatchSubmission, spec: StyleSpec, terms: Terms, taker: Taker) -> tuple[Batch, bool]:
    """Its pictures are stored and its jobs rung for. The same request may have made it in this very moment."""
    contents, styles = (
        [kept(picture, taker.store, taker.blobs) for picture in pictures] for pictures in (sent.contents, sent.styles)
    )
    inputs = [JobInput(content=one, styles=[other], spec=spec.model_dump()) for one in contents for other in styles]
    batch_id = new_batch_id()
    batch = taker.store.create_batch(batch_id, inputs, terms, taker.limits)
    if batch.id == batch_id:
        for job in batch.jobs:
            if not job.status.ended:
                taker.ring()
    return batch, batch.id != batch_id


@router.get("/{batch_id}", response_model=BatchResource, responses={304: {}}, summary="How far are they?")
def look(batch_id: str, owner: Owner, store: Store, request: Request, response: Response) -> BatchResource | Response:
    """The batch. Send the ETag back as If-None-Match: 304 while nothing has changed."""
    batch = store.batch(_id(batch_id), owner)
    states = "".join(f"{job.id} {job.version} {job.queue and job.queue.position} " for job in batch.jobs)
    tag = f'W/"{hashlib.sha256(states.encode()).hexdigest()[:32]}"'
    headers = {"ETag": tag, "Cache-Control": "no-cache"}
    if not all(job.status.ended for job in batch.jobs):
        headers["Retry-After"] = str(POLL_SECONDS)
    if tags.among(tags.sent(request), tag):
        return Response(status_code=304, headers=headers)
    response.headers.update(headers)
    return batch_resource(batch)


@router.post("/{batch_id}/cancel", response_model=BatchResource, summary="Stop them")
def cancel(batch_id: str, owner: Owner, store: Store) -> BatchResource:
    """Stop every job that has not ended. Safe to repeat."""
    return batch_resource(store.cancel_batch(_id(batch_id), owner))


@router.delete("/{batch_id}", status_code=204, response_class=Response, summary="Forget them")
def delete(batch_id: str, owner: Owner, store: Store) -> Response:
    """Delete every job, and every picture that no other job uses. Safe to repeat."""
    store.delete_batch(_id(batch_id), owner)
    return Response(status_code=204)


def _id(batch_id: str) -> str:
    if not is_batch_id(batch_id):
        raise errors.BatchNotFound()
    return batch_id
