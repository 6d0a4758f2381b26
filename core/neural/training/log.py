"""The log of a training: a CSV file, a line for some of the steps and one for each validation. Knows no tensors."""

import os
from pathlib import Path
from typing import NamedTuple

from core.storage.files import translate_disk_errors


class LogRow(NamedTuple):
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


class TrainingLog:
    """The file, cut back to what the checkpoint knows of, and open to be gone on with."""

    def __init__(self, file: Path, known_bytes: int) -> None:
        """Raises StorageFull, OSError."""
        self._path = file
        with translate_disk_errors(file):
            self._file = file.open(
                "ab", buffering=0
            )  # nothing is left to be written when it is closed
            length = min(
                known_bytes, file.stat().st_size
            )  # shorter where someone has cut it: no gap is filled
            self._file.truncate(length)
        if not length:
            self._write(",".join(LogRow._fields))

    def write(self, row: LogRow) -> None:
        """Numbers as they are, to the last bit. Raises StorageFull, OSError."""
        self._write(",".join("" if value is None else repr(value) for value in row))

    def _write(self, line: str) -> None:
        rest = memoryview(f"{line}\n".encode("ascii"))
        with translate_disk_errors(self._path):
            while rest:
                rest = rest[self._file.write(rest) :]

    def flush(self) -> int:
        """Its bytes, on disk. Raises StorageFull, OSError."""
        with translate_disk_errors(self._path):
            os.fsync(self._file.fileno())
            return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """No more lines."""
        self._file.close()
