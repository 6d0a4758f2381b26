"""Files that are whole or not there, and folders that one process at a time works in. Knows not what they hold."""

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from core import errors

NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def translate_disk_errors(what: Path) -> Iterator[None]:
    """Inside, a full disk is StorageFull; any other refusal of the system stays what it is."""
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise errors.StorageFull(
            f"There is no room for {what}; make some and give the command again."
        ) from error


def atomic_write(file: Path, write: Callable[[Path], object]) -> None:
    """The file as `write` leaves the one it is given, on disk when this returns; or as it was before.

    Raises StorageFull, and OSError where the system refuses for another reason.
    """
    part = file.with_name(f"{file.name}.part")
    try:
        with translate_disk_errors(file):
            write(part)
            _settle(part)
            part.replace(file)
            _settle(file.parent)
    except OSError as error:
        if error.filename == str(part):  # which nobody has named
            error.filename = str(file)
        raise
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _settle(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def exclusive_lock(folder: Path, refusal: errors.ImpastoError) -> Iterator[None]:
    """Hold a folder against other processes, which get `refusal`. One that is made for it goes if it stays empty."""
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise refusal from None
        yield
    finally:
        os.close(handle)
        if made:
            with suppress(OSError):  # it is not empty
                folder.rmdir()
