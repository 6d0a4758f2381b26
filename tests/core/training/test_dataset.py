"""Build a data set from a folder, and read it."""

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

OPTIONS = BuildOptions(side_px=32, validation=0.25)


def write_pictures(folder: Path, classes: dict[str, int], seed: int = 0) -> Path:
    """Write pictures of noise; `classes` maps a class to its number of pictures."""
    random = np.random.default_rng(seed)
    for name, count in classes.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            noise = random.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(noise).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "source", {"cats": 12, "dogs": 8})


def read_all(folder: Path) -> list[tuple[str, int, bytes]]:
    with Dataset(folder) as opened:
        return [
            (split, *opened.value(split, index))
            for split in ("train", "validation")
            for index in range(opened.count(split))
        ]


def test_every_good_picture_is_stored_once_and_every_other_file_is_reported(
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

    state = build(source, tmp_path / "out", OPTIONS, jobs=2)

    assert (state.files, state.accepted, state.refused) == (26, 21, 5)
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


def test_cyclic_links_and_unreadable_folders_are_reported(source: Path, tmp_path: Path) -> None:
    (source / "itself").symlink_to("itself")
    (source / "cats" / "itself").symlink_to("itself")
    current = os.open(source / "dogs", os.O_RDONLY)
    for _ in range(20):  # longer than a path may be
        os.mkdir("d" * 250, dir_fd=current)
        parent, current = current, os.open("d" * 250, os.O_RDONLY, dir_fd=current)
        os.close(parent)
    os.close(current)

    state = build(source, tmp_path / "out", OPTIONS, jobs=1)

    assert (state.files, state.accepted, state.refused) == (23, 20, 3)
    with Dataset(tmp_path / "out") as opened:
        refusals = "\n".join(opened.refusals(10))
    assert "cats/itself: The file cannot be read: Too many levels" in refusals
    assert "itself: It lies in no sub-folder" in refusals
    assert "File name too long" in refusals


def test_progress_counts_refusals_at_once_and_gives_no_time_before_the_second_file(
    source: Path, tmp_path: Path
) -> None:
    for path in source.glob("cats/[1-9].png"):
        path.write_text("no picture")
    seen = list[dataset_builder.BuildProgress]()
    state = build(source, tmp_path / "out", OPTIONS, jobs=1, on_progress=seen.append)

    assert (state.refused, seen[-1].refused) == (9, 9)
    assert [progress.done for progress in seen] == [*range(1, 21)]
    assert [progress.seconds_left is None for progress in seen] == [True, *[False] * 19]


def test_a_validation_share_of_nan_is_refused_before_anything_is_written(
    source: Path, tmp_path: Path
) -> None:
    with pytest.raises(errors.BadDataset, match="validation must be a share"):
        build(source, tmp_path / "out", BuildOptions(32, validation=float("nan")))
    assert not (tmp_path / "out").exists()


def test_a_file_without_read_permission_is_not_reported_as_damaged(tmp_path: Path) -> None:
    refusal = lmdb.Error("a message of another system")
    refusal.code = errno.EACCES

    with pytest.raises(PermissionError, match="Permission denied"), translate_lmdb_errors(tmp_path):
        raise refusal


def test_raw_pixels_are_those_of_the_file(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "out", BuildOptions(32, store="raw", validation=0))

    wanted = {
        Image.open(path).resize((32, 32), Image.Resampling.BILINEAR).tobytes()
        for path in source.glob("cats/*.png")
    }
    assert {data for _, label, data in read_all(tmp_path / "out") if label == 0} == wanted


def test_the_data_set_does_not_depend_on_the_number_of_decoding_processes(
    source: Path, tmp_path: Path
) -> None:
    digests = {build(source, tmp_path / str(jobs), OPTIONS, jobs).sha256 for jobs in (1, 3)}

    assert len(digests) == 1
    assert read_all(tmp_path / "3") == read_all(tmp_path / "1")


def test_other_pictures_or_settings_give_another_digest(source: Path, tmp_path: Path) -> None:
    first = build(source, tmp_path / "a", OPTIONS).sha256
    other = build(source, tmp_path / "b", BuildOptions(32, resize="crop", validation=0.25)).sha256
    shutil.copy(source / "cats" / "0.png", source / "cats" / "1.png")
    changed = build(source, tmp_path / "c", OPTIONS).sha256

    assert len({first, other, changed}) == 3


def test_a_picture_and_its_copy_are_in_the_same_split(source: Path, tmp_path: Path) -> None:
    for path in list(source.glob("*/*.png")):
        shutil.copy(path, path.with_name(f"copy of {path.name}"))

    build(source, tmp_path / "out", OPTIONS)

    splits_of: dict[bytes, set[str]] = {}
    for split, _, data in read_all(tmp_path / "out"):
        splits_of.setdefault(data, set()).add(split)
    assert len(splits_of) == 20
    assert all(len(splits) == 1 for splits in splits_of.values())
    assert set().union(*splits_of.values()) == {"train", "validation"}


def build_in_process(source: Path, out: Path, prelude: str = "") -> "subprocess.Popen[bytes]":
    script = f"""
from pathlib import Path
import core.training.dataset_builder as builder
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
def test_a_killed_build_resumes_and_ends_with_the_same_bytes(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, left: int
) -> None:
    """The process is killed before commit `at`.

    Two commits are for the listing, five for four pictures each, one for the end.
    """
    monkeypatch.setattr("core.training.dataset_builder._BATCH_FILES", 4)
    expected = build(source, tmp_path / "whole", OPTIONS)
    prelude = f"""
import os, signal
from core.training.dataset import DatasetWriter
builder._BATCH_FILES = 4
write_entries, count = DatasetWriter.write, 0
def write(writer, *args):
    global count
    count += 1
    if count == {at}:
        os.kill(os.getpid(), signal.SIGKILL)
    write_entries(writer, *args)
DatasetWriter.write = write
"""
    assert build_in_process(source, tmp_path / "out", prelude).wait() == -signal.SIGKILL
    with pytest.raises(errors.BadDataset, match="not complete"):
        Dataset(tmp_path / "out")

    read, paths = dataset_builder._read_file, list[Path]()
    monkeypatch.setattr(
        dataset_builder, "_read_file", lambda path: paths.append(path) or read(path)
    )
    state = build(source, tmp_path / "out", OPTIONS)

    assert state == expected
    assert read_all(tmp_path / "out") == read_all(tmp_path / "whole")
    assert len(paths) == left  # committed files are not read again


def test_a_complete_data_set_is_not_changed(source: Path, tmp_path: Path) -> None:
    state = build(source, tmp_path / "out", OPTIONS)
    before = (tmp_path / "out" / "data.mdb").read_bytes()

    assert build(source, tmp_path / "out", OPTIONS) == state
    assert (tmp_path / "out" / "data.mdb").read_bytes() == before


def test_a_full_memory_map_grows(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "small", BuildOptions(256, store="raw"), map_bytes=200_000)
    build(source, tmp_path / "large", BuildOptions(256, store="raw"))

    assert read_all(tmp_path / "small") == read_all(tmp_path / "large")


def test_a_build_cannot_be_resumed_with_other_settings(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "out", OPTIONS)

    with pytest.raises(errors.BadDataset, match="begun with side 32;"):
        build(source, tmp_path / "out", BuildOptions(64, validation=0.25))
    write_pictures(source, {"mice": 3})
    with pytest.raises(errors.BadDataset, match="begun with other classes"):
        build(source, tmp_path / "out", OPTIONS)


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        ({}, "it has 0"),
        ({"cats": 3}, "it has 1"),
        ({"cats": 1, "dogs": 0}, "no file in"),
        ({"train": 2, "val": 2}, "split already"),
    ],
)
def test_a_folder_without_usable_classes_is_refused_and_leaves_no_files(
    tmp_path: Path, classes: dict[str, int], words: str
) -> None:
    (tmp_path / "source").mkdir()

    with pytest.raises(errors.BadDataset, match=words):
        build(write_pictures(tmp_path / "source", classes), tmp_path / "out", OPTIONS)
    assert not (tmp_path / "out").exists()


def test_a_class_without_a_usable_picture_is_reported_and_the_build_resumes_with_new_ones(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One bad class does not discard hours of work, and the reported file is of that class."""
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
            build(source, tmp_path / "out", OPTIONS)

    shutil.move(kept / "0.png", source / "dogs" / "better.png")
    shutil.move(kept / "1.png", source / "dogs" / "best.png")
    read, names = dataset_builder._read_file, list[str]()
    monkeypatch.setattr(
        dataset_builder, "_read_file", lambda path: names.append(path.name) or read(path)
    )
    state = build(source, tmp_path / "out", BuildOptions(32, validation=0.25))

    assert set(names) == {"better.png", "best.png"}
    assert (state.files, state.accepted, state.refused) == (17, 13, 4)
    with Dataset(tmp_path / "out") as opened:
        assert (
            len(
                {
                    opened.value(split, index)
                    for split in SPLITS
                    for index in range(opened.count(split))
                }
            )
            == 13
        )


def test_pictures_added_to_a_complete_data_set_are_reported(source: Path, tmp_path: Path) -> None:
    state = build(source, tmp_path / "out", OPTIONS)
    shutil.copy(source / "cats" / "0.png", source / "cats" / "new.png")

    with pytest.raises(
        errors.BadDataset, match=r"complete, of 20 files; .* has 1 now that are not"
    ):
        build(source, tmp_path / "out", OPTIONS)
    # As many files as before, but one of them is new.
    (source / "dogs" / "0.png").rename(tmp_path / "0.png")
    with pytest.raises(errors.BadDataset, match="not among them"):
        build(source, tmp_path / "out", OPTIONS)
    (tmp_path / "0.png").rename(source / "dogs" / "0.png")
    (source / "cats" / "new.png").unlink()
    assert build(source, tmp_path / "out", OPTIONS) == state


def test_a_failing_disk_ends_the_build_and_refuses_no_picture(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, failures = Path.read_bytes, [errno.EIO, errno.ESTALE, errno.EMFILE]

    def failing_read(path: Path) -> bytes:
        if path.parts[-2:] == ("cats", "5.png") and failures:
            raise OSError(failures.pop(), "an error of the machine", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", failing_read)
    for _ in range(3):
        with pytest.raises(OSError, match=r"5\.png"):
            build(source, tmp_path / "out", OPTIONS)

    state = build(source, tmp_path / "out", OPTIONS)
    assert (state.accepted, state.refused, state) == (
        20,
        0,
        build(source, tmp_path / "whole", OPTIONS),
    )


def test_a_folder_with_other_files_is_not_changed(source: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").touch()
    with pytest.raises(errors.BadDataset, match="something else"):
        build(source, other, OPTIONS)
    (tmp_path / "file").write_text("text")
    with pytest.raises(errors.BadDataset, match="is a file"):
        build(source, tmp_path / "file", OPTIONS)

    for inside in (source, source / "cats", source / "out"):
        with pytest.raises(errors.BadDataset, match="lies in"):
            build(source, inside, OPTIONS)


@pytest.mark.parametrize(
    "keys",
    [
        {b"00000000": b"a datum of Caffe's"},
        {b"header": b"not ours", b"state": b"{}"},
        {b"header": b"{}"},
    ],
)
@pytest.mark.parametrize("classes", [{"cats": 3, "dogs": 3}, {"cats": 3, "dogs": 0}])
def test_an_lmdb_file_of_another_program_is_refused_and_stays_unchanged(
    tmp_path: Path, keys: dict[bytes, bytes], classes: dict[str, int]
) -> None:
    """Also if the source is one for which a data set of ours would be deleted."""
    foreign = tmp_path / "foreign"
    with lmdb.open(str(foreign)) as environment, environment.begin(write=True) as transaction:
        for key, value in keys.items():
            transaction.put(key, value)
    (foreign / "lock.mdb").unlink()
    before = (foreign / "data.mdb").read_bytes()

    with pytest.raises(errors.BadDataset, match="no data set"):
        build(write_pictures(tmp_path / "source", classes), foreign, OPTIONS)
    assert {path.name: path.read_bytes() for path in foreign.iterdir()} == {"data.mdb": before}


def test_two_processes_cannot_build_the_same_data_set(
    source: Path, tmp_path: Path, until: Callable[..., None]
) -> None:
    prelude = """
import signal
builder._list_source = lambda *_: open(__file__ + '.on', 'w') and signal.pause()
"""
    other = build_in_process(source, tmp_path / "out", prelude)
    try:
        until((tmp_path / "out.py.on").exists, "the other process builds")
        with pytest.raises(errors.BadDataset, match="another process"):
            build(source, tmp_path / "out", OPTIONS)
    finally:
        other.kill()
        other.wait()
    assert build(source, tmp_path / "out", OPTIONS).accepted == 20


def test_a_full_disk_is_reported_and_the_build_resumes_when_there_is_space(
    source: Path, tmp_path: Path
) -> None:
    """A limit on the file size stands in for the full disk: the kernel refuses the write."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        with pytest.raises(errors.StorageFull, match="make room and repeat the command"):
            build(source, tmp_path / "out", BuildOptions(256, store="raw"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        signal.signal(signal.SIGXFSZ, previous)

    assert build(source, tmp_path / "out", BuildOptions(256, store="raw")).accepted == 20


def test_a_file_that_is_no_data_set_of_this_version_is_refused_with_a_reason(
    source: Path, tmp_path: Path
) -> None:
    with pytest.raises(errors.BadDataset, match="There is no data set"):
        Dataset(tmp_path)
    build(source, tmp_path / "out", OPTIONS)
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


def test_a_truncated_data_set_is_refused_and_does_not_kill_its_reader(
    source: Path, tmp_path: Path
) -> None:
    build(source, tmp_path / "out", BuildOptions(256, store="raw"))
    file = tmp_path / "out" / "data.mdb"
    os.truncate(file, file.stat().st_size // 2)

    with pytest.raises(errors.BadDataset, match="cut short"):
        Dataset(tmp_path / "out")


def overwrite(dataset: Path, changes: dict[str, dict[bytes, bytes]]) -> Path:
    """Overwrite values of the main database ('') and of named databases."""
    with lmdb.open(str(dataset), max_dbs=4) as environment:
        for name, values in changes.items():
            database = environment.open_db(name.encode() or None)
            with environment.begin(db=database, write=True) as transaction:
                for key, value in values.items():
                    transaction.put(key, value)
    return dataset


def make_metadata(**changes: object) -> dict[str, dict[bytes, bytes]]:
    """Return a valid header and state, with some fields changed."""
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


BAD_METADATA = {
    "another program's": make_metadata(format="pictures"),
    "nested": {"": {b"header": b"[" * 100_000}},
    "not an object": {"": {b"header": b"7"}},
    "classes without counts": make_metadata(train=[20]),
    "a negative count": make_metadata(train=[-1, 17]),
    "a count beyond the pictures": make_metadata(train=[10**18, 8]),
    "a negative side": make_metadata(side_px=-1),
}
FIRST = b"\0" * 8
BAD_VALUES = {
    "empty": b"",
    "short": b"\0",
    "an unknown class": b"\0\2" + codec.encode(Image.new("RGB", (32, 32)), "jpeg"),
    "no picture": b"\0\1hello",
    "a truncated picture": b"\0\1"
    + codec.encode(Image.effect_noise((32, 32), 50).convert("RGB"), "jpeg")[:300],
    "another size": b"\0\1" + codec.encode(Image.new("RGB", (31, 32)), "jpeg"),
    "another format": b"\0\1" + codec.encode(Image.new("RGB", (32, 32)), "png"),
}


@pytest.mark.parametrize("name", [*BAD_METADATA, *BAD_VALUES])
@pytest.mark.parametrize("store", ["jpeg", "raw"])
def test_a_damaged_or_hostile_data_set_is_refused(
    source: Path, tmp_path: Path, name: str, store: Literal["jpeg", "raw"]
) -> None:
    build(source, tmp_path / "out", BuildOptions(32, store=store, validation=0.25))
    overwrite(
        tmp_path / "out",
        BAD_METADATA[name] if name in BAD_METADATA else {"train": {FIRST: BAD_VALUES[name]}},
    )

    with pytest.raises(errors.BadDataset), Dataset(tmp_path / "out") as opened:
        opened.picture("train", 0)


def test_a_data_set_opened_twice_in_one_process_is_not_reported_as_damaged(
    source: Path, tmp_path: Path
) -> None:
    build(source, tmp_path / "out", OPTIONS)
    with (
        Dataset(tmp_path / "out"),
        pytest.raises(errors.BadDataset, match="open in this process already"),
    ):
        Dataset(tmp_path / "out")
    overwrite(tmp_path / "out", make_metadata(phase="reading"))
    for _ in range(2):  # a refused data set is not left open
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


def test_the_state_survives_serialization() -> None:
    state = State(train=[1, 2], validation=[0, 1], sha256="00", refused=3)

    assert (state.accepted, State.model_validate_json(state.model_dump_json())) == (4, state)
