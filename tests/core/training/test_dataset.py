"""Building a data set from a folder, and reading it."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import lmdb
import numpy as np
import pytest
from PIL import Image

from core import errors
from core.images import codec
from core.training import dataset_builder
from core.training.dataset import SPLITS, Dataset, State, contact_sheet, translate_lmdb_errors
from core.training.dataset_builder import BuildOptions, build

WISH = BuildOptions(side_px=32, validation=0.25)


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


def test_every_good_picture_is_there_once_and_every_other_file_is_told_of(
    source: Path, tmp_path: Path
) -> None:
    (source / "cats" / "notes.txt").write_text("no picture")
    (source / "dogs" / "torn.png").write_bytes((source / "dogs" / "0.png").read_bytes()[:500])
    (source / "dogs" / ".hidden").write_bytes(b"")
    os.mkfifo(source / "dogs" / "pipe.png")
    (source / "loose.png").touch()
    (source / "cats" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (source / "cats" / "deeper").mkdir()
    shutil.copy(source / "cats" / "0.png", source / "cats" / "deeper" / "copy.png")

    state = build(source, tmp_path / "out", WISH, jobs=2)

    assert (state.files, state.taken, state.refused) == (26, 21, 5)
    with Dataset(tmp_path / "out") as opened:
        assert opened.classes == ["cats", "dogs"]
        assert opened.state.train[0] + opened.state.validation[0] == 13
        assert {sentence.split(":")[0] for sentence in opened.refusals(10)} == {
            "cats/notes.txt",
            "dogs/torn.png",
            "dogs/pipe.png",
            "cats/gone.jpg",
            "loose.png",
        }
        assert opened.picture("train", 0)[1].size == (32, 32)


def test_links_that_lead_to_themselves_and_folders_that_cannot_be_read_are_told_of(
    source: Path, tmp_path: Path
) -> None:
    (source / "itself").symlink_to("itself")
    (source / "cats" / "itself").symlink_to("itself")
    place = os.open(source / "dogs", os.O_RDONLY)
    for _ in range(20):  # deeper than a path may be long
        os.mkdir("d" * 250, dir_fd=place)
        place, above = os.open("d" * 250, os.O_RDONLY, dir_fd=place), place
        os.close(above)
    os.close(place)

    state = build(source, tmp_path / "out", WISH, jobs=1)

    assert (state.files, state.taken, state.refused) == (23, 20, 3)
    with Dataset(tmp_path / "out") as opened:
        told = "\n".join(opened.refusals(10))
    assert "cats/itself: The file cannot be read: Too many levels" in told
    assert "itself: It lies in no sub-folder" in told
    assert "File name too long" in told


def test_progress_counts_what_is_refused_at_once_and_tells_no_time_before_it_knows_one(
    source: Path, tmp_path: Path
) -> None:
    for path in source.glob("cats/[1-9].png"):
        path.write_text("no picture")
    seen = list[dataset_builder.BuildProgress]()
    state = build(source, tmp_path / "out", WISH, jobs=1, on_progress=seen.append)

    assert (state.refused, seen[-1].refused) == (9, 9)
    assert [at.done for at in seen] == [*range(1, 21)]
    assert [at.seconds_left is None for at in seen] == [True, *[False] * 19]


def test_a_share_that_is_no_number_is_refused_before_anything_is_written(
    source: Path, tmp_path: Path
) -> None:
    with pytest.raises(errors.BadDataset, match="validation must be a share"):
        build(source, tmp_path / "out", BuildOptions(32, validation=float("nan")))
    assert not (tmp_path / "out").exists()


def test_a_file_that_the_system_refuses_to_open_is_not_called_damaged(tmp_path: Path) -> None:
    refusal = lmdb.Error("another system's words")
    refusal.code = errno.EACCES

    with pytest.raises(PermissionError, match="Permission denied"), translate_lmdb_errors(tmp_path):
        raise refusal


def test_raw_pixels_are_those_of_the_file(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "out", BuildOptions(32, store="raw", validation=0))

    wanted = {
        Image.open(path).resize((32, 32), Image.Resampling.BILINEAR).tobytes()
        for path in source.glob("cats/*.png")
    }
    assert {data for _, label, data in contents(tmp_path / "out") if label == 0} == wanted


def test_the_same_folder_gives_the_same_data_set_however_many_children_build_it(
    source: Path, tmp_path: Path
) -> None:
    digests = {build(source, tmp_path / str(jobs), WISH, jobs).sha256 for jobs in (1, 3)}

    assert len(digests) == 1
    assert contents(tmp_path / "3") == contents(tmp_path / "1")


def test_another_pictures_or_settings_give_another_digest(source: Path, tmp_path: Path) -> None:
    first = build(source, tmp_path / "a", WISH).sha256
    other = build(source, tmp_path / "b", BuildOptions(32, resize="crop", validation=0.25)).sha256
    shutil.copy(source / "cats" / "0.png", source / "cats" / "1.png")
    changed = build(source, tmp_path / "c", WISH).sha256

    assert len({first, other, changed}) == 3


def test_a_picture_and_its_copy_are_on_the_same_side(source: Path, tmp_path: Path) -> None:
    for path in list(source.glob("*/*.png")):
        shutil.copy(path, path.with_name(f"copy of {path.name}"))

    build(source, tmp_path / "out", WISH)

    sides: dict[bytes, set[str]] = {}
    for split, _, data in contents(tmp_path / "out"):
        sides.setdefault(data, set()).add(split)
    assert len(sides) == 20
    assert all(len(splits) == 1 for splits in sides.values())
    assert set().union(*sides.values()) == {"train", "validation"}


def build_elsewhere(source: Path, out: Path, prelude: str = "") -> "subprocess.Popen[bytes]":
    script = f"""
from pathlib import Path
import core.training.dataset_builder as harvest
from core.training.dataset_builder import BuildOptions, build
{prelude}
if __name__ == "__main__":
    build(Path({str(source)!r}), Path({str(out)!r}), BuildOptions(32, validation=0.25), 2)
"""
    file = out.with_suffix(".py")
    file.write_text(script)
    root = Path(__file__).parents[3]
    return subprocess.Popen(
        [sys.executable, str(file)], env={**os.environ, "PYTHONPATH": str(root)}
    )


@pytest.mark.parametrize(("at", "left"), [(1, 20), (3, 20), (5, 12), (8, 0)])
def test_a_build_that_is_killed_goes_on_and_ends_with_the_same_bytes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, left: int
) -> None:
    """Killed before the commit with that number: two for the listing, five of four pictures each, one for the end."""
    monkeypatch.setattr("core.training.dataset_builder._PORTION", 4)
    wanted = build(source, tmp_path / "whole", WISH)
    prelude = f"""
import os, signal
from core.training.dataset import DatasetWriter
harvest._PORTION = 4
written, count = DatasetWriter.write, 0
def write(book, *args):
    global count
    count += 1
    if count == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    written(book, *args)
DatasetWriter.write = write
"""
    assert build_elsewhere(source, tmp_path / "out", prelude).wait() == -signal.SIGKILL
    with pytest.raises(errors.BadDataset, match="not complete"):
        Dataset(tmp_path / "out")

    read, looked_at = dataset_builder._content, list[Path]()
    monkeypatch.setattr(
        dataset_builder, "_content", lambda path: looked_at.append(path) or read(path)
    )
    state = build(source, tmp_path / "out", WISH)

    assert state == wanted
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    assert len(looked_at) == left  # what was committed is not read again


def test_a_complete_data_set_is_left_as_it_is(source: Path, tmp_path: Path) -> None:
    state = build(source, tmp_path / "out", WISH)
    before = (tmp_path / "out" / "data.mdb").read_bytes()

    assert build(source, tmp_path / "out", WISH) == state
    assert (tmp_path / "out" / "data.mdb").read_bytes() == before


def test_a_map_that_is_full_grows(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "small", BuildOptions(256, store="raw"), book_bytes=200_000)
    build(source, tmp_path / "large", BuildOptions(256, store="raw"))

    assert contents(tmp_path / "small") == contents(tmp_path / "large")


def test_other_settings_than_those_it_was_begun_with_are_refused(
    source: Path, tmp_path: Path
) -> None:
    build(source, tmp_path / "out", WISH)

    with pytest.raises(errors.BadDataset, match="begun with side 32;"):
        build(source, tmp_path / "out", BuildOptions(64, validation=0.25))
    fill(source, {"mice": 3})
    with pytest.raises(errors.BadDataset, match="begun with other classes"):
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


def test_a_class_without_a_usable_picture_is_told_of_and_the_build_goes_on_when_there_are_some(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours of work do not go for one class, and the file that is told of is one of its own."""
    (source / "cats" / "0.png").write_text("no picture")
    kept = tmp_path / "kept"
    shutil.move(source / "dogs", kept)
    (source / "dogs").mkdir()
    for name in "abc":
        Image.new("RGB", (64, 64), "gray").save(source / "dogs" / f"{name}.png")
    for _ in range(2):
        with pytest.raises(
            errors.BadDataset,
            match=r"class dogs .*: dogs/.\.png: .*one color all over.*\(and 2 more\)",
        ):
            build(source, tmp_path / "out", WISH)

    shutil.move(kept / "0.png", source / "dogs" / "better.png")
    shutil.move(kept / "1.png", source / "dogs" / "best.png")
    read, looked_at = dataset_builder._content, list[str]()
    monkeypatch.setattr(
        dataset_builder, "_content", lambda path: looked_at.append(path.name) or read(path)
    )
    state = build(source, tmp_path / "out", BuildOptions(32, validation=0.25))

    assert set(looked_at) == {"better.png", "best.png"}
    assert (state.files, state.taken, state.refused) == (17, 13, 4)
    with Dataset(tmp_path / "out") as opened:
        assert (
            len({opened.value(split, at) for split in SPLITS for at in range(opened.count(split))})
            == 13
        )


def test_pictures_that_came_after_the_end_are_not_passed_over_in_silence(
    source: Path, tmp_path: Path
) -> None:
    state = build(source, tmp_path / "out", WISH)
    shutil.copy(source / "cats" / "0.png", source / "cats" / "new.png")

    with pytest.raises(
        errors.BadDataset, match=r"complete, of 20 files; .* has 1 now that are not"
    ):
        build(source, tmp_path / "out", WISH)
    (source / "dogs" / "0.png").rename(
        tmp_path / "0.png"
    )  # as many as before, and another one all the same
    with pytest.raises(errors.BadDataset, match="not among them"):
        build(source, tmp_path / "out", WISH)
    (tmp_path / "0.png").rename(source / "dogs" / "0.png")
    (source / "cats" / "new.png").unlink()
    assert build(source, tmp_path / "out", WISH) == state


def test_a_disk_that_fails_ends_the_build_and_blames_no_picture(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, failures = Path.read_bytes, [errno.EIO, errno.ESTALE, errno.EMFILE]

    def reading(path: Path) -> bytes:
        if path.parts[-2:] == ("cats", "5.png") and failures:
            raise OSError(failures.pop(), "of the machine", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", reading)
    for _ in range(3):
        with pytest.raises(OSError, match=r"5\.png"):
            build(source, tmp_path / "out", WISH)

    state = build(source, tmp_path / "out", WISH)
    assert (state.taken, state.refused, state) == (20, 0, build(source, tmp_path / "whole", WISH))


def test_a_folder_with_something_else_in_it_is_not_touched(source: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").touch()
    with pytest.raises(errors.BadDataset, match="something else"):
        build(source, mine, WISH)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(errors.BadDataset, match="is a file"):
        build(source, tmp_path / "file", WISH)

    for inside in (source, source / "cats", source / "out"):
        with pytest.raises(errors.BadDataset, match="lies in"):
            build(source, inside, WISH)


@pytest.mark.parametrize(
    "keys",
    [
        {b"00000000": b"a datum of Caffe's"},
        {b"header": b"not ours", b"state": b"{}"},
        {b"header": b"{}"},
    ],
)
@pytest.mark.parametrize("classes", [{"cats": 3, "dogs": 3}, {"cats": 3, "dogs": 0}])
def test_a_strangers_lmdb_is_refused_and_stays_as_it_is_to_the_bit(
    tmp_path: Path, keys: dict[bytes, bytes], classes: dict[str, int]
) -> None:
    """Also where the folder of pictures is one for which a book of ours would be taken away."""
    foreign = tmp_path / "foreign"
    with lmdb.open(str(foreign)) as environment, environment.begin(write=True) as transaction:
        for key, value in keys.items():
            transaction.put(key, value)
    (foreign / "lock.mdb").unlink()
    before = (foreign / "data.mdb").read_bytes()

    with pytest.raises(errors.BadDataset, match="no data set"):
        build(fill(tmp_path / "source", classes), foreign, WISH)
    assert {path.name: path.read_bytes() for path in foreign.iterdir()} == {"data.mdb": before}


def test_two_cannot_build_the_same_at_once(
    source: Path, tmp_path: Path, until: Callable[..., None]
) -> None:
    prelude = (
        "harvest._list = lambda *_: open(__file__ + '.on', 'w') and __import__('signal').pause()"
    )
    other = build_elsewhere(source, tmp_path / "out", prelude)
    try:
        until((tmp_path / "out.py.on").exists, "the other one builds")
        with pytest.raises(errors.BadDataset, match="another process"):
            build(source, tmp_path / "out", WISH)
    finally:
        other.kill()
        other.wait()
    assert build(source, tmp_path / "out", WISH).taken == 20


def test_a_full_disk_is_told_of_and_the_build_goes_on_when_there_is_room(
    source: Path, tmp_path: Path
) -> None:
    """The limit on the size of a file stands in for the disk: the kernel refuses the write just the same."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(errors.StorageFull, match="make some"):
            build(source, tmp_path / "out", BuildOptions(256, store="raw"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        signal.signal(signal.SIGXFSZ, previous)

    assert build(source, tmp_path / "out", BuildOptions(256, store="raw")).taken == 20


def test_what_is_no_data_set_of_this_version_is_refused_in_words(
    source: Path, tmp_path: Path
) -> None:
    with pytest.raises(errors.BadDataset, match="There is no data set"):
        Dataset(tmp_path)
    build(source, tmp_path / "out", WISH)
    with (
        lmdb.open(str(tmp_path / "out"), max_dbs=4) as environment,
        environment.begin(write=True) as transaction,
    ):
        header = transaction.get(b"header")
        transaction.put(b"header", header.replace(b'"version":1', b'"version":2'))
    with pytest.raises(errors.BadDataset, match="of version 2, and this program reads version 1"):
        Dataset(tmp_path / "out")

    (tmp_path / "out" / "data.mdb").write_bytes(b"something else" * 1000)
    with pytest.raises(errors.BadDataset, match="no data set, or it is damaged"):
        Dataset(tmp_path / "out")


def test_a_data_set_that_was_cut_short_is_refused_and_does_not_kill_who_reads_it(
    source: Path, tmp_path: Path
) -> None:
    build(source, tmp_path / "out", BuildOptions(256, store="raw"))
    file = tmp_path / "out" / "data.mdb"
    os.truncate(file, file.stat().st_size // 2)

    with pytest.raises(errors.BadDataset, match="cut short"):
        Dataset(tmp_path / "out")


def poked(dataset: Path, changes: dict[str, dict[bytes, bytes]]) -> Path:
    """With other values under some keys, of the main database and of others."""
    with lmdb.open(str(dataset), max_dbs=4) as environment:
        for name, values in changes.items():
            database = environment.open_db(name.encode() or None)
            with environment.begin(db=database, write=True) as transaction:
                for key, value in values.items():
                    transaction.put(key, value)
    return dataset


def front(**changes: object) -> dict[str, dict[bytes, bytes]]:
    """A header and state with some of their fields changed."""
    header = {"format": "impasto dataset", "version": 1, "classes": ["cats", "dogs"], "side_px": 32}
    header |= {"resize": "linear", "store": "jpeg", "validation": 0.25}
    state: dict[str, object] = {
        "phase": "complete",
        "train": [8, 8],
        "validation": [2, 2],
        "sha256": "00",
    }
    for name, value in changes.items():
        (header if name in header else state)[name] = value  # type: ignore[assignment]
    return {"": {b"header": json.dumps(header).encode(), b"state": json.dumps(state).encode()}}


FRONTS = {
    "another's": front(format="pictures"),
    "nested": {"": {b"header": b"[" * 100_000}},
    "no object": {"": {b"header": b"7"}},
    "classes without counts": front(train=[20]),
    "fewer than none": front(train=[-1, 17]),
    "more pictures than there are": front(train=[10**18, 8]),
    "a side below zero": front(side_px=-1),
}
FIRST = b"\0" * 8
VALUES = {
    "nothing": b"",
    "short": b"\0",
    "a class that is not there": b"\0\2" + codec.encode(Image.new("RGB", (32, 32)), "jpeg"),
    "no picture": b"\0\1hello",
    "a torn picture": b"\0\1"
    + codec.encode(Image.effect_noise((32, 32), 50).convert("RGB"), "jpeg")[:300],
    "another size": b"\0\1" + codec.encode(Image.new("RGB", (31, 32)), "jpeg"),
    "another format": b"\0\1" + codec.encode(Image.new("RGB", (32, 32)), "png"),
}


@pytest.mark.parametrize("name", [*FRONTS, *VALUES])
@pytest.mark.parametrize("store", ["jpeg", "raw"])
def test_a_damaged_or_hostile_data_set_is_refused_in_words(
    source: Path, tmp_path: Path, name: str, store: Literal["jpeg", "raw"]
) -> None:
    build(source, tmp_path / "out", BuildOptions(32, store=store, validation=0.25))
    poked(tmp_path / "out", FRONTS[name] if name in FRONTS else {"train": {FIRST: VALUES[name]}})

    with pytest.raises(errors.BadDataset), Dataset(tmp_path / "out") as opened:
        opened.picture("train", 0)


def test_one_that_is_open_twice_in_a_process_is_not_called_damaged(
    source: Path, tmp_path: Path
) -> None:
    build(source, tmp_path / "out", WISH)
    with (
        Dataset(tmp_path / "out"),
        pytest.raises(errors.BadDataset, match="open in this process already"),
    ):
        Dataset(tmp_path / "out")
    poked(tmp_path / "out", front(phase="reading"))
    for _ in range(2):  # what was refused is not left open
        with pytest.raises(errors.BadDataset, match="not complete"):
            Dataset(tmp_path / "out")


def test_a_contact_sheet_shows_a_row_for_each_class(tmp_path: Path) -> None:
    for name, color in (("blue", (0, 0, 255)), ("red", (255, 0, 0))):
        (tmp_path / "source" / name).mkdir(parents=True)
        for number in range(9):
            picture = Image.new("RGB", (40, 40), color)
            picture.putpixel((number, 0), (255, 255, 255))
            picture.save(tmp_path / "source" / name / f"{number}.png")
    build(tmp_path / "source", tmp_path / "out", BuildOptions(32, validation=0))

    with Dataset(tmp_path / "out") as opened:
        sheet = contact_sheet(opened, columns=4, side_px=20)

    assert sheet.size == (80, 68)
    rows = [sheet.getpixel((70, y)) for y in (24, 58)]
    assert ["blue" if pixel[2] > pixel[0] else "red" for pixel in rows] == ["blue", "red"]  # type: ignore[index]


def test_how_far_it_is_can_be_written_and_read() -> None:
    state = State(train=[1, 2], validation=[0, 1], sha256="00", refused=3)

    assert (state.taken, State.model_validate_json(state.model_dump_json())) == (4, state)
