"""The programs of `impasto up`, as children that are watched."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cli import local_service
from core import errors

TALKS = (
    "import sys\nfor number in range(1000): print('line', number, flush=True); sys.stdin.read(0)\n"
)
TALKS_ON = TALKS + "import time\nwhile True: print('on', flush=True); time.sleep(0.01)\n"


def test_a_long_log_is_turned_while_its_program_writes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: Callable[..., None]
) -> None:
    monkeypatch.setattr(local_service, "LOG_BYTES", 5000)
    log = tmp_path / "a.log"
    program = local_service.ManagedProcess("a", [sys.executable, "-c", TALKS_ON], {}, log)
    program.start()
    until(lambda: b"on" in log.read_bytes(), "all its lines")

    program.restart_if_dead()
    until(lambda: b"on" in log.read_bytes(), "more lines")
    cut = log.read_bytes()
    program.stop()

    assert (log.with_suffix(".log.1").read_bytes()).startswith(b"line 0\n")
    assert b"line" not in cut
    assert b"\0" not in cut, "it was written behind the old end"


def test_what_does_not_stay_up_tells_its_last_words_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: Callable[..., None]
) -> None:
    monkeypatch.setattr(local_service, "TAIL_BYTES", 100)
    program = local_service.ManagedProcess(
        "a", [sys.executable, "-c", TALKS], {}, tmp_path / "a.log"
    )
    program.start()

    with pytest.raises(errors.ImpastoError, match="does not stay up") as trouble:
        until(program.restart_if_dead, "never")
    said = trouble.value.message.splitlines()[1:]
    assert said[-1] == "line 999"
    assert len(said) <= 8
