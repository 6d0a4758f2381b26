"""The folder of checkpoints: a worker writes a file, the store its name, the next worker reads it.

Knows no store and no tensors. A file's name starts with its job's id. Only the checkpoint that the
job's record names is needed, and only until the job ends. All other files are leftovers.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# The job's record may not yet name a file younger than this.
MIN_AGE_SECONDS = 600


class Checkpoints:
    """One folder, shared by all workers. s3.py keeps checkpoints in a bucket instead."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, name: str) -> Path:
        """Return the path of a file that `name` named. Creates the folder; may raise OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / Path(name).name

    @staticmethod
    def name(job_id: str, token: str, count: int) -> str:
        """Return a file name that is unique per job, attempt (`token`) and checkpoint (`count`)."""
        return f"{job_id}.{token[:16]}.{count}"

    def publish(self, name: str) -> None:
        """Let other workers read the file that was written to `path(name)`.

        Raises OSError, Unavailable.
        """

    @contextmanager
    def fetch(self, name: str) -> Iterator[Path]:
        """Yield the path of a checkpoint to read; without the checkpoint, it has no content.

        Raises Unavailable.
        """
        yield self.path(name)

    def delete(self, name: str) -> None:
        """Delete a checkpoint. Safe to repeat."""
        with suppress(OSError):
            self.path(name).unlink(missing_ok=True)

    def sizes(self) -> list[int]:
        """Return the sizes of all checkpoints now on disk, in bytes."""
        sizes = []
        for file in self._files():
            with suppress(FileNotFoundError):
                sizes.append(file.stat().st_size)
        return sizes

    def sweep(self, find_current: Callable[[str], str | None]) -> int:
        """Delete the checkpoints that no job needs. Returns their number.

        find_current: maps a job's id to the checkpoint that its next attempt would resume from.
        """
        deleted = 0
        for file in self._files():
            with suppress(FileNotFoundError):  # deleted by its worker meanwhile
                is_recent = time.time() - file.stat().st_mtime < MIN_AGE_SECONDS
                job_id = file.name.partition(".")[0]
                if not is_recent and find_current(job_id) != file.name:
                    file.unlink()
                    deleted += 1
        return deleted

    def _files(self) -> Iterator[Path]:
        return self._folder.glob("job_*")
