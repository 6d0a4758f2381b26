"""GET /v1/jobs/{job_id}/events: a job's life as server-sent events.

A watcher is told the job whole, then what has changed of it; each event's data is the job, or a part to be laid over
what is known. The events of one change have one id, the job's version, on the last of them: who breaks off between two
comes back for both.
"""

import json
import re
from collections.abc import AsyncIterator
from functools import lru_cache
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from fastapi.sse import format_sse_event
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from api.dependencies import Feed, HasAccess, Owner
from api.job_feed import JobSnapshot, Subscription
from api.middleware import auth
from api.schemas.job import JOBS, resource
from core import errors
from core.jobs.models import is_job_id

HEARTBEAT_SECONDS = 5.0  # and a key that is revoked ends its streams
RETRY_MS = 2000  # how long a browser waits before it comes again

_ID = re.compile(r"[0-9]{1,16}")  # what is none is answered as if nothing were known

_HEADERS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",
}  # the second tells nginx to pass on what it gets

router = APIRouter(prefix=JOBS, tags=["jobs"])


class EventStream(StreamingResponse):
    """Stops watching when it is over, however it ends."""

    media_type = "text/event-stream"

    def __init__(
        self, watch: Subscription, after: int | None, has_access: auth.AccessCheck
    ) -> None:
        super().__init__(_stream(watch, after, has_access), headers=_HEADERS)
        self._watch = watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The answer."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._watch.close()


@router.get(
    "/{job_id}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {EventStream.media_type: {}}}, 204: {}},
    summary="Watch it",
)
async def events(
    *,
    job_id: str,
    owner: Owner,
    feed: Feed,
    has_access: HasAccess,
    after: Annotated[int | None, Query(ge=0, le=2**53)] = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """Server-sent events: `status` (the job), `progress` and `preview` (parts of it), until it has ended.

    `Last-Event-ID`, or `after` where you cannot set headers: the last id that you have seen; what has changed since is
    told first. 204: the job had ended by then, and there is nothing more to tell.
    """
    if not is_job_id(job_id):
        raise errors.JobNotFound()
    if last_event_id is not None and _ID.fullmatch(last_event_id):
        after = int(last_event_id)  # newer than an address, which a browser does not change
    watch = await feed.subscribe(job_id, owner)
    assert watch.snapshot is not None, "a watch begins with a snapshot"
    if watch.snapshot.job.status.has_ended and watch.snapshot.job.version == after:
        watch.close()
        return Response(status_code=204, headers=_HEADERS)
    return EventStream(watch, after, has_access)


async def _stream(
    watch: Subscription, after: int | None, has_access: auth.AccessCheck
) -> AsyncIterator[bytes]:
    yield format_sse_event(retry=RETRY_MS)
    known: JobSnapshot | None = None
    if watch.snapshot and watch.snapshot.job.version == after and watch.snapshot.job.queue is None:
        known = watch.snapshot  # a place in the queue has no version: it is told again
    while not watch.is_stopping and await has_access():
        snapshot = watch.snapshot
        if snapshot is None:
            yield format_sse_event(comment="the job is deleted")
            return
        if snapshot is not known:
            yield told(snapshot, known)
            known = snapshot
            if snapshot.job.status.has_ended:
                return
        if not await watch.wait(HEARTBEAT_SECONDS) and not watch.is_stopping:
            unavailable = watch.store_unavailable
            yield format_sse_event(
                comment="the store does not answer" if unavailable else "still here"
            )
    yield format_sse_event(comment="come again")


@lru_cache(maxsize=16)  # all watchers of a job are told the same
def told(now: JobSnapshot, before: JobSnapshot | None) -> bytes:
    """The events that lead from one snapshot to the next; none where a client would see no difference."""
    job, parts = now.job, dict[str, bytes]()
    if before is None or _rest(before) != _rest(now):
        parts["status"] = now.body
    else:
        shown = resource(job).model_dump(
            mode="json", include={"version", "progress", "preview", "links"}
        )
        for name in ("progress", "preview"):
            if getattr(before.job, name) != getattr(job, name):
                fields = ("version", name, *(("links",) if name == "preview" else ()))
                parts[name] = _json({field: shown[field] for field in fields})
    last = next(reversed(parts), None)
    return b"".join(
        format_sse_event(
            event=name, data_str=data.decode(), id=str(job.version) if name == last else None
        )
        for name, data in parts.items()
    )


def _rest(snapshot: JobSnapshot) -> Any:
    """All that a client sees and no event but `status` tells."""
    shown = resource(snapshot.job).model_dump(exclude={"version", "progress", "preview"})
    shown["links"].pop("preview", None)
    return shown


def _json(data: dict[str, Any]) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode()
