"""The history of a campaign: events as JSON lines. The checker reads nothing but this file."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

Event = dict[str, Any]


class History:
    """A file with one event per line; many threads may write to it."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = threading.Lock()
        self._began = time.monotonic()
        file.write_text("")

    def record(self, event: str, **facts: Any) -> None:
        """Append an event. `at` is in seconds since the history began."""
        line = json.dumps({"at": round(time.monotonic() - self._began, 4), "event": event, **facts})
        with self._lock, self.file.open("a") as file:
            file.write(line + "\n")


def events(file: Path, *kinds: str) -> Iterator[Event]:
    """Yield the events in order: all, or those of some kinds."""
    for line in file.read_text().splitlines():
        event = json.loads(line)
        if not kinds or event["event"] in kinds:
            yield event


def percentile(values: list[float], share: float) -> float:
    """Return the smallest value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def report_violations(found: list[str]) -> NoReturn:
    """Print the number of violations and the first 20; exit with 1 if there are any."""
    print(f"violations {len(found)}")
    print("\n".join(found[:20]))
    sys.exit(1 if found else 0)
