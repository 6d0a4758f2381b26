"""What a process is called in the store."""

import socket


def name_of(pid: int) -> str:
    """Of a process on this host. Known to its parent, which speaks for it when it has died."""
    return f"{socket.gethostname()}:{pid}"
