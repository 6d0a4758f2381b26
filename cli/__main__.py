"""The entry point of the command `impasto`: handles Ctrl-C before it imports the commands."""

import os
import signal
from typing import Any, NoReturn


def main() -> None:
    """Run the command. The first Ctrl-C stops it, and further ones do not disturb its clean-up."""
    # A shell starts the background jobs of a script with SIGINT ignored, and it stays so.
    has_interrupt = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if has_interrupt:
        signal.signal(signal.SIGINT, _exit)
    from cli.commands import impasto  # takes a second

    if has_interrupt:
        signal.signal(signal.SIGINT, _interrupt_once)
    try:
        impasto.main()
    finally:
        if has_interrupt:  # libraries run code when Python ends
            signal.signal(signal.SIGINT, signal.SIG_IGN)


def _exit(*_: Any) -> NoReturn:
    os.write(2, b"impasto: stopped.\n")
    os._exit(130)


def _interrupt_once(*_: Any) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
