"""uvicorn's request cycle, with backpressure for bodies and two cheaper ways to send a response.

uvicorn resumes reading when it passes a block to the application, even if another block already
waits. With hundreds of clients uploading at once, the waiting blocks (a quarter of a megabyte each)
are most of the process's memory.

Extensions of ASGI, named in the scope's `extensions`:

- `impasto.response.encoded` sends a whole response whose header lines are already encoded. uvicorn
  checks and encodes every header of every response, which takes longer than finding a cached job.
  If the message says so, the response is cached (response_cache.py).
- `http.response.zerocopysend` sends a part of a file, as the ASGI specification describes it, by
  sendfile(2): the bytes do not pass through this process.
"""

import asyncio
import os
from collections.abc import Awaitable
from typing import Any

from uvicorn._types import ASGIReceiveEvent
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from api.http.shared_response import ENCODED, ZERO_COPY, CachePolicy
from api.server.response_cache import EncodedResponse, ResponseCache

EXTENSIONS: dict[str, dict[object, object]] = {ENCODED: {}, ZERO_COPY: {}}
# The event loop waits while the system reads this many bytes of a file; they are usually in memory.
MAX_SENDFILE_BYTES = 512 * 1024
PIECE_BYTES = 64 * 1024  # is read and written where sendfile would have to wait


class RequestCycle(httptools_impl.RequestResponseCycle):
    """Passes on the buffered block before it resumes reading, and knows EXTENSIONS."""

    # The connection sets both before the application starts.
    cache: ResponseCache | None = None
    address = ""

    async def receive(self) -> ASGIReceiveEvent:
        """Return the next ASGI event."""
        if not self.body or not self.more_body or self.disconnected or self.response_complete:
            return await super().receive()
        block, self.body = bytes(self.body), bytearray()
        self.message_event.clear()
        return {"type": "http.request", "body": block, "more_body": True}

    def send(self, message: Any) -> Awaitable[None]:  # type: ignore[override]
        """Send one ASGI message."""
        if message["type"] == ENCODED:
            response = EncodedResponse(message["status"], message["head"], message["body"])
            return self._send_encoded(response, message["cache"])
        if message["type"] == ZERO_COPY:
            return self._send_file(message["file"], message.get("offset", 0), message["count"])
        return super().send(message)

    async def _send_encoded(self, response: EncodedResponse, policy: CachePolicy | None) -> None:
        """Send a whole response to a GET, as `send` of the base class does."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if policy is not None and self.cache is not None:
            self.cache.add(self.scope, self.address, response, policy)
        self.write(response)

    def write(self, response: EncodedResponse) -> None:
        """Write a whole response in one piece and without checks."""
        self.response_started, self.waiting_for_100_continue = True, False
        server_headers = (b"%b: %b\r\n" % header for header in self.default_headers)
        close = b"" if self.keep_alive else b"connection: close\r\n"
        parts = [STATUS_LINE[response.status], *server_headers, response.head, close, b"\r\n"]
        self.transport.write(b"".join([*parts, response.body]))
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()

    async def _send_file(self, descriptor: int, offset: int, count: int) -> None:
        """Send the rest of the body: `count` bytes of a file. Content-Length must say so."""
        if count != self.expected_content_length:
            raise RuntimeError("The file has not the length that the headers say.")
        end = offset + count
        # Pause while any byte waits in the transport: what sendfile sends must not overtake it.
        self.transport.set_write_buffer_limits(high=0)
        try:
            while offset < end and not self.disconnected:
                await asyncio.sleep(
                    0
                )  # lets the transport write what it has, and others have turns
                if self.flow.write_paused:
                    await self.flow.drain()
                elif sent := self._sendfile(descriptor, offset, end - offset):
                    offset += sent
                else:  # the connection takes nothing now: the transport waits until it does
                    piece = os.pread(descriptor, min(PIECE_BYTES, end - offset), offset)
                    if not piece:
                        raise RuntimeError("The file has become shorter.")
                    self.transport.write(piece)
                    offset += len(piece)
        finally:
            self.transport.set_write_buffer_limits()
        self.expected_content_length = 0
        await super().send({"type": "http.response.body", "body": b"", "more_body": False})

    def _sendfile(self, descriptor: int, offset: int, count: int) -> int:
        """Return how many bytes the connection has taken; 0 if it takes none or is broken."""
        connection = self.transport.get_extra_info("socket").fileno()
        try:
            return os.sendfile(connection, descriptor, offset, min(count, MAX_SENDFILE_BYTES))
        except OSError:  # if it is broken, the next write finds that, too
            return 0


def install() -> None:
    """Make uvicorn use this class: no setting exists, so this replaces the name."""
    httptools_impl.RequestResponseCycle = RequestCycle  # type: ignore[misc]
