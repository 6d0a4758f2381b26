"""The files that the checkpoint writer leaves, and the names that it publishes."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from core import errors
from core.storage.checkpoints import Checkpoints
from worker import checkpoint_writer
from worker.checkpoint_writer import CheckpointWriter


class State:
    """A checkpoint that writes this text, when the event allows it."""

    def __init__(
        self, text: str, *, good: bool = True, allowed: threading.Event | None = None
    ) -> None:
        self._text, self._good, self._allowed = text, good, allowed

    def save(self, file: Path) -> bool:
        if self._allowed is not None:
            assert self._allowed.wait(10)
        file.write_text(self._text)
        return self._good


@pytest.fixture
def published() -> list[str]:
    return []


@pytest.fixture
def make(tmp_path: Path, published: list[str]) -> Callable[..., CheckpointWriter]:
    def build(
        publish: Callable[[str], object] = published.append, every: float = 0
    ) -> CheckpointWriter:
        return CheckpointWriter(
            Checkpoints(tmp_path), lambda count: f"job_a.t.{count}", publish, every
        )

    return build


def _files(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


def test_the_newest_file_is_published_and_the_earlier_ones_are_deleted(
    make: Callable[..., CheckpointWriter], tmp_path: Path, published: list[str]
) -> None:
    writer = make()
    for text in ("one", "two"):
        writer.submit(State(text))
        writer.flush(10)

    assert published == ["job_a.t.0", "job_a.t.1"]
    assert _files(tmp_path) == {"job_a.t.1": "two"}
    writer.delete_all()
    assert _files(tmp_path) == {}


def test_a_useless_file_is_never_published(
    make: Callable[..., CheckpointWriter], tmp_path: Path, published: list[str]
) -> None:
    writer = make()
    for state in (State("good"), State("useless", good=False)):
        writer.submit(state)
        writer.flush(10)

    assert published == ["job_a.t.0"]
    assert _files(tmp_path)["job_a.t.0"] == "good"
    writer.close()


def test_the_previous_file_stays_while_the_store_may_still_name_it(
    make: Callable[..., CheckpointWriter], tmp_path: Path
) -> None:
    """When the answer is lost, the next attempt may resume from either file."""
    answers: list[Exception | None] = [None, errors.StoreUnavailable(), None]

    def publish(_: str) -> None:
        if trouble := answers.pop(0):
            raise trouble

    writer = make(publish)
    for text, left in (("one", {"one"}), ("two", {"one", "two"}), ("three", {"three"})):
        writer.submit(State(text))
        writer.flush(10)
        assert set(_files(tmp_path).values()) == left
    writer.close()


def test_when_the_lease_is_lost_the_published_file_stays(
    make: Callable[..., CheckpointWriter], tmp_path: Path
) -> None:
    """The other worker resumes from it."""
    answers = ["ok", "stale"]
    writer = make(lambda _: answers.pop(0))
    for text in ("published", "unpublished"):
        writer.submit(State(text))
        writer.flush(10)

    assert set(_files(tmp_path).values()) == {"published"}
    writer.close()


def test_a_file_that_could_not_be_written_takes_no_room(
    make: Callable[..., CheckpointWriter], tmp_path: Path
) -> None:
    class Torn(State):
        def save(self, file: Path) -> bool:
            super().save(file)
            raise OSError("no space left")

    writer = make()
    for state in (State("good"), Torn("torn"), State("useless", good=False)):
        writer.submit(state)
        writer.flush(10)

    assert set(_files(tmp_path).values()) == {"good"}
    writer.close()


def test_no_checkpoint_is_due_during_a_write_or_soon_after_it(
    make: Callable[..., CheckpointWriter], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, allowed = [0.0], threading.Event()
    monkeypatch.setattr(checkpoint_writer.time, "monotonic", lambda: now[0])
    writer = make(every=2)
    assert not writer.is_due()
    now[0] = 2
    assert writer.is_due()
    writer.submit(State("slow", allowed=allowed))
    now[0] = 3
    assert not writer.is_due()
    allowed.set()
    writer.flush(10)

    now[0] = 3 + checkpoint_writer.REST_FACTOR - 0.1  # the write took a second
    assert not writer.is_due()
    now[0] = 3 + checkpoint_writer.REST_FACTOR
    assert writer.is_due()
    writer.close()


@pytest.mark.parametrize("fails", [False, True], ids=["done", "failed"])
def test_a_slow_upload_delays_the_next_checkpoint_less_than_a_slow_write(
    fails: bool,
    make: Callable[..., CheckpointWriter],
    monkeypatch: pytest.MonkeyPatch,
    published: list[str],
) -> None:
    """It takes the network's time, not the run's; and a bucket that failed may answer again."""
    now = [0.0]

    def upload(*_: object) -> None:
        now[0] += 10
        if fails:
            raise errors.Unavailable()

    monkeypatch.setattr(checkpoint_writer.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Checkpoints, "publish", upload)
    writer = make(every=2)
    writer.submit(State("text"))
    writer.flush(10)
    assert published == ([] if fails else ["job_a.t.0"])

    now[0] = 10 + 10 * checkpoint_writer.UPLOAD_REST_FACTOR - 0.1
    assert not writer.is_due()
    now[0] += 0.1
    assert writer.is_due()
    writer.close()


def test_a_full_disk_costs_only_the_checkpoint(
    make: Callable[..., CheckpointWriter], published: list[str], tmp_path: Path
) -> None:
    class Full(State):
        def save(self, file: Path) -> bool:
            raise OSError(f"no space left for {file}")

    writer = make()
    writer.submit(Full(""))
    writer.flush(10)
    writer.submit(State("again"))
    writer.flush(10)

    assert published == ["job_a.t.1"]
    writer.close()
