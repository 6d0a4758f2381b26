"""Entity tags (RFC 9110): whether a client already has what it asks for. Knows no route.

Weak tags, W/"...", are for jobs and batches: who has one knows all but the seconds until a waiting job begins, which
pass by themselves. Pictures have strong ones: the same bytes.
"""

import re

from starlette.requests import Request

_TAG = re.compile(r'(?:W/)?("[^"]*")')


def if_none_match(request: Request) -> str:
    """What the request says in If-None-Match; empty if nothing."""
    return ", ".join(request.headers.getlist("if-none-match"))


def matches(tags: str, tag: str) -> bool:
    """Whether a tag is one of those sent. Compared weakly, as is right for a GET; `*` stands for any."""
    return bool(tags) and (tags.strip() == "*" or tag.removeprefix("W/") in _TAG.findall(tags))
