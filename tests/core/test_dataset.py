"""Building a data set from a folder, and reading it."""

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lmdb
import numpy as np
import pytest
from PIL import Image

from core import errors, harvest
from core.dataset import Dataset, State, contact_sheet
from core.harvest import Wish, build

WISH = Wish(side_px=32, validation=0.25)


def fill(folder: Path, classes: dict[str, int], seed: int = 0) -> Path:
    """Noise; classes and how many pictures each has."""
    hand = np.random.default_rng(seed)
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            noise = hand.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return fill(tmp_path / "source", {"cats": 12, "dogs": 8})


def contents(folder: Path) -> list[tuple[str, int, bytes]]:
    with Dataset(folder) as opened:
        return [
            (split, *opened.value(split, index))
            for split in ("train", "validation")
            for index in range(opened.count(split))
        ]


def test_every_good_picture_is_there_once_and_every_other_file_is_told_of(source: Path, tmp_path: Path) -> None:
    (source / "cats" / "notes.txt").write_text("no picture")
    (source / "dogs" / "torn.png").write_bytes((source / "dogs" / "0.png").read_bytes()[:500])
    (source / "dogs" / ".hidden").write_bytes(b"")
    os.mkfifo(source / "dogs" / "pipe.png")
    (source / "cats" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (source / "cats" / "deeper").mkdir()
    shutil.copy(source / "cats" / "0.png", source / "cats" / "deeper" / "copy.png")

    state = build(source, tmp_path / "out", WISH, jobs=2)

    assert (25, 21, 4) == (state.files, state.taken, state.refused)
    with Dataset(tmp_path / "out") as opened:
        assert ["cats", "dogs"] == opened.classes
        assert 13 == opened.state.train[0] + opened.state.validation[0]
        assert {"cats/notes.txt", "dogs/torn.png", "dogs/pipe.png", "cats/gone.jpg"} == {
            sentence.split(":")[0] for sentence in opened.refusals(10)
        }
        assert (32, 32) == opened.picture("train", 0)[1].size


def test_raw_pixels_are_those_of_the_file(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "out", Wish(32, store="raw", validation=0))

    wanted = {
        Image.open(path).resize((32, 32), Image.Resampling.BILINEAR).tobytes() for path in source.glob("cats/*.png")
    }
    assert wanted == {data for _, label, data in contents(tmp_path / "out") if label == 0}


def test_the_same_folder_gives_the_same_data_set_however_many_children_build_it(source: Path, tmp_path: Path) -> None:
    digests = {build(source, tmp_path / str(jobs), WISH, jobs).sha256 for jobs in (1, 3)}

    assert 1 == len(digests)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


def test_another_pictures_or_settings_give_another_digest(source: Path, tmp_path: Path) -> None:
    first = build(source, tmp_path / "a", WISH).sha256
    other = build(source, tmp_path / "b", Wish(32, resize="crop", validation=0.25)).sha256
    shutil.copy(source / "cats" / "0.png", source / "cats" / "1.png")
    changed = build(source, tmp_path / "c", WISH).sha256

    assert 3 == len({first, other, changed})


def test_a_picture_and_its_copy_are_on_the_same_side(source: Path, tmp_path: Path) -> None:
    for path in list(source.glob("*/*.png")):
        shutil.copy(path, path.with_name(f"copy of {path.name}"))

    build(source, tmp_path / "out", WISH)

    sides: dict[bytes, set[str]] = {}
    for split, _, data in contents(tmp_path / "out"):
        sides.setdefault(data, set()).add(split)
    assert 20 == len(sides)
    assert all(len(splits) == 1 for splits in sides.values())
    assert {"train", "validation"} == set().union(*sides.values())


def build_elsewhere(source: Path, out: Path, prelude: str = "") -> "subprocess.Popen[bytes]":
    script = f"""
from pathlib import Path
import core.harvest as harvest
from core.harvest import Wish, build
{prelude}
if __name__ == "__main__":
    build(Path({str(source)!r}), Path({str(out)!r}), Wish(32, validation=0.25), 2)
"""
    file = out.with_suffix(".py")
    file.write_text(script)
    root = Path(__file__).parents[2]
    return subprocess.Popen([sys.executable, str(file)], env={**os.environ, "PYTHONPATH": str(root)})


@pytest.mark.parametrize(("at", "left"), [(2, 20), (5, 20), (8, 8), (11, 0)])
def test_a_build_that_is_killed_goes_on_and_ends_with_the_same_bytes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, left: int
) -> None:
    """Killed before the commit with that number: the first, three for the listing, five of four pictures each."""
    monkeypatch.setattr("core.harvest._PORTION", 4)
    wanted = build(source, tmp_path / "whole", WISH)
    prelude = f"""
import os, signal
from core.dataset import Book
harvest._PORTION = 4
written, count = Book.write, 0
def write(book, *args):
    global count
    count += 1
    if count == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    written(book, *args)
Book.write = write
"""
    assert -signal.SIGKILL == build_elsewhere(source, tmp_path / "out", prelude).wait()
    with pytest.raises(errors.BadDataset, match="not complete"):
        Dataset(tmp_path / "out")

    read, looked_at = harvest._content, list[Path]()
    monkeypatch.setattr(harvest, "_content", lambda path: looked_at.append(path) or read(path))
    state = build(source, tmp_path / "out", WISH)

    assert wanted == state
    assert contents(tmp_path / "whole") == contents(tmp_path / "out")
    assert left == len(looked_at)  # what was committed is not read again


def test_a_complete_data_set_is_left_as_it_is(source: Path, tmp_path: Path) -> None:
    state = build(source, tmp_path / "out", WISH)
    before = (tmp_path / "out" / "data.mdb").read_bytes()

    assert state == build(source, tmp_path / "out", WISH)
    assert before == (tmp_path / "out" / "data.mdb").read_bytes()


def test_a_map_that_is_full_grows(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "small", Wish(256, store="raw"), book_bytes=200_000)
    build(source, tmp_path / "large", Wish(256, store="raw"))

    assert contents(tmp_path / "large") == contents(tmp_path / "small")


def test_other_settings_than_those_it_was_begun_with_are_refused(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "out", WISH)

    with pytest.raises(errors.BadDataset, match="another side_px"):
        build(source, tmp_path / "out", Wish(64, validation=0.25))
    fill(source, {"mice": 3})
    with pytest.raises(errors.BadDataset, match="another classes"):
        build(source, tmp_path / "out", WISH)


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ({}, "it has 0"),
        ({"cats": 3}, "it has 1"),
        ({"cats": 1, "dogs": 0}, "no file in"),
        ({"train": 2, "val": 2}, "split already"),
    ],
)
def test_a_folder_that_nothing_can_be_learnt_from_is_refused_and_leaves_nothing(
    tmp_path: Path, classes: dict[str, int], words: str
) -> None:
    (tmp_path / "source").mkdir()

    with pytest.raises(errors.BadDataset, match=words):
        build(fill(tmp_path / "source", classes), tmp_path / "out", WISH)
    assert not (tmp_path / "out").exists()


def test_a_class_without_a_usable_picture_is_refused_with_the_reason(source: Path, tmp_path: Path) -> None:
    for path in source.glob("dogs/*.png"):
        Image.new("RGB", (64, 64), "gray").save(path)

    with pytest.raises(errors.BadDataset, match=r"(?s)dogs.*one color all over"):
        build(source, tmp_path / "out", WISH)
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_else_in_it_is_not_touched(source: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.BadDataset, match="something else"):
        build(source, source, WISH)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(errors.BadDataset, match="is a file"):
        build(source, tmp_path / "file", WISH)

    foreign = tmp_path / "foreign"
    with lmdb.open(str(foreign)) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"header", b"not ours")
        transaction.put(b"state", b"{}")
    with pytest.raises(errors.BadDataset, match="no data set"):
        build(source, foreign, WISH)
    assert (foreign / "data.mdb").is_file()


def test_two_cannot_build_the_same_at_once(source: Path, tmp_path: Path, until: Callable[..., None]) -> None:
    prelude = "harvest._list = lambda *_: open(__file__ + '.on', 'w') and __import__('signal').pause()"
    other = build_elsewhere(source, tmp_path / "out", prelude)
    try:
        until((tmp_path / "out.py.on").exists, "the other one builds")
        with pytest.raises(errors.BadDataset, match="another process"):
            build(source, tmp_path / "out", WISH)
    finally:
        other.kill()
        other.wait()
    assert 20 == build(source, tmp_path / "out", WISH).taken


def test_a_full_disk_is_told_of_and_the_build_goes_on_when_there_is_room(source: Path, tmp_path: Path) -> None:
    """The limit on the size of a file stands in for the disk: the kernel refuses the write just the same."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(errors.StorageFull, match="make some"):
            build(source, tmp_path / "out", Wish(256, store="raw"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        signal.signal(signal.SIGXFSZ, previous)

    assert 20 == build(source, tmp_path / "out", Wish(256, store="raw")).taken


def test_what_is_no_data_set_of_this_version_is_refused_in_words(source: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.BadDataset, match="There is no data set"):
        Dataset(tmp_path)
    build(source, tmp_path / "out", WISH)
    with lmdb.open(str(tmp_path / "out"), max_dbs=4) as environment, environment.begin(write=True) as transaction:
        header = transaction.get(b"header")
        transaction.put(b"header", header.replace(b'"version":1', b'"version":2'))
    with pytest.raises(errors.BadDataset, match="of version 2, and this program reads version 1"):
        Dataset(tmp_path / "out")

    (tmp_path / "out" / "data.mdb").write_bytes(b"something else" * 1000)
    with pytest.raises(errors.BadDataset, match="no data set, or it is damaged"):
        Dataset(tmp_path / "out")


def test_a_data_set_that_was_cut_short_is_refused_and_does_not_kill_who_reads_it(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "out", Wish(256, store="raw"))
    file = tmp_path / "out" / "data.mdb"
    os.truncate(file, file.stat().st_size // 2)

    with pytest.raises(errors.BadDataset, match="cut short"):
        Dataset(tmp_path / "out")


def test_a_contact_sheet_shows_a_row_for_each_class(tmp_path: Path) -> None:
    for name, color in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
        (tmp_path / "source" / name).mkdir(parents=True)
        for number in range(9):
            picture = Image.new("RGB", (40, 40), color)
            picture.putpixel((number, 0), (255, 255, 255))
            picture.save(tmp_path / "source" / name / f"{number}.png")
    build(tmp_path / "source", tmp_path / "out", Wish(32, validation=0))

    with Dataset(tmp_path / "out") as opened:
        sheet = contact_sheet(opened, columns=4, side_px=20)

    assert (80, 68) == sheet.size
    rows = [sheet.getpixel((70, y)) for y in (24, 58)]
    assert ["blue", "red"] == ["blue" if pixel[2] > pixel[0] else "red" for pixel in rows]  # type: ignore[index]


def test_how_far_it_is_can_be_written_and_read() -> None:
    state = State(train=[1, 2], validation=[0, 1], sha256="00", refused=3)

    assert (4, state) == (state.taken, State.model_validate_json(state.model_dump_json()))
