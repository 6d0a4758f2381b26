"""The managed processes of `impasto up`: log rotation, restarts, errors."""

import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cli import local_service
from cli.local_service import free_port
from core import errors
from core.config import Settings

PRINTS_LINES = "for number in range(1000): print('line', number, flush=True)\n"
KEEPS_PRINTING = (
    f"{PRINTS_LINES}import time\nwhile True: print('more', flush=True); time.sleep(0.01)\n"
)


def test_a_long_log_is_rotated_while_its_process_keeps_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: Callable[..., None]
) -> None:
    monkeypatch.setattr(local_service, "LOG_BYTES", 5000)
    log = tmp_path / "a.log"
    program = local_service.ManagedProcess("a", [sys.executable, "-c", KEEPS_PRINTING], {}, log)
    program.start()
    until(lambda: b"more" in log.read_bytes(), "all its lines")

    program.restart_if_dead()
    until(lambda: b"more" in log.read_bytes(), "more lines")
    rotated = log.read_bytes()
    program.stop()

    assert (log.with_suffix(".log.1").read_bytes()).startswith(b"line 0\n")
    assert b"line" not in rotated
    assert b"\0" not in rotated, "the process wrote at the old offset"


def test_a_process_that_keeps_dying_is_reported_with_its_last_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: Callable[..., None]
) -> None:
    monkeypatch.setattr(local_service, "TAIL_BYTES", 100)
    program = local_service.ManagedProcess(
        "a", [sys.executable, "-c", PRINTS_LINES], {}, tmp_path / "a.log"
    )
    program.start()

    with pytest.raises(errors.ImpastoError, match="does not stay up") as raised:
        until(program.restart_if_dead, "never")
    lines = raised.value.message.splitlines()[1:]
    assert lines[-1] == "line 999"
    assert len(lines) <= 8


def test_a_process_that_died_on_a_full_disk_waits_for_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, until: Callable[..., None]
) -> None:
    """A restart there would fail again, and after three failures the service would end."""
    service = local_service.LocalService(Settings(data_dir=tmp_path), "127.0.0.1", free_port())
    program = local_service.ManagedProcess("a", [sys.executable, "-c", ""], {}, tmp_path / "a.log")
    service._processes = [program]
    program.start()
    until(lambda: program.is_dead, "its end")
    with monkeypatch.context() as patched:
        patched.delattr(os, "posix_fallocate", raising=False)  # as on macOS
        assert service.has_room()

    def fail(*_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", fail)
    assert not service.has_room()
    assert [path.name for path in tmp_path.iterdir()] == ["a.log"]
    service._processes = []  # nothing has died: a full disk is no reason to stop anything
    assert service.has_room()
