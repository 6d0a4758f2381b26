"""Responses that the server repeats for a moment, without the application.

Under overload most requests are refused, and clients that ignore Retry-After send them again and
again. What a refusal costs is taken from the requests that are served. So the same request from the
same address gets the same bytes for as long as the application allows, and the application learns
afterwards how often that was.

This module knows bytes, no routes.
"""

import asyncio
from dataclasses import dataclass

from starlette.types import Scope

from api.http.shared_response import Repeat

MAX_STANDING = 4096  # of some 2 KB, with the heads of their requests

_Key = tuple[object, ...]


@dataclass(slots=True)
class EncodedResponse:
    """A whole response, and how often it was repeated so far.

    The lines of its head end with CRLF, and one of them is Content-Length.
    """

    status: int
    head: bytes
    body: bytes
    repeats: int = 0


class Repeats:
    """The responses that stand. For one event loop.

    A response stands for requests with the same head from the same address. So it never reaches one
    that the application would tell from the first.
    """

    def __init__(self) -> None:
        self._standing: dict[_Key, EncodedResponse] = {}

    def find(self, scope: Scope, address: str) -> EncodedResponse | None:
        """Return the response to this request, or None. address: of the connection."""
        if not self._standing:  # as nearly always
            return None
        return self._standing.get(_key(scope, address))

    def add(self, scope: Scope, address: str, response: EncodedResponse, repeat: Repeat) -> None:
        """Let the response stand for as long as `repeat` says, unless too many do."""
        key = _key(scope, address)
        if key in self._standing or len(self._standing) >= MAX_STANDING:
            return
        self._standing[key] = response

        def end() -> None:
            del self._standing[key]
            repeat.on_end(response.repeats)

        asyncio.get_running_loop().call_later(repeat.seconds, end)


def _key(scope: Scope, address: str) -> _Key:
    request_line = scope["method"], scope["raw_path"], scope["query_string"], scope["http_version"]
    return address, *request_line, *scope["headers"]
