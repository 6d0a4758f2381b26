"""Batches over HTTP: every photo in the style of every painting, in one request and behind one link.

A batch is no more than its jobs: each has its own place in the queue and counts for itself.
"""

import hashlib
import time
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request, Response
from starlette.concurrency import run_in_threadpool

from api.dependencies import Feed, Owner, Store
from api.http import etag
from api.http.prefer import Wait, preference_applied
from api.job_feed import ChangeSubscription
from api.routes.images import inspect, resolve_digest
from api.schemas.job import RETRY_AFTER_SECONDS, JobResource, resource
from api.submissions import parser
from api.submissions.service import KEY, SubmissionService, file_of, kept
from core import errors
from core.jobs.models import Batch, JobInput, SubmissionOptions, is_batch_id, new_batch_id
from core.style.spec import StyleSpec, parse_spec, result_size

router = APIRouter(prefix="/v1/batches", tags=["batches"])


class BatchResource(Batch):
    """Jobs that were submitted together: how many are in which status, and each of them."""

    jobs: list[JobResource]
    links: dict[str, str]


def batch_resource(batch: Batch) -> BatchResource:
    """The batch with its links, and its jobs with theirs."""
    path = f"{router.prefix}/{batch.id}"
    links = {"self": path, "cancel": f"{path}/cancel"}
    return BatchResource(
        **{**dict(batch), "jobs": [resource(job) for job in batch.jobs]}, links=links
    )


@router.post(
    "",
    status_code=202,
    response_model=BatchResource,
    summary="Paint many pictures",
    max_body_size=parser.BODY_BYTES,
    openapi_extra={"requestBody": parser.openapi_batch()},
)
async def submit(
    request: Request,
    response: Response,
    submissions: Annotated[SubmissionService, Depends()],
    idempotency_key: Annotated[str | None, Header(pattern=KEY)] = None,
) -> BatchResource:
    """Send several `content`, several `style`, and any parameter, for all; all jobs are taken, or none.

    Each `content` is painted in each `style`, by a job of its own: the first in all of them, then the second.
    """
    batch, replayed = await _submitted(request, submissions, idempotency_key)
    response.headers["Location"] = f"{router.prefix}/{batch.id}"
    response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    if replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return batch_resource(batch)


async def _submitted(
    request: Request, submissions: SubmissionService, key: str | None
) -> tuple[Batch, bool]:
    """The batch, and whether the same request had made it before."""
    async with parser.parse_batch(request, submissions.blobs) as came:
        sent = await run_in_threadpool(lambda: parser.request_hash(came.sent()))
        if before := await run_in_threadpool(_before, key, sent, submissions):
            return before, True
        wishes = submissions.agreed(came.wishes)
        spec = await run_in_threadpool(_resolved, came, submissions)
        for number, picture in enumerate([*came.contents, *came.styles]):
            size = await inspect(file_of(picture, submissions.blobs))
            if number < len(came.contents):
                result_size(*size, spec.size, seamless=spec.seamless)
        return await run_in_threadpool(
            _taken, came, spec, submissions.terms(wishes, key, request=sent), submissions
        )


def _before(key: str | None, sent: str, submissions: SubmissionService) -> Batch | None:
    found = submissions.before(key, sent)
    return None if found is None else submissions.store.get_batch(found, submissions.caller.owner)


def _resolved(sent: parser.BatchSubmission, submissions: SubmissionService) -> StyleSpec:
    """The parameters of each job; pictures named by digest are here, and stay."""
    spec = parse_spec(sent.parameters).for_pictures()
    if len(sent.contents) * len(sent.styles) > submissions.config.max_jobs_per_caller:
        raise errors.BadRequest(
            f"You may have {submissions.config.max_jobs_per_caller} jobs; this batch has more."
        )
    for digest in (
        picture for picture in (*sent.contents, *sent.styles) if isinstance(picture, str)
    ):
        resolve_digest(digest, submissions.caller.owner, submissions.store, submissions.blobs)
    return spec


def _taken(
    sent: parser.BatchSubmission,
    spec: StyleSpec,
    terms: SubmissionOptions,
    submissions: SubmissionService,
) -> tuple[Batch, bool]:
    """Its pictures are stored and its jobs rung for. The same request may have made it in this very moment."""
    contents, styles = (
        [kept(picture, submissions.store, submissions.blobs) for picture in pictures]
        for pictures in (sent.contents, sent.styles)
    )
    inputs = [
        JobInput(content=one, styles=[other], spec=spec.model_dump())
        for one in contents
        for other in styles
    ]
    batch_id = new_batch_id()
    batch = submissions.store.create_batch(batch_id, inputs, terms, submissions.limits)
    if batch.id == batch_id and any(not job.status.has_ended for job in batch.jobs):
        # One idle worker starts at once; the reaper notifies the others within a second.
        submissions.ring()
    return batch, batch.id != batch_id


@router.get(
    "/{batch_id}", response_model=BatchResource, responses={304: {}}, summary="How far are they?"
)
async def look(
    *,
    batch_id: str,
    owner: Owner,
    store: Store,
    feed: Feed,
    request: Request,
    response: Response,
    patience: Wait,
) -> BatchResource | Response:
    """The batch. Send the ETag back as If-None-Match: 304 while nothing has changed.

    `Prefer: wait=N` (30 s at most): with If-None-Match the answer comes with the next change, else when a job of it
    has a new status.
    """
    batch, resolve_digest, headers = (
        await run_in_threadpool(store.get_batch, _id(batch_id), owner),
        etag.if_none_match(request),
        {},
    )
    if patience and not batch.has_ended:
        with suppress(errors.TooManyStreams):  # it is a preference; they may poll
            with closing(feed.subscribe_to_all([job.id for job in batch.jobs], owner)) as vigil:
                read = partial(
                    feed.share, f"{batch.id} {owner}", partial(store.get_batch, batch.id, owner)
                )
                batch = await _changed(batch, resolve_digest, vigil, patience, read)
            headers = preference_applied(patience)
    tag = _tag(batch)
    headers |= {"ETag": tag, "Cache-Control": "no-cache"}
    if not batch.has_ended:
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    if etag.matches(resolve_digest, tag):
        return Response(status_code=304, headers=headers)
    response.headers.update(headers)
    return batch_resource(batch)


async def _changed(
    first: Batch,
    resolve_digest: str,
    vigil: ChangeSubscription,
    seconds: float,
    read: Callable[[], Awaitable[Batch]],
) -> Batch:
    """The batch when it tells something new; as it is after so long, in any case. Raises BatchNotFound."""
    until = time.monotonic() + seconds
    while True:
        batch = await read()  # at first for what has changed before the vigil began
        new = (
            not etag.matches(resolve_digest, _tag(batch))
            if resolve_digest
            else batch.counts != first.counts
        )
        if new or batch.has_ended or not await vigil.wait(until - time.monotonic()):
            return batch


def _tag(batch: Batch) -> str:
    """The ETag. A weak one, as a job's."""
    states = "".join(
        f"{job.id} {job.version} {job.queue and job.queue.position} " for job in batch.jobs
    )
    return f'W/"{hashlib.sha256(states.encode()).hexdigest()[:32]}"'


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
