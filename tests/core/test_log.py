"""Log lines are short, on one line and free of control characters and passwords."""

import asyncio
import io
import json
import logging
import subprocess
import sys

import pytest

from core import log
from core.log import request_id

HOSTILE = 'a\r\nINFO root: forged\x1b[2J\x00\u202e\x85\u2028 "quoted" ä \ud800'
JOB = "job_" + "a" * 26


def _record(message: str, *args: object, trace: bool = False, **extra: object) -> logging.LogRecord:
    try:
        raise ValueError(HOSTILE * 2000) if trace else KeyError
    except (ValueError, KeyError):
        info = sys.exc_info() if trace else None
    record = logging.LogRecord("a.b", logging.WARNING, "file", 1, message, args, info)
    record.__dict__.update(extra)
    return record


def test_a_json_line_has_time_level_logger_message_job_and_fields() -> None:
    values = json.loads(log.JsonLines().format(_record("%s: failed", JOB, fields={"status": 503})))

    assert values.pop("time").endswith("+00:00")
    expected = {
        "level": "warning",
        "logger": "a.b",
        "message": f"{JOB}: failed",
        "job": JOB,
        "status": 503,
    }
    assert values == expected


@pytest.mark.parametrize("message", [HOSTILE, HOSTILE * 5000, "\x00" * 100_000])
@pytest.mark.parametrize("trace", [False, True])
def test_a_json_line_is_one_short_line_without_control_characters(
    message: str, trace: bool
) -> None:
    line = log.JsonLines().format(_record("%s", message, trace=trace))

    assert json.loads(line)["message"]
    assert line.isascii()
    assert line.isprintable()
    assert len(line) <= 4096


@pytest.mark.parametrize("trace", [False, True])
def test_no_client_can_forge_a_text_line_or_move_the_cursor(trace: bool) -> None:
    first, *others = log.TextLines().format(_record("%s", HOSTILE, trace=trace)).split("\n")

    assert "WARNING a.b: a\\x0d\\x0aINFO" in first
    assert all(line.startswith("  ") for line in others)
    assert all(line.replace("ä", "").isprintable() for line in [first, *others])


@pytest.mark.parametrize("form", [log.JsonLines(), log.TextLines()])
def test_no_line_contains_a_password(form: logging.Formatter) -> None:
    line = form.format(_record("connected to %s", "redis://:hunter2@redis:6379/0"))

    assert "hunter2" not in line
    assert "@redis:6379/0" in line


def test_the_request_id_is_logged_during_the_request() -> None:
    token = request_id.set("abc")
    values = json.loads(log.JsonLines().format(_record("x")))
    request_id.reset(token)

    assert values["request"] == "abc"
    assert "request" not in json.loads(log.JsonLines().format(_record("x")))


def test_log_records_and_warnings_of_a_process_are_json() -> None:
    program = (
        "import logging, warnings\n"
        "from core.log import configure_logging\n"
        "configure_logging('json')\n"
        "logging.getLogger('x').info('hello')\n"
        "warnings.warn('careful')"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stderr
    messages = [json.loads(line)["message"] for line in output.splitlines()]

    assert messages[0] == "hello"
    assert "careful" in messages[1]


def test_an_event_loop_writes_lines_in_batches_and_warnings_at_once() -> None:
    stream = io.StringIO()
    handler = log.BatchHandler(stream)
    logger = logging.Logger("a")
    logger.addHandler(handler)

    async def run() -> list[list[str]]:
        seen = []
        for write in (
            lambda: logger.info("1"),
            lambda: logger.info("2"),
            lambda: logger.warning("3"),
            lambda: logger.info("4"),
        ):
            write()
            seen.append(stream.getvalue().split())
        await asyncio.sleep(3 * log.BATCH_SECONDS)
        seen.append(stream.getvalue().split())
        logger.info("5")
        await asyncio.to_thread(logger.info, "6")
        seen.append(stream.getvalue().split())
        for _ in range(log.BATCH_LINES):
            logger.info("7")
        seen.append(stream.getvalue().split()[6:8])
        return seen

    three, four = ["1", "2", "3"], ["1", "2", "3", "4"]
    assert asyncio.run(run()) == [[], [], three, three, four, [*four, "5", "6"], ["7", "7"]]
    logger.info("8")  # without a loop: at once
    assert stream.getvalue().endswith("8\n")


def test_the_end_of_a_process_writes_what_waits() -> None:
    code = (
        "import asyncio, logging; from core.log import configure_logging\n"
        "configure_logging('text')\n"
        "async def main(): logging.info('the last line')\n"
        "asyncio.run(main())"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )

    assert result.stderr.count("the last line") == 1


def test_a_text_line_has_the_time_of_its_own_second() -> None:
    lines, form = [], log.TextLines()
    for second in (0, 1, 0):
        record = _record("x")
        record.created = 1_700_000_000.5 + second
        lines.append(form.format(record))

    assert lines[0] == lines[2] != lines[1]
