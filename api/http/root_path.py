"""The root path: the path under which a reverse proxy serves the API, such as `/impasto`.

api/middleware/reverse_proxy.py sets it for each request. Addresses in responses begin with it.
"""

import re
from contextvars import ContextVar

from starlette.types import Scope

root_path: ContextVar[str] = ContextVar("root_path", default="")

# The first segments of the service's own paths. As a root path, one of them would be ambiguous:
# whether a proxy has stripped it or not could not be told from the path of a request.
SERVICE_SEGMENTS = frozenset(
    {"docs", "favicon.ico", "j", "livez", "metrics", "openapi.json", "operator", "readyz"}
    | {"share", "sw.js", "v1", "web"}
)
MAX_LENGTH = 200

_SEGMENTS = re.compile(r"(/[A-Za-z0-9_~-][A-Za-z0-9._~-]*)+")


def parse_root_path(text: str) -> str:
    """Return the root path without a slash at its end; "" for the root of the host.

    Raises ValueError for a text that is no plain path, or that begins like a path of the service.
    """
    path = text.removesuffix("/")
    if path and (len(path) > MAX_LENGTH or not _SEGMENTS.fullmatch(path)):
        raise ValueError("must be a path such as /impasto: letters, digits, and . _ ~ -")
    if path and path.split("/")[1] in SERVICE_SEGMENTS:
        raise ValueError("must not begin like a path of the service itself, such as /v1 or /docs")
    return path


def add_root_path(path: str) -> str:
    """Return the address of a path of the service, for the client of the current request."""
    return root_path.get() + path


def service_path(scope: Scope) -> str:
    """Return the path of a request within the service. Call this before a route is chosen."""
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path or "/"
