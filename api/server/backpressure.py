"""One request and its answer on uvicorn's side of the fence, reading no further ahead than it must.

uvicorn goes on reading when it hands a block to the application, though another block may already wait. With hundreds
of clients uploading at once, the blocks that wait (a quarter of a megabyte each) are most of the process's memory.
"""

from uvicorn._types import ASGIReceiveEvent
from uvicorn.protocols.http import httptools_impl


class BackpressureCycle(httptools_impl.RequestResponseCycle):
    """Hands over what is there first; only when nothing is, it reads."""

    async def receive(self) -> ASGIReceiveEvent:
        """The next event, as ASGI has it."""
        if not self.body or not self.more_body or self.disconnected or self.response_complete:
            return await super().receive()
        block, self.body = bytes(self.body), bytearray()
        self.message_event.clear()
        return {"type": "http.request", "body": block, "more_body": True}


def install() -> None:
    """Let uvicorn's protocol make such cycles; it has no other place to say so."""
    httptools_impl.RequestResponseCycle = BackpressureCycle  # type: ignore[misc]
