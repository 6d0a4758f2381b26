"""Checkpoints beside the painting: which files there are, and which one the store is told of."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from core import errors
from core.storage.checkpoints import Checkpoints
from worker import checkpoint_writer
from worker.checkpoint_writer import CheckpointWriter


class State:
    """A checkpoint that says what is to be said, once it may."""

    def __init__(self, text: str, *, good: bool = True, may: threading.Event | None = None) -> None:
        self._text, self._good, self._may = text, good, may

    def save(self, file: Path) -> bool:
        if self._may is not None:
            assert self._may.wait(10)
        file.write_text(self._text)
        return self._good


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def make(tmp_path: Path, told: list[str]) -> Callable[..., CheckpointWriter]:
    def made(tell: Callable[[str], object] = told.append, every: float = 0) -> CheckpointWriter:
        return CheckpointWriter(
            Checkpoints(tmp_path), lambda count: f"job_a.t.{count}", tell, every
        )

    return made


def _files(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_the_newest_is_told_and_the_earlier_go(
    make: Callable[..., CheckpointWriter], tmp_path: Path, told: list[str]
) -> None:
    kept = make()
    for text in ("one", "two"):
        kept.submit(State(text))
        kept.flush(10)

    assert told == ["job_a.t.0", "job_a.t.1"]
    assert _files(tmp_path) == {"job_a.t.1": "two"}
    kept.delete_all()
    assert _files(tmp_path) == {}


def test_a_spoiled_file_is_never_named(
    make: Callable[..., CheckpointWriter], tmp_path: Path, told: list[str]
) -> None:
    kept = make()
    for state in (State("good"), State("spoiled", good=False)):
        kept.submit(state)
        kept.flush(10)

    assert told == ["job_a.t.0"]
    assert _files(tmp_path)["job_a.t.0"] == "good"
    kept.close()


def test_the_one_before_stays_while_the_store_may_still_name_it(
    make: Callable[..., CheckpointWriter], tmp_path: Path
) -> None:
    """The answer was lost on its way: either may be the one that the next attempt looks for."""
    answers: list[Exception | None] = [None, errors.StoreUnavailable(), None]

    def tell(_: str) -> None:
        if trouble := answers.pop(0):
            raise trouble

    kept = make(tell)
    for text, left in (("one", {"one"}), ("two", {"one", "two"}), ("three", {"three"})):
        kept.submit(State(text))
        kept.flush(10)
        assert set(_files(tmp_path).values()) == left
    kept.close()


def test_once_the_job_is_anothers_the_file_that_is_named_stays(
    make: Callable[..., CheckpointWriter], tmp_path: Path
) -> None:
    """It is what the other goes on from."""
    answers = ["ok", "stale"]
    kept = make(lambda _: answers.pop(0))
    for text in ("named", "deadline_exceeded"):
        kept.submit(State(text))
        kept.flush(10)

    assert set(_files(tmp_path).values()) == {"named"}
    kept.close()


def test_what_could_not_be_written_takes_no_room(
    make: Callable[..., CheckpointWriter], tmp_path: Path
) -> None:
    class Torn(State):
        def save(self, file: Path) -> bool:
            super().save(file)
            raise OSError("no space left")

    kept = make()
    for state in (State("good"), Torn("torn"), State("spoiled", good=False)):
        kept.submit(state)
        kept.flush(10)

    assert set(_files(tmp_path).values()) == {"good"}
    kept.close()


def test_none_is_due_while_one_is_written_or_has_just_been(
    make: Callable[..., CheckpointWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, may = [0.0], threading.Event()
    monkeypatch.setattr(checkpoint_writer.time, "monotonic", lambda: now[0])
    kept = make(every=2)
    assert not kept.is_due()
    now[0] = 2
    assert kept.is_due()
    kept.submit(State("slow", may=may))
    now[0] = 3
    assert not kept.is_due()
    may.set()
    kept.flush(10)

    now[0] = 3 + checkpoint_writer._REST - 0.1  # it took a second
    assert not kept.is_due()
    now[0] = 3 + checkpoint_writer._REST
    assert kept.is_due()
    kept.close()


def test_a_disk_that_is_full_costs_only_the_checkpoint(
    make: Callable[..., CheckpointWriter], told: list[str], tmp_path: Path
) -> None:
    class Full(State):
        def save(self, file: Path) -> bool:
            raise OSError(f"no space left for {file}")

    kept = make()
    kept.submit(Full(""))
    kept.flush(10)
    kept.submit(State("again"))
    kept.flush(10)

    assert told == ["job_a.t.1"]
    kept.close()
