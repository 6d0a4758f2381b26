"""Gives every request an id and a log line, and answers 500 for an unexpected exception.

This module knows no route.
"""

import logging
import random
import re
import time

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import metrics
from api.http import problems
from core import errors
from core.log import request_id

CLIENT_CLOSED = 499  # for the log only: the client disconnected before the response

log = logging.getLogger(__name__)

_random = random.Random()  # noqa: S311 - an id is no secret, and the system's numbers take longer

_PLAIN_ID = re.compile(rb"[A-Za-z0-9_-]{1,64}")


class AccessLog:
    """The outermost middleware that handles errors.

    It sends `X-Request-Id`: the client's own id if it is short and plain, else a new one.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, headers_sent, status = time.perf_counter(), None, None
        new_id = choose_request_id(scope)

        async def answer(message: Message) -> None:
            nonlocal status, headers_sent
            if message["type"] == "http.response.start":
                status, headers_sent = message["status"], time.perf_counter()
                # A route has no reason to set it, and uvicorn wants a list of its own.
                message["headers"] = [*message["headers"], (b"x-request-id", new_id.encode())]
            await send(message)

        token = request_id.set(new_id)
        try:
            await self._app(scope, receive, answer)
        except ClientDisconnect:
            status = status or CLIENT_CLOSED
        except Exception:
            log.exception("unexpected error")
            if status is not None:  # the headers are sent: only uvicorn can still end the response
                raise
            await problems.problem(errors.ImpastoError())(scope, receive, answer)
        finally:
            ended = time.perf_counter()
            seconds_to_headers = (headers_sent or ended) - started
            log_request(scope, status or CLIENT_CLOSED, ended - started, seconds_to_headers)
            request_id.reset(token)


def choose_request_id(scope: Scope) -> str:
    """Return the client's own id if it is short and plain, else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _PLAIN_ID.fullmatch(value):
            return bytes(value).decode()
    return f"{_random.getrandbits(64):016x}"


def log_request(scope: Scope, status: int, seconds: float, seconds_to_headers: float) -> None:
    """Log and count a request.

    It names the route, not the path: text that a client invents must not get into the log.
    """
    method, route = scope["method"], getattr(scope.get("route"), "path", "-")
    milliseconds = round(seconds * 1000, 1)
    fields = {"method": method, "route": route, "status": status, "ms": milliseconds}
    metrics.record_request(method, route, status, seconds_to_headers)
    log.info("%s %s %d %s ms", method, route, status, milliseconds, extra={"fields": fields})


def log_repeats(method: str, status: int, count: int) -> None:
    """Log and count the repetitions of a response, which the server has sent from its cache."""
    if not count:
        return
    route = "-"  # they are refused before the route is found
    fields = {"method": method, "route": route, "status": status, "repeats": count}
    metrics.record_repeats(method, route, status, count)
    log.info("%s %s %d %d more times", method, route, status, count, extra={"fields": fields})
