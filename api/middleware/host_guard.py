"""Refuses malformed requests and those that other web pages make a browser send.

This module knows no route.

A service on loopback has no password; its only protection is that other machines cannot reach it.
But a browser on this machine can, on behalf of any page that it shows: through a form (multipart
needs no CORS preflight), or through a host name that resolves to 127.0.0.1 (DNS rebinding). So two
rules hold:

- The Host header must be one of the service's own names.
- A request that changes something must not come from a page of another origin. This follows Go's
  http.CrossOriginProtection: it needs no tokens, only headers that every browser sends.
"""

import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from api.http import problems
from api.settings import is_loopback

LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

_AUTHORITY = re.compile(rb"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")


def resolve_host_names(listening_on: str, allowed: Iterable[str]) -> frozenset[str] | None:
    """The host names that clients may use; None for any name.

    Without a list of names any name is allowed on a public address: a proxy's name cannot be known.
    """
    given = frozenset(name.lower() for name in allowed)
    own = f"[{listening_on}]" if ":" in listening_on else listening_on
    if given or is_loopback(listening_on):
        return given | LOOPBACK_NAMES | {own}
    return None


class HostGuard:
    """Answers 400, 403 or 415 to requests that it refuses."""

    def __init__(self, app: ASGIApp, names: frozenset[str] | None, origins: Iterable[str]) -> None:
        self._app, self._names = app, names
        self._origins = frozenset(origin.lower().encode() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        code = self.find_refusal(scope) if scope["type"] == "http" else None
        await (self._app if code is None else problems.refusal(code))(scope, receive, send)

    def find_refusal(self, scope: Scope) -> str | None:
        """Return the error code of the refusal, or None if the request is allowed."""
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        headers = dict(scope["headers"])
        if len(hosts) > 1 or (not hosts and scope["http_version"] != "1.0"):
            return "bad_request"
        host = hosts[0] if hosts else b"localhost"
        authority = _AUTHORITY.fullmatch(host)
        if authority is None:
            return "bad_request"
        if self._names is not None and authority[1].decode().lower() not in self._names:
            return "host_not_allowed"
        if scope["method"] not in SAFE_METHODS and self._is_cross_origin(headers, host):
            return "cross_origin_forbidden"
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            return "unsupported_encoding"
        return None

    def _is_cross_origin(self, headers: dict[bytes, bytes], host: bytes) -> bool:
        origin, site = headers.get(b"origin"), headers.get(b"sec-fetch-site")
        if origin is not None and origin.lower() in self._origins:
            return False
        if site is not None:
            return site not in (b"same-origin", b"none")
        # This is a browser too old for Sec-Fetch-Site, or not a browser. The scheme is not
        # compared, because a proxy may have terminated TLS.
        return origin is not None and origin.lower().partition(b"://")[2] != host.lower()
