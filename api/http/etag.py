"""Entity tags (RFC 9110): whether a client already has the current representation. Knows no route.

Jobs and batches have weak tags, W/"...": two representations with the same tag may differ in the
seconds until a queued job starts, which change by themselves. Pictures have strong tags.
"""

import re

from starlette.requests import Request
from starlette.types import Scope

_TAG = re.compile(r'(?:W/)?("[^"]*")')


def if_none_match(request: Request) -> str:
    """Return the request's If-None-Match, several header lines joined; empty if there is none."""
    return read_if_none_match(request.scope)


def read_if_none_match(scope: Scope) -> str:
    """Return the same for the scope of a request."""
    values = [value for name, value in scope["headers"] if name == b"if-none-match"]
    return b", ".join(values).decode("latin-1")


def matches(tags: str, tag: str) -> bool:
    """Return whether `tag` is among the tags that the client sent; `*` matches any tag.

    The comparison is weak, as RFC 9110 section 13.1.2 requires for If-None-Match.
    """
    return bool(tags) and (tags.strip() == "*" or tag.removeprefix("W/") in _TAG.findall(tags))
