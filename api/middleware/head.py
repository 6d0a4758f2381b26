"""HEAD wherever GET is: the same answer, without its body. Knows no route."""

from anyio import CancelScope
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadRequests:
    """A route that knows no HEAD is asked as if by GET, and let go once it has told its headers."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        known = True

        async def answer(message: Message) -> None:
            nonlocal known
            known = known and message.get("status") != 405
            if known:
                await send(message)

        await self._app(scope, receive, answer)
        if not known:
            await self._get({**scope, "method": "GET"}, receive, send)

    async def _get(self, scope: Scope, receive: Receive, send: Send) -> None:
        with CancelScope() as asking:

            async def answer(message: Message) -> None:
                if message["type"] == "http.response.start":
                    await send(message)
                    await send({"type": "http.response.body", "body": b""})
                    asking.cancel()  # a stream would never end, for nobody reads it

            await self._app(scope, receive, answer)
