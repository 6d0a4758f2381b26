"""Applies what a reverse proxy adds to a request: the client's address, the scheme, the root path.

This module knows no route.
"""

from contextlib import suppress
from typing import Any

from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from api.http.root_path import parse_root_path, root_path


class ReverseProxy:
    """Sets `client`, `scheme`, `root_path` and `path` of the request.

    The first three come from X-Forwarded-For, X-Forwarded-Proto and X-Forwarded-Prefix of a trusted
    proxy. Without a usable prefix, the root path is that of the settings. `path` begins with the
    root path, as ASGI wants it, whether the proxy has stripped it or not.
    """

    def __init__(self, app: ASGIApp, default_root_path: str, trusted_proxies: str) -> None:
        """trusted_proxies: addresses and networks, separated by commas; `*` for any."""
        self._app, self._default_root_path = app, default_root_path
        inner: Any = app  # uvicorn's types of ASGI differ from Starlette's
        self._proxy_headers: Any = ProxyHeadersMiddleware(inner, trusted_proxies)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] == "http":
            if not any(name.startswith(b"x-forwarded-") for name, _ in scope["headers"]):
                root_path.set(self._default_root_path)
                await self._app(_add_prefix(scope, self._default_root_path), receive, send)
                return
            prefix = self._read_prefix(scope)
            root_path.set(prefix)
            scope = _add_prefix(scope, prefix)
        # It replaces the proxy's address by the client's, so the prefix is read before.
        await self._proxy_headers(scope, receive, send)

    def _read_prefix(self, scope: Scope) -> str:
        """Return the root path. Several headers are ambiguous, so they do not count."""
        given = [value for name, value in scope["headers"] if name == b"x-forwarded-prefix"]
        address = scope["client"][0] if scope["client"] else None
        if len(given) == 1 and address in self._proxy_headers.trusted_hosts:
            with suppress(ValueError):
                return parse_root_path(given[0].decode("latin-1"))
        return self._default_root_path


def _add_prefix(scope: Scope, prefix: str) -> Scope:
    if not prefix:
        return scope
    changes: dict[str, Any] = {"root_path": prefix}
    if not f"{scope['path']}/".startswith(f"{prefix}/"):
        changes["path"] = prefix + scope["path"]
        changes["raw_path"] = prefix.encode() + scope["raw_path"]
    return {**scope, **changes}
