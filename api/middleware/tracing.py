"""One span per request, and the trace that a submission's job belongs to. Knows no route.

Requests that only read are traced if the client sends a traceparent. Otherwise polls would be most
of all spans.
"""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.metrics import METHODS
from core import tracing

_READING = frozenset({"GET", "HEAD", "OPTIONS"})
HEADER = b"traceparent"


class Tracing:
    """Added only if traces are on."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        found = [value for name, value in scope["headers"] if name == HEADER]
        parent = found[0].decode("latin-1") if len(found) == 1 else None
        method = scope["method"] if scope["method"] in METHODS else "_OTHER"
        if parent is None and method in _READING:
            await self._app(scope, receive, send)
            return
        with tracing.span(method, parent, "SERVER", http__request__method=method) as span:

            async def answer(message: Message) -> None:
                if message["type"] == "http.response.start":
                    status = message["status"]
                    span.add(http__response__status_code=status)
                    if status >= 500:
                        span.fail(str(status))
                await send(message)

            try:
                await self._app(scope, receive, answer)
            finally:
                route = getattr(scope.get("route"), "path", None)
                span.add(http__route=route)
                span.name(f"{method} {route}" if route else method)
