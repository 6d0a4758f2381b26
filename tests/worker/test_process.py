"""The names and signals of a worker's processes."""

import subprocess
import sys

import pytest

from worker import process
from worker.process import process_name

SIGNAL_DURING_LOCK = """
import signal, threading
from worker import process
event = threading.Event()
process.on_signals(event.set, signal.SIGTERM)
with event._cond:
    signal.raise_signal(signal.SIGTERM)
assert event.wait(20)
"""


def test_a_signal_that_arrives_while_the_events_lock_is_held_does_not_deadlock() -> None:
    command = [sys.executable, "-c", SIGNAL_DURING_LOCK]

    assert subprocess.run(command, check=False, timeout=30).returncode == 0


def test_a_cloned_machine_has_another_process_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same host name, and the same process ids."""
    here = process_name(1)
    process._host_name.cache_clear()
    monkeypatch.setattr(process.Path, "read_text", lambda _: "another-boot")

    assert process_name(1) != here
    process._host_name.cache_clear()
