"""`Prefer: wait=N` (RFC 7240): how long the client wants the service to wait for a change."""

import re
from typing import Annotated

from fastapi import Depends, Header

MAX_WAIT_SECONDS = 30  # proxies commonly time out after about 60 s

_WAIT = re.compile(r'(?:^|,)\s*wait\s*=\s*"?([0-9]{1,9})"?\s*(?=[;,]|$)', re.IGNORECASE)


DESCRIPTION = "wait=N: answer as soon as something changes, after N seconds at most (N ≤ 30)."


def parse_wait(preferences: str | None) -> int:
    """Return the seconds in `wait=N`, capped at 30; 0 if there is no such preference."""
    match = _WAIT.search(preferences or "")
    return min(int(match[1]), MAX_WAIT_SECONDS) if match else 0


async def _get_wait_seconds(
    prefer: Annotated[str | None, Header(description=DESCRIPTION)] = None,
) -> int:
    return parse_wait(prefer)


Wait = Annotated[int, Depends(_get_wait_seconds)]


def preference_applied(seconds: int) -> dict[str, str]:
    """Return the headers of a response for which the service waited."""
    return {"Preference-Applied": f"wait={seconds}", "Vary": "Prefer"}
