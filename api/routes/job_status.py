"""GET /v1/jobs/{job_id}: the most frequent request, so it uses neither threads nor dependencies.

FastAPI resolves a route's dependencies on every request. Here that would take longer than the rest.
Most requests do not even come here: api/fast_path.py answers them.
"""

from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from api.http import etag, prefer
from api.http.root_path import root_path
from api.http.shared_response import SharedResponse
from api.job_feed import JobFeed, JobSnapshot
from api.middleware.auth import Caller
from api.middleware.security_headers import DATA_HEADERS
from api.schemas.job import JOBS, RETRY_AFTER_SECONDS, JobResource
from core import errors
from core.jobs.models import is_job_id

MAX_PREPARED = 4  # responses per snapshot: 200 and 304, for two root paths


class DirectRoute(APIRoute):
    """A route whose function receives the bare request. Its parameters are documented by hand."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the route's function itself, without dependency resolution."""
        handler: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return handler


router = APIRouter(prefix=JOBS, tags=["jobs"], route_class=DirectRoute)


def _describe_parameter(name: str, place: str, description: str) -> dict[str, Any]:
    return {
        "name": name,
        "in": place,
        "required": place == "path",
        "schema": {"type": "string"},
        "description": description,
    }


@router.get(
    "/{job_id}",
    response_model=JobResource,
    responses={304: {}},
    summary="Get a job",
    openapi_extra={
        "parameters": [
            _describe_parameter("job_id", "path", "The id from the response to the submission."),
            _describe_parameter("prefer", "header", prefer.DESCRIPTION),
        ]
    },
)
async def get_job(request: Request) -> Response:
    """Return the job. Send its ETag as If-None-Match: the answer is 304 if nothing has changed.

    `Prefer: wait=N` (30 s at most) waits for the next change if you send If-None-Match. Otherwise
    it waits for a new status.
    """
    feed: JobFeed = request.app.state.job_feed
    caller: Caller = request.state.caller
    job_id, known_tags = request.path_params["job_id"], etag.if_none_match(request)
    if not is_job_id(job_id):
        raise errors.JobNotFound()
    headers = {}
    snapshot = None
    if seconds := prefer.parse_wait(request.headers.get("prefer")):
        with suppress(errors.TooManyStreams):  # waiting is only a preference; the client can poll
            has_news = _has_news_for(known_tags)
            snapshot = await feed.wait_for(has_news, job_id, caller.owner, seconds)
            headers = prefer.preference_applied(seconds)
    snapshot = snapshot or await feed.get(job_id, caller.owner)
    response = share_response(snapshot, known_tags)
    answer = Response(response.body, response.status)
    answer.raw_headers = [*response.headers]
    answer.headers.update(headers)
    return answer


(ROUTE,) = router.routes


def share_response(snapshot: JobSnapshot, known_tags: str) -> SharedResponse:
    """Return the job, or 304 if its tag is among the known ones, with all but its own headers."""
    is_known = etag.matches(known_tags, snapshot.tag)
    key = (root_path.get(), is_known)  # the body's links begin with the root path
    response: SharedResponse | None = snapshot.prepared.get(key)
    if response is None:
        headers = [(b"cache-control", b"no-cache"), (b"etag", snapshot.tag.encode())]
        if not snapshot.job.status.has_ended:
            headers.append((b"retry-after", str(RETRY_AFTER_SECONDS).encode()))
        body = b"" if is_known else snapshot.serialize()
        if not is_known:
            headers.append((b"content-length", str(len(body)).encode()))
            headers.append((b"content-type", b"application/json"))
        response = SharedResponse(304 if is_known else 200, [*headers, *DATA_HEADERS], body)
        if len(snapshot.prepared) >= MAX_PREPARED:
            snapshot.prepared.clear()
        snapshot.prepared[key] = response
    return response


def _has_news_for(known_tags: str) -> Callable[[JobSnapshot, JobSnapshot], bool]:
    """Return a predicate of (first snapshot, newest snapshot): does the newest contain news?

    With known tags, every other tag is news. Without any, only a new status or the end is.
    """
    if known_tags:
        return lambda _, newest: not etag.matches(known_tags, newest.tag)
    return lambda first, newest: (
        newest.job.status.has_ended or newest.job.status != first.job.status
    )
