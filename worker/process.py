"""A worker's processes: their names in the store, their shutdown, and their forced end."""

import _thread
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NoReturn

log = logging.getLogger(__name__)

# Sent by a pool child to its parent, before SIGTERM: its device cannot be used as it is set; its
# device is broken. The default action of SIGURG is to ignore it.
REFUSED, BROKEN = signal.SIGUSR2, signal.SIGURG

# Exit codes of a worker, from which the device supervisor knows what to do.
WRONG_USAGE = 2  # a wrong setting, or a device that cannot be used
DRAINED = 3  # the operator has drained it
DEVICE_BROKEN = 4

exit_codes: list[int] = []  # of this worker, in the order of their reasons; empty: 0

shutting_down = threading.Event()  # set when the worker must stop; jobs are then released


@cache
def _host_name() -> str:
    """A name for this host and process namespace.

    Cloned machines may share a host name, and so may containers, which also count their
    processes from 1; the boot id and the namespace's inode tell them apart.
    """
    with suppress(OSError):
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = Path("/proc/self/ns/pid").stat().st_ino
        return f"{socket.gethostname()}:{boot_id}:{namespace}"
    return socket.gethostname()


def process_name(pid: int) -> str:
    """The name of a process of this host in the store. Its parent derives the same name."""
    return f"{_host_name()}:{pid}"


def on_signals(act: Callable[[], object], *signals: signal.Signals) -> None:
    """Call `act`, which sets an event, in a thread when one of the signals arrives.

    A signal handler interrupts the main thread anywhere, also where it holds the event's lock.
    `Thread.start` takes locks as well, so the handler starts a bare thread.
    """
    for number in signals:
        signal.signal(number, lambda *_: _thread.start_new_thread(act, ()))


def stop_worker(exit_code: int) -> None:
    """Stop this worker, as SIGTERM does, with this exit code. For its parent process."""
    exit_codes.append(exit_code)
    os.kill(os.getpid(), signal.SIGTERM)


def exit_now(reason: str, *, trace: bool = False) -> NoReturn:
    """End this process without cleanup, which a broken device could block.

    The parent process requeues its job.

    trace: log the exception that is being handled.
    """
    log.critical("%s", reason, exc_info=trace)
    logging.shutdown()
    os._exit(1)
