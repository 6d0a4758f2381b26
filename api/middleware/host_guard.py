"""Refuses what other web pages make a browser send here, and what no honest client sends. Knows no route.

A service on loopback has no password; its only wall is that strangers cannot reach it. A browser can, on behalf of any
page that it shows: by a form (multipart needs nobody's consent), or by a name that is made to mean 127.0.0.1 (DNS
rebinding). So the name by which we are called must be one of ours, and what changes something must not come from a page
of somebody else. The second follows Go's http.CrossOriginProtection: no tokens, only what every browser sends.
"""

import re
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from api.http import problems
from api.settings import is_loopback

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})

_AUTHORITY = re.compile(rb"(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")


def names_for(listening_on: str, allowed: Iterable[str]) -> frozenset[str] | None:
    """The names that we may be called by; None: any, because a proxy's name cannot be known."""
    given = frozenset(name.lower() for name in allowed)
    own = f"[{listening_on}]" if ":" in listening_on else listening_on
    if given or is_loopback(listening_on):
        return given | LOOPBACK | {own}
    return None


class HostGuard:
    """Answers itself what it refuses: 400, 403, 415."""

    def __init__(self, app: ASGIApp, names: frozenset[str] | None, origins: Iterable[str]) -> None:
        self._app, self._names = app, names
        self._origins = frozenset(origin.lower().encode() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        code = self._refused(scope) if scope["type"] == "http" else None
        await (self._app if code is None else problems.refusal(code))(scope, receive, send)

    def _refused(self, scope: Scope) -> str | None:
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        given = dict(scope["headers"])
        if len(hosts) > 1 or (not hosts and scope["http_version"] != "1.0"):
            return "bad_request"
        host = hosts[0] if hosts else b"localhost"
        called = _AUTHORITY.fullmatch(host)
        if called is None:
            return "bad_request"
        if self._names is not None and called[1].decode().lower() not in self._names:
            return "host_not_allowed"
        if scope["method"] not in SAFE and self._from_elsewhere(given, host):
            return "cross_origin_forbidden"
        if given.get(b"content-encoding", b"identity").lower() != b"identity":
            return "unsupported_encoding"
        return None

    def _from_elsewhere(self, given: dict[bytes, bytes], host: bytes) -> bool:
        origin, site = given.get(b"origin"), given.get(b"sec-fetch-site")
        if origin is not None and origin.lower() in self._origins:
            return False
        if site is not None:
            return site not in (b"same-origin", b"none")
        # A browser too old for Sec-Fetch-Site, or no browser. The scheme is not compared: a proxy may have ended TLS.
        return origin is not None and origin.lower().partition(b"://")[2] != host.lower()
