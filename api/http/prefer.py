"""`Prefer: wait=N` (RFC 7240): how long a client would wait for an answer that tells something new."""

import re
from typing import Annotated

from fastapi import Depends, Header

MOST_SECONDS = 30  # proxies give up after a minute or so

_WAIT = re.compile(r'(?:^|,)\s*wait\s*=\s*"?([0-9]{1,9})"?\s*(?=[;,]|$)', re.IGNORECASE)


WORDS = "wait=N: answer when there is news, or after N seconds."


def patience(preferences: str | None) -> int:
    """Seconds that a client would wait; 0: none were named, or they cannot be read."""
    found = _WAIT.search(preferences or "")
    return min(int(found[1]), MOST_SECONDS) if found else 0


async def _patience(prefer: Annotated[str | None, Header(description=WORDS)] = None) -> int:
    return patience(prefer)


Patience = Annotated[int, Depends(_patience)]


def applied(seconds: int) -> dict[str, str]:
    """The headers of an answer that was waited for."""
    return {"Preference-Applied": f"wait={seconds}", "Vary": "Prefer"}
