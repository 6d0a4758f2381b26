"""GET /v1/jobs/{job_id}: what most requests ask for, so it is answered without a thread, and past FastAPI's parameters.

FastAPI works out what a route depends on for every request; for this one that takes longer than all else together.
"""

from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from api.http import etag, prefer
from api.job_feed import JobFeed, JobSnapshot
from api.middleware.auth import Caller
from api.schemas.job import JOBS, RETRY_AFTER_SECONDS, JobResource
from core import errors
from core.jobs.models import is_job_id


class Direct(APIRoute):
    """A route whose function takes the request as it is; its parameters are documented by hand."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """The function itself."""
        handler: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return handler


router = APIRouter(prefix=JOBS, tags=["jobs"], route_class=Direct)


def _parameter(name: str, place: str, words: str) -> dict[str, Any]:
    schema = {"type": "string"}
    return {
        "name": name,
        "in": place,
        "required": place == "path",
        "schema": schema,
        "description": words,
    }


@router.get(
    "/{job_id}",
    response_model=JobResource,
    responses={304: {}},
    summary="How far is it?",
    openapi_extra={
        "parameters": [
            _parameter("job_id", "path", "As the submission was answered."),
            _parameter("prefer", "header", prefer.DESCRIPTION),
        ]
    },
)
async def look(request: Request) -> Response:
    """The job. Send the ETag back as If-None-Match: 304 while nothing has changed.

    `Prefer: wait=N` (30 s at most): with If-None-Match the answer comes with the next change, else with a new status.
    """
    feed: JobFeed = request.app.state.job_feed
    caller: Caller = request.state.caller
    job_id, known = request.path_params["job_id"], etag.if_none_match(request)
    if not is_job_id(job_id):
        raise errors.JobNotFound()
    headers = {"Cache-Control": "no-cache"}
    snapshot = None
    if patience := prefer.parse_wait(request.headers.get("prefer")):
        with suppress(errors.TooManyStreams):  # it is a preference; they may poll
            snapshot = await feed.wait_for(_differs_from(known), job_id, caller.owner, patience)
            headers |= prefer.preference_applied(patience)
    snapshot = snapshot or await feed.get(job_id, caller.owner)
    headers["ETag"] = snapshot.tag
    if not snapshot.job.status.has_ended:
        headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    if etag.matches(known, snapshot.tag):
        return Response(status_code=304, headers=headers)
    return Response(snapshot.body, media_type="application/json", headers=headers)


def _differs_from(known: str) -> Callable[[JobSnapshot, JobSnapshot], bool]:
    """Whether a snapshot is news for who knows these tags; or for who knows none, since the first."""
    if known:
        return lambda _, newest: not etag.matches(known, newest.tag)
    return lambda first, newest: (
        newest.job.status.has_ended or newest.job.status != first.job.status
    )
