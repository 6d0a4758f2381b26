"""Files that are whole or not there, and folders that one process at a time works in."""

import errno
from pathlib import Path

import pytest

from core import errors
from core.storage.files import atomic_write, exclusive_lock


def test_a_file_is_replaced_whole_or_stays_what_it_was(tmp_path: Path) -> None:
    file = tmp_path / "file"
    atomic_write(file, lambda part: part.write_bytes(b"first"))

    for number, kind in ((errno.ENOSPC, errors.StorageFull), (errno.EACCES, PermissionError)):

        def fails(part: Path, number: int = number) -> None:
            part.write_bytes(b"half")
            raise OSError(number, "in the middle")

        with pytest.raises(kind):
            atomic_write(file, fails)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"first"}

    atomic_write(file, lambda part: part.write_bytes(b"second"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"second"}


def test_a_folder_is_held_and_goes_if_nothing_came_of_it(tmp_path: Path) -> None:
    folder, refusal = tmp_path / "a" / "b", errors.BadSpec("held")
    with exclusive_lock(folder, refusal):
        with pytest.raises(errors.BadSpec, match="held"), exclusive_lock(folder, refusal):
            pass
        assert folder.is_dir()
    assert not folder.exists()

    with exclusive_lock(folder, refusal):
        (folder / "work").touch()
    folder_of_mine = tmp_path / "mine"
    folder_of_mine.mkdir()
    with exclusive_lock(folder_of_mine, refusal):
        pass
    assert (folder / "work").exists()
    assert folder_of_mine.is_dir()


def test_what_blocks_inside_is_not_taken_for_another_process(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError), exclusive_lock(tmp_path, errors.BadSpec("held")):
        raise BlockingIOError(errno.EAGAIN, "a pipe")


def test_a_refusal_names_the_file_that_was_asked_for_and_not_its_part(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as refused:
        atomic_write(tmp_path / "nowhere" / "file", lambda part: part.write_bytes(b"some"))
    assert refused.value.filename == str(tmp_path / "nowhere" / "file")
