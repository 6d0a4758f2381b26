"""`Prefer: wait=N` (RFC 7240): how long a client would wait for an answer that tells something new."""

import re
from typing import Annotated

from fastapi import Depends, Header

MOST_SECONDS = 30  # proxies give up after a minute or so

_WAIT = re.compile(r'(?:^|,)\s*wait\s*=\s*"?([0-9]{1,9})"?\s*(?=[;,]|$)', re.IGNORECASE)


async def _patience(
    prefer: Annotated[str | None, Header(description="wait=N: answer when there is news, or after N seconds.")] = None,
) -> int:
    found = _WAIT.search(prefer or "")
    return min(int(found[1]), MOST_SECONDS) if found else 0


Patience = Annotated[int, Depends(_patience)]  # seconds; 0: none was asked for, or what was cannot be read


def applied(seconds: int) -> dict[str, str]:
    """The headers of an answer that was waited for."""
    return {"Preference-Applied": f"wait={seconds}", "Vary": "Prefer"}
