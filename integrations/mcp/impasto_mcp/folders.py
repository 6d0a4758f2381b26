"""The files that an agent may read and write: those in folders that the user has named.

An agent follows what it reads, so its paths are untrusted input. Nothing is fetched from a URL.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".heic", ".heif", ".avif", ".tif", ".tiff", ".gif")
)
MAX_LISTED = 200


class Folders:
    """Folders to read from, and one to write results to. Raises OSError if one is missing."""

    def __init__(self, readable: Sequence[Path], output: Path) -> None:
        self._readable = [folder.resolve(strict=True) for folder in readable]
        self._output = output.resolve(strict=True)
        for folder in (*self._readable, self._output):
            if not folder.is_dir():
                raise NotADirectoryError(f"{folder} is no folder.")

    def pictures(self) -> list[str]:
        """Return the paths of the pictures, at most MAX_LISTED of them."""
        found: list[str] = []
        for path in self._walk():
            if len(found) == MAX_LISTED:
                break
            found.append(str(path))
        return found

    def _walk(self) -> Iterator[Path]:
        for folder in self._readable:
            for path in sorted(folder.rglob("*")):
                if path.suffix.lower() in SUFFIXES and self._is_readable(path.resolve()):
                    yield path

    def find(self, name: str) -> Path:
        """Return the file of this path; a relative one counts from each folder in turn.

        Raises PermissionError for any file outside the folders, whether it exists or not.
        """
        for folder in self._readable:
            path = (folder / name).resolve()  # an absolute name replaces the folder
            if path.suffix.lower() in SUFFIXES and self._is_readable(path):
                return path
        allowed = ", ".join(map(str, self._readable))
        raise PermissionError(f"Name a picture in {allowed}; list_pictures lists them.")

    def _is_readable(self, path: Path) -> bool:
        return path.is_file() and any(path.is_relative_to(folder) for folder in self._readable)

    def save(self, name: str, data: bytes) -> Path:
        """Write a new file in the output folder. A file of this name stays as it is."""
        path = self._output / name
        try:
            with path.open("xb") as file:
                file.write(data)
        except FileExistsError:
            pass
        return path
