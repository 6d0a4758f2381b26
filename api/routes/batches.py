"""Batches over HTTP: every photo in the style of every painting, with one request and one link.

A batch is only the sum of its jobs: each has its own place in the queue and counts for the limits.
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
from api.http.root_path import add_root_path
from api.job_feed import Subscription
from api.schemas.job import RETRY_AFTER_SECONDS, JobResource, job_resource
from api.schemas.submission import (
    BatchForm,
    BatchSubmission,
    describe_body,
)
from api.submissions import parser
from api.submissions.batch import create_or_replay
from api.submissions.service import (
    IDEMPOTENCY_KEY_PATTERN,
    SubmissionService,
)
from core import errors
from core.jobs.models import (
    Batch,
    is_batch_id,
)

router = APIRouter(prefix="/v1/batches", tags=["batches"])


class BatchResource(Batch):
    """Jobs that were submitted together: the number in each status, and the jobs themselves."""

    jobs: list[JobResource]
    links: dict[str, str]


def batch_resource(batch: Batch) -> BatchResource:
    """Return the batch and its jobs with their links."""
    path = add_root_path(f"{router.prefix}/{batch.id}")
    links = {"self": path, "cancel": f"{path}/cancel"}
    jobs = [job_resource(job) for job in batch.jobs]
    return BatchResource(**{**dict(batch), "jobs": jobs}, links=links)


@router.post(
    "",
    status_code=202,
    response_model=BatchResource,
    summary="Submit a batch",
    max_body_size=parser.BODY_BYTES,
    openapi_extra={"requestBody": describe_body(BatchSubmission, BatchForm)},
)
async def submit_batch(
    request: Request,
    response: Response,
    submissions: Annotated[SubmissionService, Depends()],
    idempotency_key: Annotated[str | None, Header(pattern=IDEMPOTENCY_KEY_PATTERN)] = None,
) -> BatchResource:
    """Send several `content`, several `style`, and parameters that apply to every job.

    Each `content` is combined with each `style` in a job of its own, in this order: the first
    `content` in all styles, then the second, and so on. The service accepts all jobs or none.
    """
    batch, replayed, warnings = await create_or_replay(request, submissions, idempotency_key)
    response.headers["Location"] = add_root_path(f"{router.prefix}/{batch.id}")
    response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    if replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return batch_resource(batch).model_copy(update={"warnings": warnings})


@router.get("/{batch_id}", response_model=BatchResource, responses={304: {}}, summary="Get a batch")
async def get_batch(
    *,
    batch_id: str,
    owner: Owner,
    store: Store,
    feed: Feed,
    request: Request,
    response: Response,
    wait_seconds: Wait,
) -> BatchResource | Response:
    """Return the batch. Send its ETag as If-None-Match: the answer is 304 if nothing has changed.

    `Prefer: wait=N` (30 s at most) waits for the next change if you send If-None-Match. Otherwise
    it waits until the status of a job changes.
    """
    known_tags = etag.if_none_match(request)
    batch = await run_in_threadpool(store.get_batch, _check_id(batch_id), owner)
    headers: dict[str, str] = {}
    if wait_seconds and not batch.has_ended:
        with suppress(errors.TooManyStreams):  # waiting is only a preference; the client can poll
            job_ids = [job.id for job in batch.jobs]
            read = partial(
                feed.share_read, f"{batch.id} {owner}", partial(store.get_batch, batch.id, owner)
            )
            with closing(feed.subscribe_to_many(job_ids, owner)) as subscription:
                batch = await _wait_for_change(batch, known_tags, subscription, wait_seconds, read)
            headers = preference_applied(wait_seconds)
    tag = _compute_tag(batch)
    headers |= {"ETag": tag, "Cache-Control": "no-cache"}
    if not batch.has_ended:
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    if etag.matches(known_tags, tag):
        return Response(status_code=304, headers=headers)
    response.headers.update(headers)
    return batch_resource(batch)


async def _wait_for_change(
    first: Batch,
    known_tags: str,
    subscription: Subscription,
    seconds: float,
    read: Callable[[], Awaitable[Batch]],
) -> Batch:
    """Return the batch as soon as it differs from what the client knows, or after the timeout.

    Raises BatchNotFound.
    """
    deadline = time.monotonic() + seconds
    while True:
        # The first read finds changes from before the subscription began.
        batch = await read()
        has_news = batch.counts != first.counts
        if known_tags:
            has_news = not etag.matches(known_tags, _compute_tag(batch))
        if has_news or batch.has_ended:
            return batch
        if not await subscription.wait(deadline - time.monotonic()):
            return batch


def _compute_tag(batch: Batch) -> str:
    """Return the batch's ETag. It is weak, as a job's."""
    states = "".join(
        f"{job.id} {job.version} {job.queue and job.queue.position} " for job in batch.jobs
    )
    return f'W/"{hashlib.sha256(states.encode()).hexdigest()[:32]}"'


@router.post("/{batch_id}/cancel", response_model=BatchResource, summary="Cancel a batch")
def cancel_batch(batch_id: str, owner: Owner, store: Store) -> BatchResource:
    """Cancel every job of the batch that has not ended. Safe to repeat."""
    return batch_resource(store.cancel_batch(_check_id(batch_id), owner))


@router.delete("/{batch_id}", status_code=204, response_class=Response, summary="Delete a batch")
def delete_batch(batch_id: str, owner: Owner, store: Store) -> Response:
    """Delete every job of the batch, and every picture that no other job uses. Safe to repeat."""
    store.delete_batch(_check_id(batch_id), owner)
    return Response(status_code=204)


def _check_id(batch_id: str) -> str:
    """Return the id. Raises BatchNotFound without a query if it has the wrong form."""
    if not is_batch_id(batch_id):
        raise errors.BatchNotFound()
    return batch_id
