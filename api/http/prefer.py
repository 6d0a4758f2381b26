"""`Prefer: wait=N` (RFC 7240): how long a client would wait for an answer that tells something new."""

import re
from typing import Annotated

from fastapi import Depends, Header

MAX_WAIT_SECONDS = 30  # proxies give up after a minute or so

_WAIT = re.compile(r'(?:^|,)\s*wait\s*=\s*"?([0-9]{1,9})"?\s*(?=[;,]|$)', re.IGNORECASE)


DESCRIPTION = "wait=N: answer when there is news, or after N seconds."


def parse_wait(preferences: str | None) -> int:
    """Seconds that a client would wait; 0: none were named, or they cannot be read."""
    found = _WAIT.search(preferences or "")
    return min(int(found[1]), MAX_WAIT_SECONDS) if found else 0


async def _patience(prefer: Annotated[str | None, Header(description=DESCRIPTION)] = None) -> int:
    return parse_wait(prefer)


Wait = Annotated[int, Depends(_patience)]


def preference_applied(seconds: int) -> dict[str, str]:
    """The headers of an answer that was waited for."""
    return {"Preference-Applied": f"wait={seconds}", "Vary": "Prefer"}
