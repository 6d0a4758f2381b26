"""Atomic writes and exclusive locks."""

import errno
import stat
from pathlib import Path

import pytest

from core import errors
from core.storage.files import atomic_write, exclusive_lock


def test_a_file_is_replaced_entirely_or_not_changed(tmp_path: Path) -> None:
    file = tmp_path / "file"
    atomic_write(file, lambda temporary: temporary.write_bytes(b"first"))

    for number, kind in ((errno.ENOSPC, errors.StorageFull), (errno.EACCES, PermissionError)):

        def fail_midway(temporary: Path, number: int = number) -> None:
            temporary.write_bytes(b"half")
            raise OSError(number, "in the middle")

        with pytest.raises(kind):
            atomic_write(file, fail_midway)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"first"}

    atomic_write(file, lambda temporary: temporary.write_bytes(b"second"))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"file": b"second"}


def test_a_replaced_file_keeps_its_permissions(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    file.chmod(0o604)
    atomic_write(file, lambda temporary: temporary.write_bytes(b"new"))
    assert stat.filemode(file.stat().st_mode) == "-rw----r--"


def test_a_folder_is_locked_and_a_new_empty_one_is_removed(tmp_path: Path) -> None:
    folder, error = tmp_path / "a" / "b", errors.BadSpec("locked")
    with exclusive_lock(folder, error):
        with pytest.raises(errors.BadSpec, match="locked"), exclusive_lock(folder, error):
            pass
        assert folder.is_dir()
    assert not folder.exists()

    with exclusive_lock(folder, error):
        (folder / "work").touch()
    existing_folder = tmp_path / "existing"
    existing_folder.mkdir()
    with exclusive_lock(existing_folder, error):
        pass
    assert (folder / "work").exists()
    assert existing_folder.is_dir()


def test_a_blocking_error_inside_is_not_mistaken_for_another_process(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError), exclusive_lock(tmp_path, errors.BadSpec("locked")):
        raise BlockingIOError(errno.EAGAIN, "a pipe")


def test_an_error_names_the_requested_file_and_not_the_temporary_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as refused:
        atomic_write(
            tmp_path / "nowhere" / "file", lambda temporary: temporary.write_bytes(b"some")
        )
    assert refused.value.filename == str(tmp_path / "nowhere" / "file")
