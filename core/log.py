"""How every process logs: one line a happening on standard error, for people or, as JSON, for machines.

Whatever a caller sends, a line stays one line of at most 4 KB without control characters, and tells no password.
Knows nothing of what is logged, but for how a job's id looks.
"""

import json
import logging
import re
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal

LINE_BYTES = 4096

Format = Literal["text", "json"]

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)

_JOB = re.compile(r"\bjob_[a-z2-7]{26}\b")
_PASSWORD = re.compile(r"(?<=://)[^/@\s]*@")  # of an address: redis://:password@host
# What moves a terminal's cursor or turns the direction of a line: C0, C1, line separators, bidirectional marks.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def configure_logging(form: Format) -> None:
    """Send everything that is logged in this process to standard error, in this form."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # No line tells these, and to find them out takes longer than to write it (logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    setattr(logging, "_srcfile", None)  # noqa: B010
    logging.captureWarnings(capture=True)


class JsonLines(logging.Formatter):
    """A JSON object: time, level, logger, message; job, request and trace where there are; and the record's `fields`.

    The job is the one that the message names: whoever logs of a job names it.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One line of ASCII."""
        message, trace = _told(record.getMessage()), _told(_trace(self, record))
        job = _JOB.search(message)
        said = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
            "job": job and job[0],
            "request": request_id.get(),
            **getattr(record, "fields", {}),
            "trace": trace,
        }
        said = {name: value for name, value in said.items() if value not in (None, "")}
        while len(line := json.dumps(said)) > LINE_BYTES:
            longest = max(said, key=lambda name: len(str(said[name])))
            half = len(str(said[longest])) // 2
            # The end of a trace says what went wrong, the beginning of anything else.
            said[longest] = (
                f"…{trace[-half:]}" if longest == "trace" else f"{str(said[longest])[:half]}…"
            )
            trace = trace[-half:]
        return line


class TextLines(logging.Formatter):
    """Time, level, logger, message; a trace on lines of its own, each indented: no caller can forge a line."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and those of a trace."""
        request = f" [{request_id.get()}]" if request_id.get() else ""
        when = self.formatTime(record, "%Y-%m-%d %H:%M:%S")
        line = _escaped(
            f"{when} {record.levelname:<7} {record.name}: {_told(record.getMessage())}{request}"
        )
        trace = [_escaped(f"  {part}") for part in _told(_trace(self, record)).splitlines()]
        return "\n".join(part[: LINE_BYTES // 4] for part in [line, *trace])


def _told(text: str) -> str:
    return _PASSWORD.sub("…@", text)


def _trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return formatter.formatException(record.exc_info) if record.exc_info else ""


def _escaped(text: str) -> str:
    return _CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
