"""The folder of checkpoints."""

import os
from pathlib import Path

import pytest

from core.jobs.models import new_job_id
from core.storage.checkpoints import Checkpoints


def test_two_attempts_at_a_job_never_share_a_file() -> None:
    job_id = new_job_id()
    names = {
        Checkpoints.name(job_id, token, count) for token in ("a" * 32, "b" * 32) for count in (0, 1)
    }

    assert len(names) == 4


@pytest.mark.parametrize("old", [True, False])
def test_old_checkpoints_that_no_job_would_resume_from_are_deleted(
    tmp_path: Path, old: bool
) -> None:
    folder, job_id = Checkpoints(tmp_path), new_job_id()
    current, outdated = (Checkpoints.name(job_id, "t" * 32, count) for count in (0, 1))
    orphan = Checkpoints.name(new_job_id(), "t" * 32, 0)
    for name in (current, outdated, orphan):
        folder.path(name).write_text("x")
        if old:
            os.utime(folder.path(name), (1, 1))
    deleted = folder.sweep(lambda found: current if found == job_id else None)

    assert deleted == (2 if old else 0)
    assert {file.name for file in tmp_path.iterdir()} == (
        {current} if old else {current, outdated, orphan}
    )


def test_sizes_are_those_of_the_files(tmp_path: Path) -> None:
    folder = Checkpoints(tmp_path)
    assert folder.sizes() == []
    for size in (3, 5):
        folder.path(Checkpoints.name(new_job_id(), "t" * 32, 0)).write_bytes(b"x" * size)

    assert sorted(folder.sizes()) == [3, 5]


def test_a_name_cannot_lead_out_of_the_folder(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path).path("../../etc/passwd").parent == tmp_path
