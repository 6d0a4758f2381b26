"""A response that many requests share: its headers are encoded once."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from starlette.types import Receive, Scope, Send

# An extension of ASGI (api/server/request_cycle.py): a message with `status`, `head` (encoded
# header lines) and `body`, which is a whole response, and `cache`: a CachePolicy or None.
ENCODED = "impasto.response.encoded"
ZERO_COPY = "http.response.zerocopysend"  # the same, of the ASGI specification

RawHeaders = list[tuple[bytes, bytes]]


@dataclass(frozen=True)
class CachePolicy:
    """When the server may send the same response to the same requests by itself."""

    seconds: float  # at most
    is_valid: Callable[[], bool]
    on_expired: Callable[[int], None]  # gets how often the response was sent from the cache


class SharedResponse:
    """A whole response to a GET, without what differs between requests (the request id)."""

    def __init__(self, status: int, headers: RawHeaders, body: bytes = b"") -> None:
        """headers: with a Content-Length if there is a body."""
        self.status, self.headers, self.body = status, headers, body

    @cached_property
    def _head(self) -> bytes:
        return encode_headers(self.headers)

    async def send_to(
        self,
        scope: Scope,
        receive: Receive,  # noqa: ARG002 - as for any response
        send: Send,
        own_headers: RawHeaders,
        cache: CachePolicy | None = None,
    ) -> None:
        """Send the response to one request. own_headers: for this request only, if not cached."""
        if ENCODED in scope.get("extensions", ()):
            head = self._head + encode_headers(own_headers)
            message = {"type": ENCODED, "status": self.status, "head": head, "body": self.body}
            await send({**message, "cache": cache})
            return
        start = {"status": self.status, "headers": [*self.headers, *own_headers]}
        await send({"type": "http.response.start", **start})
        await send({"type": "http.response.body", "body": self.body})


def encode_headers(headers: RawHeaders) -> bytes:
    """Return the header lines."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])
