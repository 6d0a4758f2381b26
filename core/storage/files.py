"""Atomic writes, exclusive locks on folders, and the translation of full-disk errors."""

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from core import errors

# What the system reports when a disk or a quota is full.
DISK_FULL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def translate_disk_errors(path: Path) -> Iterator[None]:
    """Raise StorageFull, which names `path`, for a full disk inside. Passes other OSErrors."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_FULL_ERRNOS:
            raise
        raise errors.StorageFull(
            f"There is no room for {path}; make room and repeat the command."
        ) from error


def atomic_write(file: Path, write: Callable[[Path], object]) -> None:
    """Replace a file by what `write` writes to a temporary path, or leave it as it was.

    The file keeps its permissions. When this returns, the new content is on disk. Raises
    StorageFull; OSError for other reasons.
    """
    temporary = file.with_name(f"{file.name}.part")
    try:
        with translate_disk_errors(file):
            write(temporary)
            fsync(temporary)
            with suppress(OSError):  # there is no such file, or permissions are not supported
                shutil.copymode(file, temporary)
            temporary.replace(file)
            fsync(file.parent)
    except OSError as error:
        if error.filename == str(temporary):  # a name that the user does not know
            error.filename = str(file)
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


class SmallFile:
    """A text file that is replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def read(self) -> str:
        """Return the text. Raises FileNotFoundError, OSError, UnicodeDecodeError."""
        return self._path.read_text(encoding="ascii")

    def write(self, text: str) -> None:
        """Replace the text. Raises OSError, StorageFull."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(self._path, lambda path: path.write_text(text, encoding="ascii"))

    def refresh(self) -> None:
        """Each `read` reads the file."""


def fsync(path: Path) -> None:
    """Sync a file or a folder to the disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def exclusive_lock(folder: Path, error_if_locked: errors.ImpastoError) -> Iterator[None]:
    """Lock a folder against other processes, or raise `error_if_locked`.

    Creates the folder if necessary, and then removes it at the end if it is empty.
    """
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise error_if_locked from None
        yield
    finally:
        os.close(handle)
        if is_new:
            with suppress(OSError):  # it is not empty
                folder.rmdir()
