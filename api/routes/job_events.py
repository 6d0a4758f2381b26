"""GET /v1/jobs/{job_id}/events: the changes of a job as server-sent events.

A client receives the whole job first, then only what has changed. The data of an event is the job,
or a part to merge over the known job. The events of one change share an id, the job's version. Only
the last one carries it, so a client that disconnects between two of them receives both again.
"""

import asyncio
import json
import random
import re
from typing import Annotated, Any

from cachetools import LRUCache, cached
from fastapi import APIRouter, Header, Query, Response
from fastapi.sse import format_sse_event
from starlette.responses import StreamingResponse
from starlette.types import Message, Receive, Scope, Send

from api.dependencies import Feed, HasAccess, Owner
from api.http.root_path import root_path
from api.http.shared_response import RawHeaders
from api.job_feed import JobFeed, JobSnapshot, Subscription
from api.middleware import auth
from api.schemas.job import JOBS, job_resource
from core import errors
from core.jobs.models import is_job_id

HEARTBEAT_SECONDS = 5.0  # at most; also the time within which a revoked key loses its streams
RETRY_MS = 2000  # how long a browser waits before it reconnects

_random = random.Random()  # noqa: S311 - no secret

_EVENT_ID = re.compile(r"[0-9]{1,16}")  # any other Last-Event-ID is ignored

# X-Accel-Buffering tells nginx to forward each event at once.
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

router = APIRouter(prefix=JOBS, tags=["jobs"])


class EventStream(Response):
    """Streams the events of a subscription, and closes it however the stream ends.

    Thousands are open at the same time, so it has neither a task group nor an asynchronous
    generator.
    """

    media_type = "text/event-stream"

    def __init__(
        self, subscription: Subscription, after: int | None, has_access: auth.AccessCheck
    ) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["Content-Length"]
        self.status = self.status_code
        self._subscription, self._after, self._has_access = subscription, after, has_access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response."""
        await self.send_to(scope, receive, send, [])

    async def send_to(
        self,
        scope: Scope,  # noqa: ARG002 - as for any response
        receive: Receive,
        send: Send,
        own_headers: RawHeaders,
    ) -> None:
        """Send the response with further headers."""
        disconnected = asyncio.ensure_future(_wait_for_disconnect(receive))
        disconnected.add_done_callback(lambda _: self._subscription.close())
        try:
            headers = [*self.raw_headers, *own_headers]
            await send({"type": "http.response.start", "status": self.status, "headers": headers})
            # The stream stays open; what it needs no more makes room for others.
            self.raw_headers, headers, own_headers = [], [], []
            await self._send_events(send)
            await send({"type": "http.response.body", "body": b""})
        finally:
            disconnected.cancel()
            self._subscription.close()

    async def _send_events(self, send: Send) -> None:
        subscription, known = self._subscription, None
        first = subscription.snapshot
        # The place in the queue is not part of the version, so a queued job is always sent again.
        if first and first.job.version == self._after and first.job.queue is None:
            known = first
        await send(_part(format_sse_event(retry=RETRY_MS)))
        while subscription.is_active and await self._has_access():
            snapshot = subscription.snapshot
            if snapshot is None:
                await send(_part(format_sse_event(comment="the job is deleted")))
                return
            if snapshot is not known:
                await send(_part(encode_events(snapshot, known)))
                known = snapshot
                if snapshot.job.status.has_ended:
                    return
            # A change wakes all streams of a job together; their heartbeats must not meet again.
            has_changed = await subscription.wait(HEARTBEAT_SECONDS * _random.uniform(0.6, 1))
            if not has_changed and subscription.is_active:
                comment = "heartbeat"
                if subscription.store_unavailable:
                    comment = "the store does not answer"
                await send(_part(format_sse_event(comment=comment)))
        await send(_part(format_sse_event(comment="reconnect")))


def _part(data: bytes) -> Message:
    return {"type": "http.response.body", "body": data, "more_body": True}


async def _wait_for_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@router.get(
    "/{job_id}/events",
    response_class=StreamingResponse,
    responses={200: {"content": {EventStream.media_type: {}}}, 204: {}},
    summary="Stream the changes of a job",
)
async def stream_job_events(
    *,
    job_id: str,
    owner: Owner,
    feed: Feed,
    has_access: HasAccess,
    after: Annotated[int | None, Query(ge=0, le=2**53)] = None,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """Return server-sent events until the job ends.

    The events are `status` (the whole job), `progress` and `preview` (parts of it). To resume, send
    the last event id as `Last-Event-ID`, or as `after` if you cannot set headers. The stream then
    begins with what has changed since. The answer is 204 if the job had ended by then.
    """
    if not is_job_id(job_id):
        raise errors.JobNotFound()
    # The header is newer than `after`: a browser that reconnects repeats the first URL.
    after = after if (last := parse_event_id(last_event_id)) is None else last
    stream = await open_stream(feed, job_id, owner, has_access, after)
    return stream or Response(status_code=204, headers=_HEADERS)


(ROUTE,) = router.routes


def parse_event_id(text: str | None) -> int | None:
    """Return the version of the job in a Last-Event-ID; None if it is no id of our events."""
    return int(text) if text is not None and _EVENT_ID.fullmatch(text) else None


async def open_stream(
    feed: JobFeed, job_id: str, owner: str, has_access: auth.AccessCheck, after: int | None
) -> "EventStream | None":
    """Subscribe to the job; None if it has ended in the version that the client knows.

    after: that version. Raises TooManyStreams, JobNotFound, StoreUnavailable.
    """
    subscription = await feed.subscribe(job_id, owner)
    snapshot = subscription.snapshot
    assert snapshot is not None, "a subscription begins with a snapshot"
    if snapshot.job.status.has_ended and snapshot.job.version == after:
        subscription.close()
        return None
    return EventStream(subscription, after, has_access)


# All streams of a job send the same events, up to the root path of their links.
@cached(LRUCache(maxsize=16), key=lambda new, old: (new, old, root_path.get()))
def encode_events(new: JobSnapshot, old: JobSnapshot | None) -> bytes:
    """Encode the events that lead from one snapshot to the next; empty if a client sees no change.

    old: None if the client knows nothing yet.
    """
    job, parts = new.job, dict[str, bytes]()
    if old is None or _without_parts(old) != _without_parts(new):
        parts["status"] = new.serialize()
    else:
        fields = job_resource(job).model_dump(
            mode="json", include={"version", "progress", "preview", "links"}
        )
        if old.job.progress != job.progress:
            parts["progress"] = _encode_fields(fields, "version", "progress")
        if old.job.preview != job.preview:
            parts["preview"] = _encode_fields(fields, "version", "preview", "links")
    last = next(reversed(parts), None)
    return b"".join(
        format_sse_event(
            event=name, data_str=data.decode(), id=str(job.version) if name == last else None
        )
        for name, data in parts.items()
    )


def _without_parts(snapshot: JobSnapshot) -> Any:
    """Return what a client sees of the job except what `progress` and `preview` events contain."""
    fields = job_resource(snapshot.job).model_dump(exclude={"version", "progress", "preview"})
    fields["links"].pop("preview", None)
    return fields


def _encode_fields(fields: dict[str, Any], *names: str) -> bytes:
    return json.dumps({name: fields[name] for name in names}, separators=(",", ":")).encode()
