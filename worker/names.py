"""What a process is called in the store."""

import socket
from contextlib import suppress
from functools import cache
from pathlib import Path


@cache
def _where() -> str:
    """Cloned machines may share a host's name; its containers, too, and these count their processes alike."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{socket.gethostname()}:{boot}:{Path('/proc/self/ns/pid').stat().st_ino}"
    return socket.gethostname()


def name_of(pid: int) -> str:
    """Of a process on this host. Known to its parent, which speaks for it when it has died."""
    return f"{_where()}:{pid}"
