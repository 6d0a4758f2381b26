"""A cache of responses that the connections answer from, without the application.

Under overload most requests are refused, and clients that ignore Retry-After send them again and
again. What a refusal costs is taken from the requests that are served. So the same request from the
same address gets the same bytes for as long as the application allows, and the application learns
afterwards how often that was. At a shutdown the numbers of the last moment are lost.

This module knows bytes, no routes.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from api.http.shared_response import CachePolicy

MAX_ENTRIES = 4096
# Of the head of a request. With the objects around it, an entry has some four times as much.
MAX_HEAD_BYTES = 2048

_Key = tuple[object, ...]


@dataclass(slots=True)
class EncodedResponse:
    """A whole response, and how often it was sent from the cache so far.

    The lines of its head end with CRLF, and one of them is Content-Length.
    """

    status: int
    head: bytes
    body: bytes
    hits: int = 0


class ResponseCache:
    """Responses by request. For one event loop.

    An entry is for requests with the same head from the same address, so a response never reaches
    one that the application would tell from the first.
    """

    def __init__(self) -> None:
        self._entries: dict[_Key, tuple[EncodedResponse, CachePolicy]] = {}

    def find(self, scope: Mapping[str, Any], address: str) -> EncodedResponse | None:
        """Return the response to this request, or None. address: of the connection."""
        if not self._entries:  # as nearly always
            return None
        response, policy = self._entries.get(_key(scope, address), (None, None))
        return response if policy is not None and policy.is_valid() else None

    def add(
        self, scope: Mapping[str, Any], address: str, response: EncodedResponse, policy: CachePolicy
    ) -> None:
        """Keep the response for `policy.seconds`, unless there are too many or it is large."""
        key = _key(scope, address)
        head_bytes = len(scope["raw_path"]) + len(scope["query_string"])
        head_bytes += sum(len(name) + len(value) for name, value in scope["headers"])
        if len(self._entries) >= MAX_ENTRIES or head_bytes > MAX_HEAD_BYTES or key in self._entries:
            return
        self._entries[key] = response, policy

        def expire() -> None:
            del self._entries[key]
            policy.on_expired(response.hits)

        asyncio.get_running_loop().call_later(policy.seconds, expire)


def _key(scope: Mapping[str, Any], address: str) -> _Key:
    request_line = scope["method"], scope["raw_path"], scope["query_string"], scope["http_version"]
    return address, *request_line, *scope["headers"]
