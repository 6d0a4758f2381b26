"""The log of a training run: a CSV file with a line for some steps and for each validation.

Knows no tensors.
"""

import os
from pathlib import Path
from typing import NamedTuple

from core.storage.files import translate_disk_errors


class LogRow(NamedTuple):
    """A line of the log: either the metrics of a step's batch, or those of a validation.

    `loss` is the mean cross-entropy in nats; `top1` and `top5` are shares from 0 to 1.
    """

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
    """The log file, truncated to the length that the checkpoint recorded, and open for appends."""

    def __init__(self, path: Path, checkpointed_bytes: int) -> None:
        """Raises StorageFull, OSError."""
        self._path = path
        with translate_disk_errors(path):
            # Unbuffered: closing the file must not write, because a full disk would then raise.
            self._file = path.open("ab", buffering=0)
            # A file that a user has shortened stays short: truncate() would fill it with zeros.
            length = min(checkpointed_bytes, path.stat().st_size)
            self._file.truncate(length)
        if not length:
            self._write_line(",".join(LogRow._fields))

    def write(self, row: LogRow) -> None:
        """Append a row; floats keep full precision. Raises StorageFull, OSError."""
        self._write_line(",".join("" if value is None else repr(value) for value in row))

    def _write_line(self, line: str) -> None:
        rest = memoryview(f"{line}\n".encode("ascii"))
        with translate_disk_errors(self._path):
            while rest:  # an unbuffered write may be partial
                rest = rest[self._file.write(rest) :]

    def flush(self) -> int:
        """Sync the file to disk and return its length in bytes. Raises StorageFull, OSError."""
        with translate_disk_errors(self._path):
            os.fsync(self._file.fileno())
            return os.fstat(self._file.fileno()).st_size

    def close(self) -> None:
        """Close the file."""
        self._file.close()
