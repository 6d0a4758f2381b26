"""Answers HEAD wherever GET is allowed: the same response, without its body. It knows no route."""

from anyio import CancelScope
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadRequests:
    """Serves HEAD through the GET route, and cancels that route after the headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        supported = True

        async def answer(message: Message) -> None:
            nonlocal supported
            supported = supported and message.get("status") != 405
            if supported:
                await send(message)

        await self._app(scope, receive, answer)
        if not supported:
            await self._send_as_get({**scope, "method": "GET"}, receive, send)

    async def _send_as_get(self, scope: Scope, receive: Receive, send: Send) -> None:
        with CancelScope() as request_scope:

            async def answer(message: Message) -> None:
                if message["type"] == "http.response.start":
                    await send(message)
                    await send({"type": "http.response.body", "body": b""})
                    request_scope.cancel()  # nobody reads the body: a stream would never end

            await self._app(scope, receive, answer)
