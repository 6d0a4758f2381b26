"""One HTTP connection whose patience ends. uvicorn's own bears silence, slowness and endless headers for ever.

A connection has `patience` seconds. Time uses it up while we wait for the client; what the client sends of a body, or
takes of an answer, gives it back at the lowest rate that is borne, up to the full measure. So a silent line is cut
after `patience`, one that is slower than the rate soon after, and one that pauses between bursts is not. A head gives
nothing back: it must be whole in time. While we make the client wait, nothing is used up.

Knows bytes, no routes. Refuses as the rest of the API does (api/http/problems.py).
"""

import fcntl
import logging
import socket
import struct
import sys
import termios
from asyncio import Transport
from dataclasses import dataclass
from typing import ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from api.http import problems

LINE_BYTES = 8 * 1024  # the request's address
HEAD_BYTES = 16 * 1024
HEADERS = 100
# The longest that a body may take. 20 MB, the largest picture, take 2,600 s over 64 kbit/s, which is ISDN.
BODY_SECONDS = 45 * 60
TICK_SECONDS = 1.0
# A refused client may still be sending. To close now would make its kernel throw our answer away before it is read.
LINGER_SECONDS = 2.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConnectionLimits:
    """How much slowness is borne."""

    patience: float = 15.0  # seconds
    rate: float = 1000.0  # bytes a second


def slow_client_protocol(limits: ConnectionLimits) -> type["SlowClientProtocol"]:
    """The protocol class with these limits, as uvicorn wants it."""
    return type("SlowClientProtocol", (SlowClientProtocol,), {"limits": limits})


class RequestRefused(Exception):
    """Raised inside the parser's callbacks, with the code of a refusal."""


class SlowClientProtocol(HttpToolsProtocol):
    """uvicorn's protocol with deadlines and bounds."""

    limits: ClassVar[ConnectionLimits] = ConnectionLimits()

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head."""
        super().connection_made(transport)
        self._in_head = self._in_body = self._refused = False
        self._head_bytes, self._body_until = 0, 0.0
        self._received = self._seen = self._untaken = 0
        self._await_head()
        self._looked = self.loop.time()
        self._timer = self.loop.call_later(TICK_SECONDS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is left to watch."""
        self._timer.cancel()
        super().connection_lost(exc)

    # --- bounds

    def data_received(self, data: bytes) -> None:
        """Parse, count, and refuse a head without end."""
        if self._refused:
            return
        self._received += len(data)
        began_before = self._in_head
        super().data_received(data)
        if began_before and self._in_head and not self._refused:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._refuse("headers_too_large")

    def on_message_begin(self) -> None:
        """A head begins."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Bound the request's line."""
        super().on_url(url)
        if len(self.url) > LINE_BYTES:
            raise RequestRefused("uri_too_long")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Bound the headers."""
        super().on_header(name, value)
        if len(self.headers) > HEADERS:
            raise RequestRefused("headers_too_large")

    def on_headers_complete(self) -> None:
        """Only a head that cannot be read in two ways gets to the application."""
        if (
            len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            > HEAD_BYTES
        ):
            raise RequestRefused("headers_too_large")
        version = self.parser.get_http_version()
        codings = [value.lower() for name, value in self.headers if name == b"transfer-encoding"]
        if version not in ("1.0", "1.1") or (
            codings and (version == "1.0" or codings != [b"chunked"])
        ):
            raise RequestRefused("bad_request")
        self._in_head, self._in_body, self._waits = False, True, False
        self._patience = self.limits.patience
        self._body_until = self.loop.time() + BODY_SECONDS
        super().on_headers_complete()
        if self.parser.should_upgrade():
            self.cycle.keep_alive = (
                False  # the parser reads nothing after an upgrade, and we do not upgrade
            )

    def on_message_complete(self) -> None:
        """The body is whole."""
        self._in_body = False
        super().on_message_complete()
        if self.cycle.response_complete:
            self._await_head()

    def on_response_complete(self) -> None:
        """The next head is due, or the rest of a body that was answered before its end."""
        super().on_response_complete()
        if self.cycle.response_complete:
            self._await_head()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's words
        """Called where the parser, or one of the callbacks above, has raised."""
        error = sys.exception()
        cause = error.__context__ if error is not None else None
        self._refuse(str(cause) if isinstance(cause, RequestRefused) else "bad_request")

    def timeout_keep_alive_handler(self) -> None:
        """A client that still takes the last answer is not idle."""
        if self._backlog():
            self.timeout_keep_alive_task = self.loop.call_later(
                TICK_SECONDS, self.timeout_keep_alive_handler
            )
        else:
            super().timeout_keep_alive_handler()

    # --- patience

    def _await_head(self) -> None:
        self._waits, self._patience = not self._in_body, self.limits.patience

    def _look(self) -> None:
        now = self.loop.time()
        elapsed, self._looked = now - self._looked, now
        moved = self._moved()
        if moved is None:
            self._patience = self.limits.patience
        else:
            self._patience = (
                min(self.limits.patience, self._patience + moved / self.limits.rate) - elapsed
            )
        self._timer = self.loop.call_later(TICK_SECONDS, self._look)
        if self._patience <= 0 or (self._in_body and now > self._body_until):
            self._cut()

    def _moved(self) -> int | None:
        """Bytes that the client has taken or sent since the last look; None if we do not wait for the client."""
        sent, self._seen = self._received - self._seen, self._received
        untaken, self._untaken = self._untaken, self._backlog()
        if self.flow.write_paused or self.transport.is_closing() or (self._waits and self._untaken):
            return max(0, untaken - self._untaken)
        if self._waits or (self._in_body and self.cycle.response_complete):
            return 0
        if self._in_body and not self.flow.read_paused and not self.cycle.waiting_for_100_continue:
            return sent
        return None

    def _backlog(self) -> int:
        """What we have written and the client has not taken, in our buffer and in the kernel's, which can be larger."""
        ours = int(self.transport.get_write_buffer_size())
        try:
            kernels = fcntl.ioctl(
                self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4)
            )
        except OSError:  # not every system tells
            return ours
        return ours + int.from_bytes(kernels, sys.byteorder)

    def _cut(self) -> None:
        log.info("a client was too slow")
        if self._backlog():
            # At once, with all that the kernel still holds for it; it would go on offering that for minutes.
            line = self.transport.get_extra_info("socket")
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        elif self._in_head or (self._in_body and not self.cycle.response_complete):
            self._refuse("request_timeout")
        else:
            self.transport.close()

    # --- the end

    def _refuse(self, code: str) -> None:
        """Answer, and close. Requests that came whole before are answered first, and then there is no more to say."""
        self._refused = True
        unanswered = self.cycle is not None and not self.cycle.response_complete
        if unanswered and not self.cycle.more_body:
            self.cycle.keep_alive = False
            return
        self._timer.cancel()
        self._timer = self.loop.call_later(LINGER_SECONDS, self.transport.abort)
        begun = unanswered and self.cycle.response_started
        if unanswered:  # its body will never be whole
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if not begun:
            self.transport.write(_as_bytes(problems.refusal(code)))
        self.transport.write_eof()


def _as_bytes(refusal: problems.Problem) -> bytes:
    headers = [
        *refusal.raw_headers,
        (b"x-content-type-options", b"nosniff"),
        (b"connection", b"close"),
    ]
    lines = [b"%b: %b\r\n" % header for header in headers]
    return b"".join([STATUS_LINE[refusal.status_code], *lines, b"\r\n", bytes(refusal.body)])
