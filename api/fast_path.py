"""Answers the most frequent requests before all other middleware and FastAPI's stack.

These are GET of a job, its events and its result, as most clients send them: without a query, a
preference, a range or an origin. A request passes the same host check, authentication and limits,
and its answer has the same headers, log line and metrics as on the usual way. What is refused,
missing or fails is answered on the usual way. But reads that the admission control refuses are
refused here: under overload they are the most frequent ones. The server repeats such a refusal for
a moment (api/server/response_cache.py); repetitions count for no limit. A test compares both ways.
"""

import re
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from starlette.types import ASGIApp, Receive, Scope, Send

from api.fair_queue import FairQueue
from api.http import etag
from api.http.image_response import PictureFile
from api.http.problems import problem
from api.http.root_path import service_path
from api.http.shared_response import CachePolicy, SharedResponse
from api.middleware import tracing as tracing_middleware
from api.middleware.access_log import choose_request_id, log_repeats, log_request
from api.middleware.auth import Authentication
from api.middleware.host_guard import HostGuard
from api.middleware.read_admission import is_read
from api.middleware.security_headers import DATA_HEADERS
from api.routes import job_events, job_status, jobs
from api.routes.job_events import EventStream
from core import errors, tracing
from core.log import request_id

_PATH = re.compile(r"/v1/jobs/(job_[a-z2-7]{26})(/events|/result)?")
# A refusal is repeated for so long, while requests wait. Retry-After asks for a second or more.
REPEAT_SECONDS = 0.5
_REQUEST_ID = b"x-request-id"
_SPECIAL = frozenset({b"prefer", b"origin", b"range"})


class FastPath:
    """Serves GET of a job, its events and its result, and refuses reads in a crowd.

    Passes on everything else.
    """

    def __init__(
        self,
        app: ASGIApp,
        guard: HostGuard,
        authentication: Authentication,
        reads: FairQueue,
        headers: Sequence[tuple[bytes, bytes]],
    ) -> None:
        """headers: of every response, beside the security headers."""
        self._app, self._guard, self._authentication = app, guard, authentication
        self._headers, self._reads = headers, reads
        # Where traces are on, a request that belongs to one is traced.
        self._special = _SPECIAL | {tracing_middleware.HEADER} if tracing.is_enabled() else _SPECIAL

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        started = time.perf_counter()
        match, may_refuse = None, False
        if scope["type"] == "http" and scope["method"] == "GET":
            if not scope["query_string"]:
                match = _PATH.fullmatch(service_path(scope))
            may_refuse = match is None and self._reads.is_crowded and is_read(scope)
        if (match is None and not may_refuse) or self._is_special(scope):
            await self._app(scope, receive, send)
            return
        new_id = choose_request_id(scope)
        token = request_id.set(new_id)
        try:
            response = await (
                self._respond(scope, *match.groups()) if match else self._refuse(scope)
            )
            if response is not None:
                answered = time.perf_counter()
                try:
                    own_headers = [*self._headers, (b"x-request-id", new_id.encode())]
                    if isinstance(response, SharedResponse):  # it has them, encoded
                        policy = self._cache_policy(scope, response.status) if may_refuse else None
                        await response.send_to(scope, receive, send, own_headers, policy)
                    else:
                        own_headers += DATA_HEADERS
                        await response.send_to(scope, receive, send, own_headers)
                finally:
                    seconds = time.perf_counter() - started
                    log_request(scope, response.status, seconds, answered - started)
                return
        finally:
            request_id.reset(token)
        await self._app(scope, receive, send)

    def _is_special(self, scope: Scope) -> bool:
        """Whether the request needs more than the fast path does, or is refused."""
        if not self._special.isdisjoint(name for name, _ in scope["headers"]):
            return True
        return self._guard.find_refusal(scope) is not None

    async def _refuse(self, scope: Scope) -> SharedResponse | None:
        """Return the refusal of a read; None where it may wait for its turn."""
        with suppress(errors.ImpastoError):
            await self._authentication.identify(scope, counts_failure=False)
            refusal = self._reads.find_refusal(scope["state"]["caller"].queue_name)
            if refusal is not None:
                answer = problem(refusal)
                headers = [*answer.raw_headers, *DATA_HEADERS]
                return SharedResponse(answer.status_code, headers, bytes(answer.body))
        return None

    def _cache_policy(self, scope: Scope, status: int) -> CachePolicy | None:
        if any(name == _REQUEST_ID for name, _ in scope["headers"]):
            return None  # each request has an id of its own
        seconds = min(REPEAT_SECONDS, self._reads.wait_seconds / 2)
        on_expired = partial(log_repeats, scope["method"], status)
        return CachePolicy(seconds, lambda: self._reads.is_crowded, on_expired)

    async def _respond(
        self, scope: Scope, job_id: str, part: str | None
    ) -> SharedResponse | EventStream | PictureFile | None:
        """Return the response; None where it is a refusal or needs more work."""
        with suppress(errors.ImpastoError):
            # A wrong key is counted on the usual way.
            await self._authentication.identify(scope, counts_failure=False)
            state, feed = scope["app"].state, scope["app"].state.job_feed
            owner, has_access = scope["state"]["caller"].owner, scope["state"]["has_access"]
            if part is None:
                snapshot = await feed.get(job_id, owner)
                scope["route"] = job_status.ROUTE
                return job_status.share_response(snapshot, etag.read_if_none_match(scope))
            if part == "/result" and not etag.read_if_none_match(scope):
                snapshot = await feed.get(job_id, owner)
                scope["route"] = jobs.RESULT_ROUTE
                if state.settings.result_links:
                    return None
                return jobs.open_stored_result(snapshot.job, state.blobs)
            if part != "/events":
                return None
            ids = [value for name, value in scope["headers"] if name == b"last-event-id"]
            after = job_events.parse_event_id(ids[0].decode("latin-1")) if ids else None
            stream = await job_events.open_stream(feed, job_id, owner, has_access, after)
            scope["route"] = job_events.ROUTE
            return stream
        return None
