"""The folder of checkpoints: files that a worker writes, the store names, and the next worker reads.

Knows no store and no tensors. A file's name tells its job; the one that the job's record names is worth keeping while
the job goes on, all others are leftovers.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

# A file younger than this may be about to be named.
_FRESH_SECONDS = 600


class Checkpoints:
    """One folder, seen by all workers."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, name: str) -> Path:
        """Of a file that `name` has made up. Makes the folder; raises OSError where that is not possible."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / Path(name).name

    @staticmethod
    def name(job_id: str, token: str, count: int) -> str:
        """No two attempts, and no two checkpoints of one, have the same."""
        return f"{job_id}.{token[:16]}.{count}"

    def delete(self, name: str) -> None:
        """Safe to repeat."""
        with suppress(OSError):
            self.path(name).unlink(missing_ok=True)

    def sizes(self) -> list[int]:
        """Of every file, in bytes, as they are on the disk now."""
        found = []
        for file in self._files():
            with suppress(FileNotFoundError):
                found.append(file.stat().st_size)
        return found

    def sweep(self, named: Callable[[str], str | None]) -> int:
        """Delete what no job needs; how many. `named`: a job's id to the checkpoint it would go on from, if any."""
        swept = 0
        for file in self._files():
            with suppress(FileNotFoundError):  # deleted by its worker meanwhile
                fresh = time.time() - file.stat().st_mtime < _FRESH_SECONDS
                if not fresh and named(file.name.partition(".")[0]) != file.name:
                    file.unlink()
                    swept += 1
        return swept

    def _files(self) -> Iterator[Path]:
        return self._folder.glob("job_*")
