"""Asked to go at the worst moment."""

import subprocess
import sys

HELD = """
import signal, threading
from worker import exits
event = threading.Event()
exits.when_told(event.set, signal.SIGTERM)
with event._cond:
    signal.raise_signal(signal.SIGTERM)
assert event.wait(20)
"""


def test_a_signal_that_comes_while_the_events_own_lock_is_held_hangs_nothing() -> None:
    assert 0 == subprocess.run([sys.executable, "-c", HELD], check=False, timeout=30).returncode
