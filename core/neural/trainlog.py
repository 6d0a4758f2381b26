"""The log of a training: a CSV file, a line for some of the steps and one for each validation. Knows no tensors."""

import os
from pathlib import Path
from typing import NamedTuple

from core import errors


class Row(NamedTuple):
    """A line. Losses and shares of a step's own batch, or of the validation pictures; never of both."""

    step: int
    epoch: float
    learning_rate: float
    loss: float | None = None
    top1: float | None = None
    top5: float | None = None
    validation_loss: float | None = None
    validation_top1: float | None = None
    validation_top5: float | None = None
    pictures_per_second: float = 0.0


class Log:
    """The file, cut back to what the checkpoint knows of, and open to be gone on with."""

    def __init__(self, file: Path, known_bytes: int) -> None:
        self._file = file.open("a+", encoding="ascii", newline="")
        self._file.truncate(known_bytes)
        self._file.seek(0, os.SEEK_END)
        if not known_bytes:
            self._write(",".join(Row._fields))

    def write(self, row: Row) -> None:
        """Numbers as they are, to the last bit. Raises StorageFull."""
        self._write(",".join("" if value is None else repr(value) for value in row))

    def _write(self, line: str) -> None:
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            raise errors.StorageFull("There is no room for the log; make some and go on with the run.") from error

    def settle(self) -> int:
        """Its bytes, on disk. Raises StorageFull."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise errors.StorageFull("There is no room for the log; make some and go on with the run.") from error
        return self._file.tell()

    def close(self) -> None:
        """No more lines."""
        self._file.close()
