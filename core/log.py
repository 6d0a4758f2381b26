"""Logging of every process: one line per event on standard error, as text or as JSON.

A line has at most 4 KB, no control characters and no passwords, whatever text a client sends. Knows
nothing about the logged events, except what a job id looks like.

python-json-logger does not fit: it copies every `extra` value of other libraries into the line
(such as the task arguments that Celery logs), and it masks and limits nothing. A subclass would
have to override both of its steps, and only `json.dumps` would be left of it.
"""

import asyncio
import json
import logging
import re
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Literal, TextIO

LINE_BYTES = 4096
BATCH_SECONDS = 0.05
BATCH_LINES = 500

LogFormat = Literal["text", "json"]

request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
trace_id: ContextVar[str | None] = ContextVar("trace_id", default=None)  # 32 hexadecimal digits

_JOB_ID = re.compile(r"\bjob_[a-z2-7]{26}\b")
_PASSWORD = re.compile(r"(?<=://)[^/@\s]*@")  # of a URL: redis://:password@host
# Characters that move a terminal's cursor or turn the direction of text: C0, C1, line separators,
# bidirectional marks, lone surrogates.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def configure_logging(form: LogFormat) -> None:
    """Send all log records and warnings of this process to standard error in this form."""
    handler = BatchHandler()
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    # No format uses the thread, the process or the source line, and finding them costs more time
    # than writing the record (logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    setattr(logging, "_srcfile", None)  # noqa: B010 - mypy does not know the attribute
    logging.captureWarnings(capture=True)


class BatchHandler(logging.StreamHandler[TextIO]):
    """Writes lines to standard error. On an event loop, it writes several at once.

    There a line of level INFO or below waits for BATCH_SECONDS at most: thousands of requests a
    second cost one call of the system for each batch. Warnings, and what waits before them, are
    written at once; so is every line of a thread. A process that is killed loses what waits.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream)
        self._lines: list[str] = []
        self._timer: asyncio.TimerHandle | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, now or within BATCH_SECONDS."""
        try:
            self._lines.append(self.format(record) + self.terminator)
            loop = asyncio._get_running_loop()  # None in a thread
            if loop is None or record.levelno > logging.INFO or len(self._lines) >= BATCH_LINES:
                self.flush()
            elif self._timer is None:
                self._timer = loop.call_later(BATCH_SECONDS, self.flush)
        except Exception:
            self.handleError(record)

    def flush(self) -> None:
        """Write what waits."""
        assert self.lock is not None, "every handler has one"
        with self.lock:
            self._timer = None  # one that still runs finds nothing to write, or writes early
            lines, self._lines = self._lines, []
            if lines:
                with suppress(OSError):  # nobody reads standard error any more
                    self.stream.write("".join(lines))
            super().flush()


class JsonLines(logging.Formatter):
    """Formats a record as a JSON object in one line of ASCII.

    Keys: time, level, logger, message; job, request, trace_id (of OpenTelemetry) and trace (of an
    exception) if there are any; and the entries of the record's `fields`. The job is the first job
    id in the message.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return one line; halves the longest value until the line has LINE_BYTES or fewer."""
        message = _mask_passwords(record.getMessage())
        job = _JOB_ID.search(message)
        values = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": message,
            "job": job and job[0],
            "request": request_id.get(),
            "trace_id": trace_id.get(),
            **getattr(record, "fields", {}),
            "trace": _mask_passwords(_format_trace(self, record)),
        }
        values = {name: value for name, value in values.items() if value not in (None, "")}
        while len(line := json.dumps(values)) > LINE_BYTES:
            longest = max(values, key=lambda name: len(str(values[name])))
            text = str(values[longest])
            half = len(text) // 2
            # The end of a trace names the error; the start of any other text says the most.
            values[longest] = f"…{text[-half:]}" if longest == "trace" else f"{text[:half]}…"
        return line


class TextLines(logging.Formatter):
    """Formats a record as a line of time, level, logger, message and request id.

    Each line of a trace follows on its own line, indented, so that no client can forge a record.
    """

    _time_of_second = (0, "")  # formatting the time takes longer than the rest of a line

    def format(self, record: logging.LogRecord) -> str:
        """Return the line and those of the trace, each cut to a quarter of LINE_BYTES characters.

        A character has at most 4 bytes in UTF-8.
        """
        request = f" [{request_id.get()}]" if request_id.get() else ""
        second, time = self._time_of_second
        if second != int(record.created):
            time = self.formatTime(record, "%Y-%m-%d %H:%M:%S")
            self._time_of_second = int(record.created), time
        message = _mask_passwords(record.getMessage())
        line = _escape(f"{time} {record.levelname:<7} {record.name}: {message}{request}")
        trace = _mask_passwords(_format_trace(self, record)).splitlines()
        lines = [line, *(_escape(f"  {text}") for text in trace)]
        return "\n".join(text[: LINE_BYTES // 4] for text in lines)


def _mask_passwords(text: str) -> str:
    return _PASSWORD.sub("…@", text) if "@" in text else text


def _format_trace(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    return formatter.formatException(record.exc_info) if record.exc_info else ""


def _escape(text: str) -> str:
    if text.isprintable():  # quicker than the search; what it allows, _CONTROL does not contain
        return text
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
