"""A uvicorn protocol that disconnects slow or oversized requests. uvicorn's own has no such limits.

Each connection has a time budget of `timeout_seconds`. It shrinks while the server waits for the
client. Bytes that the client sends of a body, or receives of a response, restore it at the rate of
`min_bytes_per_second`, up to `timeout_seconds`. Hence:

- A silent connection is closed after `timeout_seconds`, and one below the minimum rate soon after.
- A connection that pauses between bursts stays open.
- The bytes of a request's head restore nothing: it must be complete within `timeout_seconds`.
- While the client waits for the server, the budget does not shrink.

This module knows bytes, no routes. It refuses with the same bodies as the rest of the API
(api/http/problems.py).
"""

import fcntl
import logging
import socket
import struct
import sys
import termios
from asyncio import Transport
from dataclasses import dataclass
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from api.http import problems
from api.server.request_cycle import EXTENSIONS
from api.server.response_cache import ResponseCache

MAX_URL_BYTES = 8 * 1024
MAX_HEAD_BYTES = 16 * 1024
MAX_HEADERS = 100
# The largest image, 20 MB, takes 2,600 s at 64 kbit/s (ISDN).
MAX_BODY_SECONDS = 45 * 60
CHECK_SECONDS = 1.0
# A refused client may still be sending. If the server closed at once, the client's kernel would get
# a reset and discard the response before the client reads it.
LINGER_SECONDS = 2.0

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConnectionLimits:
    """The time budget of a connection, and the rate at which transfer restores it."""

    timeout_seconds: float = 15.0
    min_bytes_per_second: float = 1000.0


def slow_client_protocol(limits: ConnectionLimits) -> type["SlowClientProtocol"]:
    """Make a protocol class with these limits: uvicorn takes a class, not an instance."""
    own = {"limits": limits, "cache": ResponseCache(), "__slots__": ()}
    return type("SlowClientProtocol", (SlowClientProtocol,), own)


class RequestRefused(Exception):
    """Raised in the parser's callbacks, with an error code."""


class SlowClientProtocol(HttpToolsProtocol):
    """uvicorn's protocol with deadlines and size limits."""

    # More than 30 attributes in its dictionary would take 2 KB for each connection: Python shares
    # the names between instances only up to that number.
    __slots__ = (
        "_body_deadline",
        "_checked_at",
        "_expects_head",
        "_head_bytes",
        "_in_body",
        "_in_head",
        "_is_idle",
        "_received",
        "_received_before",
        "_refused",
        "_seconds_left",
        "_timer",
        "_unsent_before",
    )

    limits: ClassVar[ConnectionLimits] = ConnectionLimits()
    cache: ClassVar[ResponseCache]

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """Start the time budget for the first head."""
        super().connection_made(transport)
        self._in_head = self._in_body = self._refused = False
        self._head_bytes, self._body_deadline = 0, 0.0
        # Bytes received so far, received until the last check, and unsent at the last check.
        self._received = self._received_before = 0
        self._unsent_before: int | None = 0  # None: not counted, since nothing was being sent
        self._is_idle = False  # whether the last response has arrived as a whole
        self._expect_head()
        self._checked_at = self.loop.time()
        self._timer = self.loop.call_later(CHECK_SECONDS, self._check)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the checks."""
        self._timer.cancel()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """Answer from the cache, or start the application."""
        # An answer from the cache to an earlier request of the same block has started it.
        self._unset_keepalive_if_required()
        cycle.cache, cycle.address = self.cache, self.client[0] if self.client else ""
        response = self.cache.find(cycle.scope, cycle.address)
        if (
            response is None
            or self.flow.write_paused
            or self.pipeline  # each answer would start the next one, one call deeper
            or self.parser.should_upgrade()  # on_headers_complete closes the connection afterwards
        ):
            super()._start_asgi_task(cycle, app)
            return
        response.hits += 1
        cycle.write(response)
        cycle.on_response = _do_nothing  # as the application's task does: no reference cycle

    # --- size limits

    def data_received(self, data: bytes) -> None:
        """Parse the bytes, and refuse a head that is too large before it is complete."""
        if self._refused:
            return
        self._received += len(data)
        was_in_head = self._in_head
        super().data_received(data)
        if was_in_head and self._in_head and not self._refused:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse("headers_too_large")

    def on_message_begin(self) -> None:
        """Note that a head begins."""
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()
        self.scope["extensions"] = EXTENSIONS

    def on_url(self, url: bytes) -> None:
        """Refuse a URL that is too long."""
        super().on_url(url)
        if len(self.url) > MAX_URL_BYTES:
            raise RequestRefused("uri_too_long")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Refuse too many headers."""
        super().on_header(name, value)
        if len(self.headers) > MAX_HEADERS:
            raise RequestRefused("headers_too_large")

    def on_headers_complete(self) -> None:
        """Refuse a head that is too large or ambiguous; then start the body's deadline.

        Two Transfer-Encoding headers, or one in HTTP/1.0, are read differently by different
        servers: behind a proxy that allows request smuggling.
        """
        header_bytes = sum(len(name) + len(value) + 4 for name, value in self.headers)
        if len(self.url) + header_bytes > MAX_HEAD_BYTES:
            raise RequestRefused("headers_too_large")
        version = self.parser.get_http_version()
        codings = [value.lower() for name, value in self.headers if name == b"transfer-encoding"]
        if version not in ("1.0", "1.1") or (
            codings and (version == "1.0" or codings != [b"chunked"])
        ):
            raise RequestRefused("bad_request")
        self._in_head, self._in_body, self._expects_head = False, True, False
        self._is_idle = False
        self._seconds_left = self.limits.timeout_seconds
        self._body_deadline = self.loop.time() + MAX_BODY_SECONDS
        super().on_headers_complete()
        if self.parser.should_upgrade():
            # The parser reads nothing after an upgrade, and this server does not upgrade.
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """Note that the body is complete."""
        self._in_body = False
        super().on_message_complete()
        if self.cycle.response_complete:
            self._expect_head()

    def on_response_complete(self) -> None:
        """Expect the next head, or the rest of a body that was answered before its end."""
        super().on_response_complete()
        if self.cycle.response_complete:
            self._expect_head()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's text
        """Refuse the request. uvicorn calls this when the parser or a callback above has raised."""
        error = sys.exception()
        cause = error.__context__ if error is not None else None
        self._refuse(str(cause) if isinstance(cause, RequestRefused) else "bad_request")

    def timeout_keep_alive_handler(self) -> None:
        """Postpone the keep-alive timeout while the client still receives the last response."""
        if self._count_unsent():
            self.timeout_keep_alive_task = self.loop.call_later(
                CHECK_SECONDS, self.timeout_keep_alive_handler
            )
        else:
            super().timeout_keep_alive_handler()

    # --- time budget

    def _expect_head(self) -> None:
        self._expects_head, self._seconds_left = not self._in_body, self.limits.timeout_seconds

    def _check(self) -> None:
        """Update the time budget, and disconnect the client when none is left."""
        now = self.loop.time()
        elapsed, self._checked_at = now - self._checked_at, now
        transferred = self._count_transferred()
        limit = self.limits.timeout_seconds
        if transferred is None:
            self._seconds_left = limit
        else:
            restored = transferred / self.limits.min_bytes_per_second
            self._seconds_left = min(limit, self._seconds_left + restored) - elapsed
        self._timer = self.loop.call_later(CHECK_SECONDS, self._check)
        if self._seconds_left <= 0 or (self._in_body and now > self._body_deadline):
            self._disconnect()

    def _count_transferred(self) -> int | None:
        """Bytes that the client has received or sent since the last check.

        None if the server does not wait for the client.
        """
        received = self._received - self._received_before
        self._received_before = self._received
        is_sending = self.flow.write_paused or self.transport.is_closing()
        if self._expects_head and self._is_idle and not is_sending:
            return 0  # as most of thousands of connections
        if is_sending or self._expects_head:
            unsent_before, self._unsent_before = self._unsent_before, self._count_unsent()
            self._is_idle = self._expects_head and not self._unsent_before
            if self._unsent_before and unsent_before is None:
                return None  # it may have received much since the last check
            if is_sending or self._unsent_before:
                return max(0, (unsent_before or 0) - self._unsent_before)
        else:  # thousands of streams wait for the next event, and counting takes a system call
            self._unsent_before = None
        if self._expects_head or (self._in_body and self.cycle.response_complete):
            return 0
        if self._in_body and not self.flow.read_paused and not self.cycle.waiting_for_100_continue:
            return received
        return None

    def _count_unsent(self) -> int:
        """Bytes that are written and that the client has not acknowledged.

        They are in the transport's buffer and in the kernel's, which can be larger.
        """
        buffered = int(self.transport.get_write_buffer_size())
        try:
            in_kernel = fcntl.ioctl(
                self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4)
            )
        # Not every system supports it. A socket without a descriptor (-1) is closed, and the event
        # loop has not reported that yet.
        except (OSError, ValueError):
            return buffered
        return buffered + int.from_bytes(in_kernel, sys.byteorder)

    def _disconnect(self) -> None:
        log.info("a client was too slow")
        if self._count_unsent():
            # SO_LINGER with 0 s discards what the kernel still buffers for the client. Without it
            # the kernel would try to send that for minutes.
            connection = self.transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.transport.abort()
        elif self._in_head or (self._in_body and not self.cycle.response_complete):
            self._refuse("request_timeout")
        else:
            self.transport.close()

    # --- refusals

    def _refuse(self, code: str) -> None:
        """Send the refusal and close.

        If an earlier complete request has no response yet, that response is sent instead, and the
        connection closes after it.
        """
        self._refused = True
        is_pending = self.cycle is not None and not self.cycle.response_complete
        if is_pending and not self.cycle.more_body:
            self.cycle.keep_alive = False
            return
        self._timer.cancel()
        self._timer = self.loop.call_later(LINGER_SECONDS, self.transport.abort)
        has_started = is_pending and self.cycle.response_started
        if is_pending:  # its body will never be complete: the application must stop waiting for it
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if not has_started:
            self.transport.write(_serialize(problems.refusal(code)))
        self.transport.write_eof()


def _do_nothing() -> None:
    pass


def _serialize(refusal: problems.Problem) -> bytes:
    headers = [
        *refusal.raw_headers,
        (b"x-content-type-options", b"nosniff"),
        (b"connection", b"close"),
    ]
    lines = [b"%b: %b\r\n" % header for header in headers]
    return b"".join([STATUS_LINE[refusal.status_code], *lines, b"\r\n", bytes(refusal.body)])
