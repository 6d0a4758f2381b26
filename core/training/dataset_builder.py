"""Build a data set from a folder of pictures: list the files, decode them, store the results.

A sub-folder is a class. A build resumes after any interruption. It first lists all files under the
hash of their path, then processes them in that order. After each batch it writes its position in
one transaction with the batch's pictures. Memory does not grow with the number of pictures.
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
from core.images import codec, validation
from core.images.codec import Resize
from core.images.decoder import DATASET_LIMITS, SandboxedDecoder, fork_process
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
    extend_digest,
    translate_lmdb_errors,
)

_LISTING_BATCH_FILES = 4096
_BATCH_FILES = 256  # from one commit to the next
_NO_CLASS = MAX_CLASSES  # the class number of a file that lies in no sub-folder
# Errors of a single file, not of the machine: the build refuses the file and continues.
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
    """How a data set stores its pictures. validation: the share that is kept from training."""

    side_px: int = 256
    resize: Resize = "linear"
    store: Store = "jpeg"
    validation: float = 0.05


@dataclass(frozen=True)
class BuildProgress:
    """The progress of a build, in numbers of files.

    `done` is 0 while files are listed. `seconds_left` is None until two files are processed.
    """

    files: int
    done: int
    refused: int
    seconds_left: float | None


@dataclass(frozen=True)
class _Accepted:
    key: bytes
    label: int
    split: Split
    value: bytes


@dataclass(frozen=True)
class _Refused:
    key: bytes
    sentence: str


_Result = _Accepted | _Refused
OnProgress = Callable[[BuildProgress], None]


class _EmptyClassError(Exception):
    """A class has no file at all, so that nothing is worth keeping of the build."""


def build(
    folder: Path,
    out: Path,
    options: BuildOptions,
    jobs: int = 0,
    *,
    on_progress: OnProgress | None = None,
    map_bytes: int | None = None,
) -> State:
    """Build the data set `out`, or resume its build; return at once if it is complete.

    jobs: decoding processes; 0: one per core. map_bytes: the first size of the memory map.

    Raises BadDataset if the folder is no basis for training, if `out` is something else or was
    begun with other settings, or if another process builds it. Raises StorageFull, and OSError if
    the system cannot read; what is done so far is kept then. Leaves no files if a class is empty.
    """
    if not 0 <= options.validation < 1:  # also true for NaN, which JSON cannot store
        raise errors.BadDataset("validation must be a share from 0 to under 1.")
    header = _make_header(folder, options)
    _check_output_folder(folder, out)
    with exclusive_lock(out, errors.BadDataset(f"{out} is being built by another process.")):
        try:
            with (
                translate_lmdb_errors(out),
                DatasetWriter(out, *([map_bytes] if map_bytes else [])) as writer,
            ):
                state = _load_or_create_state(writer, header, out)
                if state.phase == "complete":
                    _check_for_new_files(folder, writer, out, state, header)
                if state.phase == "listing":
                    _list_source(folder, writer, state, header, on_progress)
                if state.phase == "reading":
                    processes = jobs or os.cpu_count() or 1
                    with closing(
                        _decode_files(folder, writer, state, header, processes)
                    ) as results:
                        _write_results(results, writer, state, header, on_progress)
                return state
        except _EmptyClassError as error:
            for name in ("data.mdb", "lock.mdb"):
                (out / name).unlink(missing_ok=True)
            raise errors.BadDataset(str(error)) from None


def _make_header(folder: Path, options: BuildOptions) -> Header:
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
            f"{folder} must have from 2 to {MAX_CLASSES} sub-folders, each a class; "
            f"it has {len(names)}."
        )
    if any(not name.isprintable() for name in names):
        raise errors.BadDataset(
            f"The name of a sub-folder of {folder} contains unprintable characters; rename it."
        )
    return Header(
        classes=names,
        side_px=options.side_px,
        resize=options.resize,
        store=options.store,
        validation=options.validation,
    )


def _check_output_folder(folder: Path, out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise errors.BadDataset(f"{out} is a file; a data set is a folder.")
    if out.resolve().is_relative_to(folder.resolve()):
        raise errors.BadDataset(
            f"{out} lies in {folder}, whose sub-folders are the classes; give another folder."
        )
    if out.is_dir() and any(out.iterdir()) and not (out / "data.mdb").is_file():
        raise errors.BadDataset(f"{out} is a folder with something else in it; give another.")


def _check_for_new_files(
    folder: Path, writer: DatasetWriter, out: Path, state: State, header: Header
) -> None:
    new = sum(
        not _is_listed(writer, state, _relative_path(folder, path))
        for _, path in _find_files(folder, header)
    )
    if new:
        raise errors.BadDataset(
            f"{out} is complete, of {state.files} files; {folder} has {new} now that are not among "
            "them. To include them, build a new data set in another folder."
        )


def _load_or_create_state(writer: DatasetWriter, header: Header, out: Path) -> State:
    found = writer.read()
    if found is None:
        zeros = [0] * len(header.classes)
        state = State(
            train=zeros,
            validation=zeros.copy(),
            sha256=hashlib.sha256(header.model_dump_json().encode()).hexdigest(),
        )
        writer.begin(header, state)
        return state
    for name, value in found[0]:
        if value == getattr(header, name):
            continue
        before = "other classes" if name == "classes" else f"{name.removesuffix('_px')} {value}"
        raise errors.BadDataset(
            f"{out} was begun with {before}; give the same again, or another folder for this one."
        )
    return found[1]


# ---------------------------------------------------------------------- listing


def _list_source(
    folder: Path,
    writer: DatasetWriter,
    state: State,
    header: Header,
    on_progress: OnProgress | None,
) -> None:
    """Record all files under the hash of their path. Safe to repeat.

    A later listing adds new files after all files of earlier listings.
    """
    entries, labels = list[tuple[bytes, bytes, bytes]](), set[int]()
    for label, path in _find_files(folder, header):
        labels.add(label)
        relative = _relative_path(folder, path)
        if not _is_listed(writer, state, relative):
            key = _file_key(state.listings, relative)
            entries.append((b"files", key, LABEL.pack(label) + relative))
        if len(entries) == _LISTING_BATCH_FILES:
            writer.write(entries, state)
            entries.clear()
            if on_progress is not None:
                on_progress(BuildProgress(writer.count(b"files"), 0, 0, None))
    if not state.position:
        for label, name in enumerate(header.classes):
            if label not in labels:
                raise _EmptyClassError(f"There is no file in {folder / name}.")
    writer.write(entries, state)
    state.files, state.phase = writer.count(b"files"), "reading"
    state.listings += 1
    writer.write([], state)


def _relative_path(folder: Path, path: Path) -> bytes:
    return os.fsencode(path.relative_to(folder))


def _file_key(listing: int, relative: bytes) -> bytes:
    return LABEL.pack(listing) + hashlib.blake2b(relative, digest_size=16).digest()


def _is_listed(writer: DatasetWriter, state: State, relative: bytes) -> bool:
    return any(
        writer.has(b"files", _file_key(listing, relative)) for listing in range(state.listings)
    )


def _find_files(folder: Path, header: Header) -> Iterator[tuple[int, Path]]:
    """Yield (class number, path) of every file."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.name.startswith(".") and not _is_folder(entry):
                yield _NO_CLASS, Path(entry.path)
    for label, name in enumerate(header.classes):
        for path in _walk(folder / name):
            yield label, path


def _walk(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and its sub-folders.

    Follows no link to a folder below, because it could form a cycle. Yields a sub-folder that
    cannot be read as if it were a file, so that it is reported as refused.
    """
    folders = [folder]
    while folders:
        current = folders.pop()
        try:
            found = os.scandir(current)
        except OSError as error:
            if current == folder or error.errno not in _FILE_ERRORS:
                raise
            yield current
            continue
        with found as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                elif not _is_folder(entry):
                    yield Path(entry.path)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    """Return whether an entry is a folder or a link to one.

    A link that leads to itself is none: it is refused when it is read.
    """
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno not in _FILE_ERRORS:
            raise
        return False


# ---------------------------------------------------------------------- reading


def _write_results(
    results: Iterator[_Result],
    writer: DatasetWriter,
    state: State,
    header: Header,
    on_progress: OnProgress | None,
) -> None:
    """Write the results in batches and report the progress, then mark the data set as complete."""
    began, batch, refused = 0.0, list[_Result](), state.refused
    done_before = state.accepted + state.refused
    for count, result in enumerate(results, start=1):
        # The clock starts at the first result: starting the processes says nothing of the rate.
        began = began or time.monotonic()
        batch.append(result)
        refused += isinstance(result, _Refused)
        if len(batch) == _BATCH_FILES:
            _write_batch(writer, state, batch)
            batch.clear()
        if on_progress is not None:
            done, seconds_left = done_before + count, None
            if count > 1:
                seconds_per_file = (time.monotonic() - began) / (count - 1)
                seconds_left = seconds_per_file * (state.files - done)
            on_progress(BuildProgress(state.files, done, refused, seconds_left))
    _write_batch(writer, state, batch)
    for name, count in zip(header.classes, state.train, strict=True):
        if not count:
            state.phase = "listing"
            writer.write([], state)
            raise errors.BadDataset(
                f"No picture of the class {name} can be used for training: "
                f"{_describe_refusals(writer, name)} Add others and repeat the command; "
                "it continues from here."
            )
    state.phase = "complete"
    writer.write([], state)


def _describe_refusals(writer: DatasetWriter, name: str) -> str:
    """Return why a class lacks pictures: its first refusal, and the number of others."""
    sentences = (value.decode() for _, value in _read_entries(writer, b"refused", b""))
    own = [sentence for sentence in sentences if sentence.startswith(f"{name}/")]
    return f"{own[0]} (and {len(own) - 1} more)" if own else "there are too few."


def _decode_files(
    folder: Path, writer: DatasetWriter, state: State, header: Header, jobs: int
) -> Generator[_Result, None, None]:
    """Yield the result of each file in order, while up to 4 * jobs later files are in work."""
    idle: queue.SimpleQueue[SandboxedDecoder] = queue.SimpleQueue()
    decoders = [SandboxedDecoder(DATASET_LIMITS, fork_process) for _ in range(jobs)]
    for decoder in decoders:
        idle.put(decoder)

    def decode(key: bytes, value: bytes) -> _Result:
        decoder = idle.get()
        try:
            return _decode_file(folder, key, value, header, decoder)
        finally:
            idle.put(decoder)

    pending: deque[Future[_Result]] = deque()
    pool = ThreadPoolExecutor(jobs)
    try:
        for key, value in _read_entries(writer, b"files", bytes.fromhex(state.position)):
            pending.append(pool.submit(decode, key, value))
            if len(pending) > 4 * jobs:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        for decoder in decoders:
            decoder.close()


def _read_entries(
    writer: DatasetWriter, name: bytes, after: bytes
) -> Iterator[tuple[bytes, bytes]]:
    """Yield the entries of a database after a key, and hold no transaction open meanwhile."""
    while found := writer.entries_after(name, after, _LISTING_BATCH_FILES):
        yield from found
        after = found[-1][0]


def _decode_file(
    folder: Path, key: bytes, value: bytes, header: Header, decoder: SandboxedDecoder
) -> _Result:
    label, path = LABEL.unpack_from(value)[0], os.fsdecode(value[LABEL.size :])
    if label == _NO_CLASS:
        return _refusal(key, path, "It lies in no sub-folder, and so belongs to no class.")
    try:
        data = _read_file(folder / path)
        pixels = decoder.decode_square(data, header.side_px, header.resize)
    except errors.BadInput as error:
        return _refusal(key, path, error.message)
    except errors.OutOfMemory as error:  # on another machine, or with fewer jobs, the file is good
        raise errors.OutOfMemory(
            f"The machine ran out of memory when it decoded {path}; repeat the command with "
            "fewer --jobs: it continues where it stopped."
        ) from error
    split = _split_of(data, header.validation)
    return _Accepted(key, label, split, LABEL.pack(label) + _encode_pixels(pixels, header))


def _refusal(key: bytes, path: str, reason: str) -> _Refused:
    return _Refused(key, f"{path}: {reason}".encode("utf-8", "replace").decode())


def _read_file(path: Path) -> bytes:
    """Return a file's bytes. Raises BadInput for a bad file, OSError for a failing system."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise errors.BadImage("The folder cannot be read.")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe could block forever
            raise errors.UnsupportedImage()
        validation.check_file_size(status.st_size)
        data = path.read_bytes()
    except OSError as error:
        if error.errno not in _FILE_ERRORS:
            raise
        raise errors.BadImage(f"The file cannot be read: {error.strerror}.") from error
    validation.detect_format(data)
    return data


def _split_of(data: bytes, validation_share: float) -> Split:
    """Return a file's split by the hash of its bytes, so that copies of a file share one split."""
    fraction = int.from_bytes(hashlib.sha256(data).digest()[:8]) / 2**64
    return "validation" if fraction < validation_share else "train"


def _encode_pixels(pixels: bytes, header: Header) -> bytes:
    if header.store == "raw":
        return pixels
    return codec.encode(Image.frombytes("RGB", (header.side_px, header.side_px), pixels), "jpeg")


def _write_batch(writer: DatasetWriter, state: State, batch: list[_Result]) -> None:
    """Advance the state past a batch, and write both in one transaction."""
    entries = []
    counts = {"train": sum(state.train), "validation": sum(state.validation)}
    for result in batch:
        if isinstance(result, _Refused):
            entries.append((b"refused", INDEX.pack(state.refused), result.sentence.encode()))
            state.refused += 1
        else:
            index = INDEX.pack(counts[result.split])
            entries.append((result.split.encode(), index, result.value))
            counts[result.split] += 1
            getattr(state, result.split)[result.label] += 1
            state.sha256 = extend_digest(state.sha256, result.split, result.value)
        state.position = result.key.hex()
    writer.write(entries, state)
