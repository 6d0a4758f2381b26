"""What a process is called in the store."""

import socket
from contextlib import suppress
from functools import cache
from pathlib import Path


@cache
def _where() -> str:
    """Containers may share a host's name, and then count their processes alike."""
    with suppress(OSError):
        return f"{socket.gethostname()}:{Path('/proc/self/ns/pid').stat().st_ino}"
    return socket.gethostname()


def name_of(pid: int) -> str:
    """Of a process on this host. Known to its parent, which speaks for it when it has died."""
    return f"{_where()}:{pid}"
