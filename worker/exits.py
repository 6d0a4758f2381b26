"""How a process of a worker goes: when it is asked to, and at once, when nothing else is left."""

import _thread
import logging
import os
import signal
from collections.abc import Callable
from typing import NoReturn

log = logging.getLogger(__name__)


def when_told(act: Callable[[], object], *signals: signal.Signals) -> None:
    """Call `act`, which sets an event, when one of the signals comes.

    On a thread: a handler interrupts the main thread anywhere, also where it holds the event's own lock. By the bare
    call, for `Thread.start` takes locks as well.
    """
    for number in signals:
        signal.signal(number, lambda *_: _thread.start_new_thread(act, ()))


def at_once(why: str, *, trace: bool = False) -> NoReturn:
    """End this process without tidying up: what is broken is not asked. The parent puts the job back.

    trace: tell of the exception that is being handled.
    """
    log.critical("%s", why, exc_info=trace)
    logging.shutdown()
    os._exit(1)
