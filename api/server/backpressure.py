"""A uvicorn request cycle that does not read ahead of the application.

uvicorn resumes reading when it passes a block to the application, even if another block already
waits. With hundreds of clients uploading at once, the waiting blocks (a quarter of a megabyte each)
are most of the process's memory.
"""

from uvicorn._types import ASGIReceiveEvent
from uvicorn.protocols.http import httptools_impl


class BackpressureCycle(httptools_impl.RequestResponseCycle):
    """Passes on the buffered block before it resumes reading."""

    async def receive(self) -> ASGIReceiveEvent:
        """Return the next ASGI event."""
        if not self.body or not self.more_body or self.disconnected or self.response_complete:
            return await super().receive()
        block, self.body = bytes(self.body), bytearray()
        self.message_event.clear()
        return {"type": "http.request", "body": block, "more_body": True}


def install() -> None:
    """Make uvicorn use this class: no setting exists, so this replaces the name."""
    httptools_impl.RequestResponseCycle = BackpressureCycle  # type: ignore[misc]
