"""Every request's id, its line in the log, and the answer to what nobody foresaw. Knows no route."""

import logging
import re
import secrets
import time

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import metrics
from api.http import problems
from core import errors
from core.log import request_id

CLIENT_CLOSED = 499  # for the log only: the client did not wait for the answer

log = logging.getLogger(__name__)

_PLAIN = re.compile(rb"[A-Za-z0-9_-]{1,64}")


class AccessLog:
    """Around all that can fail. Answers `X-Request-Id`: the client's own if it is short and plain, else a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, first, status = time.perf_counter(), None, None
        own_id = _id(scope)

        async def answer(message: Message) -> None:
            nonlocal status, first
            if message["type"] == "http.response.start":
                status, first = message["status"], time.perf_counter()
                MutableHeaders(scope=message)["X-Request-Id"] = own_id
            await send(message)

        token = request_id.set(own_id)
        try:
            await self._app(scope, receive, answer)
        except ClientDisconnect:
            status = status or CLIENT_CLOSED
        except Exception:
            log.exception("unforeseen")
            if status is not None:
                raise
            await problems.problem(errors.ImpastoError())(scope, receive, answer)
        finally:
            ended = time.perf_counter()
            _tell(scope, status or CLIENT_CLOSED, ended - began, (first or ended) - began)
            request_id.reset(token)


def _id(scope: Scope) -> str:
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    return given.decode() if _PLAIN.fullmatch(given) else secrets.token_hex(8)


def _tell(scope: Scope, status: int, seconds: float, answered_seconds: float) -> None:
    """The route, not the path: what a caller makes up does not get into the log."""
    method, route = scope["method"], getattr(scope.get("route"), "path", "-")
    milliseconds = round(seconds * 1000, 1)
    fields = {"method": method, "route": route, "status": status, "ms": milliseconds}
    metrics.answered(method, route, status, answered_seconds)
    log.info("%s %s %d %s ms", method, route, status, milliseconds, extra={"fields": fields})
