"""A folder of pictures to a data set: list the files, decode them in children, write what came out.

A sub-folder is a class. It goes on after any end: the files are listed first, under the hash of their path, and taken
in that order; after each portion the place is written together with its pictures. Memory does not grow with their
number.
"""

import errno
import hashlib
import os
import queue
import stat
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from core import errors
from core.images import codec
from core.images.decoders import Decoder, Resize
from core.storage.files import exclusive_lock
from core.training.dataset import (
    INDEX,
    LABEL,
    MAX_CLASSES,
    DatasetWriter,
    Header,
    Split,
    State,
    Store,
    digest_of,
    translate_lmdb_errors,
)

_LISTED_AT_ONCE = 4096
_PORTION = 256  # pictures from one commit to the next
_NO_CLASS = MAX_CLASSES  # in the place of a class's number: a file that lies in no sub-folder
# What is wrong with a file, and not with the machine: of that a picture is told, and the build goes on.
_FILE_ERRORS = {
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EACCES,
    errno.EISDIR,
    errno.ELOOP,
    errno.ENAMETOOLONG,
}
_SPLIT_NAMES = {"train", "training", "val", "valid", "validation", "test"}


@dataclass(frozen=True)
class BuildOptions:
    """How pictures are to be kept."""

    side_px: int = 256
    resize: Resize = "linear"
    store: Store = "jpeg"
    validation: float = 0.05


@dataclass(frozen=True)
class BuildProgress:
    """Where a build is; `done` is 0 while files are listed, and no time is known until a second one is read."""

    files: int
    done: int
    refused: int
    seconds_left: float | None


@dataclass(frozen=True)
class _Taken:
    key: bytes
    label: int
    split: Split
    value: bytes


@dataclass(frozen=True)
class _Refused:
    key: bytes
    sentence: str


OnProgress = Callable[[BuildProgress], None]


def build(
    folder: Path,
    out: Path,
    wish: BuildOptions,
    jobs: int = 0,
    *,
    on_progress: OnProgress | None = None,
    book_bytes: int | None = None,
) -> State:
    """Build the data set `out`, or go on with it; quick where it is complete. jobs: children; 0: one a core.

    Raises BadDataset where nothing can be learnt from the folder, where `out` is something else or was begun with other
    settings, or is being built by another process; StorageFull, and OSError where the system fails to read: what has
    been done is kept. Leaves nothing of a data set of which there is nothing yet.
    """
    if not 0 <= wish.validation < 1:  # nor what is no number, which JSON cannot keep
        raise errors.BadDataset("validation must be a share from 0 to under 1.")
    header = _header(folder, wish)
    _check_place(folder, out)
    with exclusive_lock(out, errors.BadDataset(f"{out} is being built by another process.")):
        try:
            with (
                translate_lmdb_errors(out),
                DatasetWriter(out, *([book_bytes] if book_bytes else [])) as book,
            ):
                state = _begun(book, header, out)
                if state.phase == "complete":
                    _check_unchanged(folder, book, out, state, header)
                if state.phase == "listing":
                    _list(folder, book, state, header, on_progress)
                if state.phase == "reading":
                    with closing(
                        _outcomes(folder, book, state, header, jobs or os.cpu_count() or 1)
                    ) as outcomes:
                        _take(outcomes, book, state, header, on_progress)
                return state
        except _Useless as error:
            for name in ("data.mdb", "lock.mdb"):
                (out / name).unlink(missing_ok=True)
            raise errors.BadDataset(str(error)) from None


class _Useless(Exception):
    """Nothing can be learnt from it, as its list of files tells before any is read."""


def _header(folder: Path, wish: BuildOptions) -> Header:
    with os.scandir(folder) as entries:
        names = sorted(
            entry.name for entry in entries if _is_folder(entry) and not entry.name.startswith(".")
        )
    if names and {name.lower() for name in names} <= _SPLIT_NAMES:
        raise errors.BadDataset(
            f"{folder} is split already; give one of {', '.join(names)}: it is split here again."
        )
    if not 2 <= len(names) <= MAX_CLASSES:
        raise errors.BadDataset(
            f"{folder} must have from 2 to {MAX_CLASSES} sub-folders, each a class; it has {len(names)}."
        )
    if any(not name.isprintable() for name in names):
        raise errors.BadDataset(
            f"The name of a sub-folder of {folder} cannot be written; rename it."
        )
    return Header(
        classes=names,
        side_px=wish.side_px,
        resize=wish.resize,
        store=wish.store,
        validation=wish.validation,
    )


def _check_place(folder: Path, out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise errors.BadDataset(f"{out} is a file; a data set is a folder.")
    if out.resolve().is_relative_to(folder.resolve()):
        raise errors.BadDataset(
            f"{out} lies in {folder}, whose sub-folders are the classes; take another place."
        )
    if out.is_dir() and any(out.iterdir()) and not (out / "data.mdb").is_file():
        raise errors.BadDataset(f"{out} is a folder with something else in it; take another.")


def _check_unchanged(
    folder: Path, book: DatasetWriter, out: Path, state: State, header: Header
) -> None:
    new = sum(
        not _is_listed(book, state, _relative(folder, path)) for _, path in _places(folder, header)
    )
    if new:
        raise errors.BadDataset(
            f"{out} is complete, of {state.files} files; {folder} has {new} now that are not among them. To take them "
            "all, build it at another place."
        )


def _begun(book: DatasetWriter, header: Header, out: Path) -> State:
    front = book.read()
    if front is None:
        none = [0] * len(header.classes)
        state = State(
            train=none,
            validation=none.copy(),
            sha256=hashlib.sha256(header.model_dump_json().encode()).hexdigest(),
        )
        book.begin(header, state)
        return state
    for name, value in front[0]:
        if value != getattr(header, name):
            then = "other classes" if name == "classes" else f"{name.removesuffix('_px')} {value}"
            raise errors.BadDataset(
                f"{out} was begun with {then}; give the same as then, or another place for this one."
            )
    return front[1]


# ---------------------------------------------------------------------- list


def _list(
    folder: Path, book: DatasetWriter, state: State, header: Header, on_progress: OnProgress | None
) -> None:
    """All files under the hash of their path; listed again, the new ones after all others. Safe to repeat."""
    entries, labels = list[tuple[bytes, bytes, bytes]](), set[int]()
    for label, path in _places(folder, header):
        labels.add(label)
        relative = _relative(folder, path)
        if not _is_listed(book, state, relative):
            entries.append((b"files", _key(state.listings, relative), LABEL.pack(label) + relative))
        if len(entries) == _LISTED_AT_ONCE:
            book.write(entries, state)
            entries.clear()
            if on_progress is not None:
                on_progress(BuildProgress(book.count(b"files"), 0, 0, None))
    if not state.position:
        for label, name in enumerate(header.classes):
            if label not in labels:
                raise _Useless(f"There is no file in {folder / name}.")
    book.write(entries, state)
    state.files, state.phase, state.listings = book.count(b"files"), "reading", state.listings + 1
    book.write([], state)


def _relative(folder: Path, path: Path) -> bytes:
    return os.fsencode(path.relative_to(folder))


def _key(listing: int, relative: bytes) -> bytes:
    return LABEL.pack(listing) + hashlib.blake2b(relative, digest_size=16).digest()


def _is_listed(book: DatasetWriter, state: State, relative: bytes) -> bool:
    return any(book.has(b"files", _key(listing, relative)) for listing in range(state.listings))


def _places(folder: Path, header: Header) -> Iterator[tuple[int, Path]]:
    """Every file, and the number of its class."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and not _is_folder(entry):
                yield _NO_CLASS, Path(entry.path)
    for label, name in enumerate(header.classes):
        for path in _files(folder / name):
            yield label, path


def _files(folder: Path) -> Iterator[Path]:
    """Also of folders below, but through no link to a folder: it could lead back. One that cannot be read is a file."""
    below = [folder]
    while below:
        place = below.pop()
        try:
            found = os.scandir(place)
        except OSError as error:
            if place == folder or error.errno not in _FILE_ERRORS:
                raise
            yield place
            continue
        with found as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    below.append(Path(entry.path))
                elif not _is_folder(entry):
                    yield Path(entry.path)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Also a link to one. A link that leads to itself is none; it is told of when it is read."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno not in _FILE_ERRORS:
            raise
        return False


# ---------------------------------------------------------------------- read


def _take(
    outcomes: Iterator[_Taken | _Refused],
    book: DatasetWriter,
    state: State,
    header: Header,
    on_progress: OnProgress | None,
) -> None:
    began, portion, refused = 0.0, list[_Taken | _Refused](), state.refused
    before = state.taken + state.refused
    for count, outcome in enumerate(outcomes, start=1):
        began = (
            began or time.monotonic()
        )  # the children have started by now, which says nothing of the pace
        portion.append(outcome)
        refused += isinstance(outcome, _Refused)
        if len(portion) == _PORTION:
            _keep(book, state, portion)
            portion.clear()
        if on_progress is not None:
            done, pace = (
                before + count,
                (time.monotonic() - began) / (count - 1) if count > 1 else None,
            )
            left = None if pace is None else pace * (state.files - done)
            on_progress(BuildProgress(state.files, done, refused, left))
    _keep(book, state, portion)
    for name, count in zip(header.classes, state.train, strict=True):
        if not count:
            state.phase = "listing"
            book.write([], state)
            raise errors.BadDataset(
                f"Of the class {name} no picture can be used for training: {_example(book, name)} Put others there and "
                "give the command again; it goes on from here."
            )
    state.phase = "complete"
    book.write([], state)


def _example(book: DatasetWriter, name: str) -> str:
    """Why a class lacks pictures."""
    sentences = (value.decode() for _, value in _entries(book, b"refused", b""))
    own = [sentence for sentence in sentences if sentence.startswith(f"{name}/")]
    return f"{own[0]} (and {len(own) - 1} more)" if own else "there are too few."


def _outcomes(
    folder: Path, book: DatasetWriter, state: State, header: Header, jobs: int
) -> Generator[_Taken | _Refused, None, None]:
    """What becomes of each file, in order, some ahead of those that are written."""
    decoders: queue.SimpleQueue[Decoder] = queue.SimpleQueue()
    everyone = [Decoder(header.side_px, header.resize) for _ in range(jobs)]
    for decoder in everyone:
        decoders.put(decoder)

    def work(key: bytes, value: bytes) -> _Taken | _Refused:
        decoder = decoders.get()
        try:
            return _outcome(folder, key, value, header, decoder)
        finally:
            decoders.put(decoder)

    pending: deque[Future[_Taken | _Refused]] = deque()
    pool = ThreadPoolExecutor(jobs)
    try:
        for key, value in _entries(book, b"files", bytes.fromhex(state.position)):
            pending.append(pool.submit(work, key, value))
            if len(pending) > 4 * jobs:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        for decoder in everyone:
            decoder.close()


def _entries(book: DatasetWriter, name: bytes, after: bytes) -> Iterator[tuple[bytes, bytes]]:
    while found := book.after(name, after, _LISTED_AT_ONCE):
        yield from found
        after = found[-1][0]


def _outcome(
    folder: Path, key: bytes, value: bytes, header: Header, decoder: Decoder
) -> _Taken | _Refused:
    label, path = LABEL.unpack_from(value)[0], os.fsdecode(value[LABEL.size :])
    if label == _NO_CLASS:
        return _refused(key, path, "It lies in no sub-folder, and so belongs to no class.")
    try:
        data = _content(folder / path)
        pixels = decoder.square(data)
    except errors.BadInput as error:
        return _refused(key, path, error.message)
    return _Taken(
        key, label, _split_of(data, header.validation), LABEL.pack(label) + _stored(pixels, header)
    )


def _refused(key: bytes, path: str, words: str) -> _Refused:
    return _Refused(key, f"{path}: {words}".encode("utf-8", "replace").decode())


def _content(path: Path) -> bytes:
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise errors.BadImage("The folder cannot be read.")
        if not stat.S_ISREG(found.st_mode):  # to open a pipe could take for ever
            raise errors.UnsupportedImage()
        if found.st_size > codec.MAX_BYTES:
            raise errors.UploadTooLarge(
                f"A picture may have at most {codec.MAX_BYTES // 10**6} MB."
            )
        data = path.read_bytes()
    except OSError as error:
        if error.errno not in _FILE_ERRORS:
            raise
        raise errors.BadImage(f"The file cannot be read: {error.strerror}.") from error
    codec.detect_format(data)
    return data


def _split_of(data: bytes, validation: float) -> Split:
    """By the file's bytes: the same whatever it is called and wherever it lies, so that no copy is on both sides."""
    place = int.from_bytes(hashlib.sha256(data).digest()[:8]) / 2**64
    return "validation" if place < validation else "train"


def _stored(pixels: bytes, header: Header) -> bytes:
    if header.store == "raw":
        return pixels
    return codec.encode(Image.frombytes("RGB", (header.side_px, header.side_px), pixels), "jpeg")


def _keep(book: DatasetWriter, state: State, portion: list[_Taken | _Refused]) -> None:
    """Write a portion and the state after it. The state is advanced with it."""
    entries = []
    counts = {"train": sum(state.train), "validation": sum(state.validation)}
    for outcome in portion:
        if isinstance(outcome, _Refused):
            entries.append((b"refused", INDEX.pack(state.refused), outcome.sentence.encode()))
            state.refused += 1
        else:
            entries.append(
                (outcome.split.encode(), INDEX.pack(counts[outcome.split]), outcome.value)
            )
            counts[outcome.split] += 1
            getattr(state, outcome.split)[outcome.label] += 1
            state.sha256 = digest_of(state.sha256, outcome.split, outcome.value)
        state.position = outcome.key.hex()
    book.write(entries, state)
