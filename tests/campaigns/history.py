"""A campaign's history: what it did and saw, as JSON lines. A checker reads it, and nothing else."""

import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

Event = dict[str, Any]


class History:
    """Written by many threads, an event a line."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._lock = threading.Lock()
        self._began = time.monotonic()
        file.write_text("")

    def tell(self, event: str, **facts: Any) -> None:
        """Seconds count from the history's beginning."""
        line = json.dumps({"at": round(time.monotonic() - self._began, 4), "event": event, **facts})
        with self._lock, self.file.open("a") as file:
            file.write(line + "\n")


def events(file: Path, *kinds: str) -> Iterator[Event]:
    """In the order they were told; all, or those of some kinds."""
    for line in file.read_text().splitlines():
        event = json.loads(line)
        if not kinds or event["event"] in kinds:
            yield event


def percentile(values: list[float], share: float) -> float:
    """The smallest value that at least this share of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -int(-share * len(ordered) // 1) - 1))]


def judged(found: list[str]) -> NoReturn:
    """Say what the judge found, twenty of it, and end the campaign's program: 1 if there was anything."""
    print(f"violations {len(found)}")
    print("\n".join(found[:20]))
    sys.exit(1 if found else 0)
