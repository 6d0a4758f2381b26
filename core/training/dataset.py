"""A data set: pictures of one size in classes, split for training and validation, in one LMDB file.

Keys of the main database, both JSON: `header` (what the data set is) and `state` (how far its build
is). Named databases:

    train, validation   8-byte index -> 2-byte class number and the picture
    files               hash of a path -> class number and path
    refused             8-byte index -> a sentence

Pictures are ordered by the hashes of their paths. So neighbors are unrelated, and the first hundred
are a fair sample. This module knows no source folder (see dataset_builder.py) and no tensors.
"""

import errno
import hashlib
import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import lmdb
from PIL import Image, ImageDraw
from pydantic import BaseModel, ConfigDict, Field

from core import errors
from core.images import codec
from core.images.codec import Resize
from core.storage import files

FORMAT: Literal["impasto dataset"] = "impasto dataset"
VERSION = 1
Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = get_args(Split)
Store = Literal["jpeg", "raw"]  # JPEG at quality 95 without subsampling, or plain pixels
STORES: tuple[Store, ...] = get_args(Store)
Phase = Literal["listing", "reading", "complete"]

MAX_CLASSES = 65_535
INDEX, LABEL = struct.Struct(">Q"), struct.Struct(">H")
_HEADER, _STATE = b"header", b"state"
_DATABASES = (b"train", b"validation", b"files", b"refused")
_FIRST_MAP_BYTES = 64 * 2**20
_FORBIDDEN = {errno.EROFS, errno.EACCES, errno.EPERM}
_DISK_FULL_ERRNOS = files.DISK_FULL_ERRNOS | {errno.EIO}  # LMDB reports a short write as EIO

Counts = list[Annotated[int, Field(ge=0)]]  # one per class


class Header(BaseModel):
    """What a data set is. Never changes after its creation."""

    model_config = ConfigDict(frozen=True)

    format: Literal["impasto dataset"] = FORMAT
    version: int = VERSION
    classes: list[str]
    side_px: Annotated[int, Field(ge=1)]
    resize: Resize
    store: Store
    validation: float


class State(BaseModel):
    """How far a data set's build is, and the digest of its bytes."""

    phase: Phase = "listing"
    files: int = 0
    # How often the folder was listed to its end: once, and again each time a class lacks pictures.
    listings: int = 0
    position: str = ""  # key in `files` of the last file that was processed, in hex
    train: Counts
    validation: Counts
    refused: int = 0
    sha256: str  # a chain of hashes: header, then each picture (see extend_digest)

    @property
    def accepted(self) -> int:
        """The number of pictures in both splits."""
        return sum(self.train) + sum(self.validation)


def extend_digest(digest: str, split: Split, value: bytes) -> str:
    """Return a data set's digest after one more picture."""
    return hashlib.sha256(
        digest.encode() + split.encode() + hashlib.sha256(value).digest()
    ).hexdigest()


class DatasetWriter:
    """The LMDB file of a data set, opened for writing. A context manager.

    The memory map grows as the file fills.
    """

    def __init__(self, folder: Path, map_bytes: int = _FIRST_MAP_BYTES) -> None:
        """Raises StorageFull; BadDataset if the file is not ours, which then stays unchanged."""
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "data.mdb"
        with translate_lmdb_errors(folder):
            if file.exists() and file.stat().st_size:
                with _open_read_only(folder) as environment:
                    _read_metadata(environment)
            # Without metasync, a power failure may undo the last commit, but nothing else.
            self._env = lmdb.open(
                str(folder), map_size=map_bytes, metasync=False, max_dbs=len(_DATABASES)
            )
            self._databases: dict[bytes, Any] = {}
            if self.read() is not None:
                self._databases = {name: self._env.open_db(name) for name in _DATABASES}

    def __enter__(self) -> "DatasetWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._env.close()

    def read(self) -> tuple[Header, State] | None:
        """Return header and state; None if nothing has been written yet. Raises BadDataset."""
        return _read_metadata(self._env)

    def begin(self, header: Header, state: State) -> None:
        """Create header, first state and databases in one transaction. Raises StorageFull."""
        with self._env.begin(write=True) as transaction:
            self._databases = {name: self._env.open_db(name, transaction) for name in _DATABASES}
            transaction.put(_HEADER, header.model_dump_json().encode())
            transaction.put(_STATE, state.model_dump_json().encode())

    def write(self, entries: list[tuple[bytes, bytes, bytes]], state: State) -> None:
        """Write entries (database, key, value) and the state in one transaction.

        Raises StorageFull.
        """
        while True:
            try:
                with self._env.begin(write=True) as transaction:
                    for name, key, value in entries:
                        transaction.put(key, value, db=self._databases[name])
                    transaction.put(_STATE, state.model_dump_json().encode())
            except lmdb.MapFullError:
                self._env.set_mapsize(2 * self._env.info()["map_size"])
            else:
                return

    def has(self, name: bytes, key: bytes) -> bool:
        """Return whether a database has an entry."""
        with self._env.begin(db=self._databases[name]) as transaction:
            return transaction.get(key) is not None

    def count(self, name: bytes) -> int:
        """Return the number of a database's entries."""
        with self._env.begin() as transaction:
            return int(transaction.stat(self._databases[name])["entries"])

    def entries_after(self, name: bytes, key: bytes, count: int) -> list[tuple[bytes, bytes]]:
        """Return up to `count` entries that follow a key. No transaction stays open."""
        found: list[tuple[bytes, bytes]] = []
        with (
            self._env.begin(db=self._databases[name]) as transaction,
            transaction.cursor() as cursor,
        ):
            has_entry = cursor.set_range(key) and (cursor.key() != key or cursor.next())
            while has_entry and len(found) < count:
                found.append(cursor.item())
                has_entry = cursor.next()
        return found


@contextmanager
def translate_lmdb_errors(folder: Path) -> Iterator[None]:
    """Raise LMDB's errors as StorageFull or BadDataset, and as OSError if access is forbidden."""
    try:
        yield
    except lmdb.Error as error:
        if "already open in this process" in str(error):
            raise errors.BadDataset(
                f"{folder} is open in this process already; close it first."
            ) from error
        if isinstance(error, lmdb.DiskError) or error.code in _DISK_FULL_ERRNOS:
            raise errors.StorageFull(
                f"There is no room for {folder}; make room and repeat the command: "
                "it continues where it stopped."
            ) from error
        if error.code in _FORBIDDEN:
            raise OSError(error.code, os.strerror(error.code), str(folder)) from error
        raise errors.BadDataset(
            f"{folder} is no data set, or it is damaged; build it again."
        ) from error


def _open_read_only(folder: Path) -> Any:
    return lmdb.open(
        str(folder),
        readonly=True,
        lock=False,
        readahead=False,
        max_dbs=len(_DATABASES),
        create=False,
    )


class Dataset:
    """A data set, opened for reading. A context manager. Many processes may read it at once.

    Close it before a fork: a child must not use an LMDB environment that its parent has open.
    """

    def __init__(self, folder: Path, *, unfinished: bool = False) -> None:
        """Raises BadDataset if the folder is no data set, or one of another version or truncated.

        Also if it is incomplete, except if `unfinished` is set.
        """
        self.folder = folder
        self._env: Any = None
        self._databases: dict[str, Any] = {}
        file = folder / "data.mdb"
        if not file.is_file():
            raise errors.BadDataset(
                f"There is no data set in {folder}; `impasto dataset build` makes one."
            )
        self.bytes = file.stat().st_size
        try:
            with translate_lmdb_errors(folder):
                self.header, self.state = self._read_metadata()
                self._check_complete(unfinished=unfinished)
        except BaseException:
            self.close()
            raise

    def _read_metadata(self) -> tuple[Header, State]:
        found = _read_metadata(self._environment())
        if found is None:
            raise errors.BadDataset(f"{self.folder} is no data set.")
        return found

    def _check_complete(self, *, unfinished: bool) -> None:
        if self.state.phase != "complete" and not unfinished:
            raise errors.BadDataset(
                f"{self.folder} is not complete; repeat the command that began it."
            )
        pages, size = (
            self._environment().info()["last_pgno"] + 1,
            self._environment().stat()["psize"],
        )
        # A read beyond the end of a truncated file would kill the process with SIGBUS.
        if self.bytes < pages * size:
            raise errors.BadDataset(f"{self.folder} has been cut short; build it again.")
        for split in SPLITS:
            with self._environment().begin(db=self._database(split)) as transaction:
                if transaction.stat(self._database(split))["entries"] != self.count(split):
                    raise self._damaged_error()

    def _damaged_error(self) -> errors.BadDataset:
        return errors.BadDataset(f"{self.folder} is damaged; build it again.")

    def _environment(self) -> Any:
        if self._env is None:
            self._env = _open_read_only(self.folder)
        return self._env

    def __enter__(self) -> "Dataset":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. The next read opens it again."""
        if self._env is not None:
            self._env.close()
        self._env, self._databases = None, {}

    @property
    def classes(self) -> list[str]:
        """The names of the classes, in the order of their numbers."""
        return self.header.classes

    @property
    def sha256(self) -> str:
        """The digest: the same for the same pictures, names and settings."""
        return self.state.sha256

    def count(self, split: Split) -> int:
        """Return the number of pictures in a split."""
        return sum(getattr(self.state, split))

    def value(self, split: Split, index: int) -> tuple[int, bytes]:
        """Return a picture's class number and stored bytes. Raises IndexError, BadDataset."""
        if not 0 <= index < self.count(split):
            raise IndexError(index)
        with translate_lmdb_errors(self.folder):
            database = self._database(split)
            with self._environment().begin(db=database) as transaction:
                value = transaction.get(INDEX.pack(index))
        if value is None or len(value) < LABEL.size:
            raise self._damaged_error()
        label = LABEL.unpack_from(value)[0]
        if label >= len(self.classes):
            raise self._damaged_error()
        return label, value[LABEL.size :]

    def _database(self, name: str) -> Any:
        if name not in self._databases:
            self._databases[name] = self._environment().open_db(name.encode(), create=False)
        return self._databases[name]

    def picture(self, split: Split, index: int) -> tuple[int, Image.Image]:
        """Return a picture's class number and the picture. Raises IndexError, BadDataset."""
        label, data = self.value(split, index)
        size = (self.header.side_px, self.header.side_px)
        if self.header.store == "raw":
            if len(data) != 3 * size[0] * size[1]:
                raise self._damaged_error()
            return label, Image.frombytes("RGB", size, data)
        try:
            return label, codec.open_result(data, ("jpeg",), size)
        except errors.BadImage as error:
            raise self._damaged_error() from error

    def refusals(self, count: int) -> list[str]:
        """Return the first `count` refused files, each with the reason."""
        with translate_lmdb_errors(self.folder):
            database = self._database("refused")
            with (
                self._environment().begin(db=database) as transaction,
                transaction.cursor() as cursor,
            ):
                return [
                    value.decode(errors="replace")
                    for _, (_, value) in zip(range(count), cursor, strict=False)
                ]


def _read_metadata(environment: Any) -> tuple[Header, State] | None:
    """Return header and state; None if the file is empty. Opens no named database.

    Raises BadDataset if the file is not ours or is damaged.
    """
    path = environment.path()
    with environment.begin() as transaction:
        header, state = transaction.get(_HEADER), transaction.get(_STATE)
        if header is None and state is None and not transaction.stat()["entries"]:
            return None
    try:
        fields = json.loads(header)
        if fields["format"] == FORMAT and fields["version"] != VERSION:
            raise errors.BadDataset(
                f"{path} is a data set of version {fields['version']}, and this program reads "
                f"version {VERSION}; build it again."
            )
        found = Header.model_validate(fields), State.model_validate_json(state)
    except (
        ValueError,
        KeyError,
        TypeError,
        RecursionError,
    ) as error:  # pydantic raises ValueErrors
        raise errors.BadDataset(
            f"{path} is no data set that can be read; build it again."
        ) from error
    if not len(found[0].classes) == len(found[1].train) == len(found[1].validation):
        raise errors.BadDataset(f"{path} is damaged; build it again.")
    return found


def contact_sheet(
    dataset: Dataset, columns: int = 8, rows: int = 40, side_px: int = 96
) -> Image.Image:
    """Return one picture that shows the first pictures of each class, one class per row.

    Of more than `rows` classes it shows some, evenly spread.
    """
    every = -(-len(dataset.classes) // rows)
    shown = list(range(0, len(dataset.classes), every))
    sheet = Image.new("RGB", (columns * side_px, len(shown) * (side_px + 14)), "white")
    filled = dict.fromkeys(shown, 0)
    wanted = sum(min(columns, dataset.state.train[label]) for label in shown)
    for index in range(dataset.count("train")):
        if sum(filled.values()) == wanted:
            break
        label, _ = dataset.value("train", index)
        if filled.get(label, columns) < columns:
            _, picture = dataset.picture("train", index)
            position = (filled[label] * side_px, shown.index(label) * (side_px + 14) + 14)
            sheet.paste(
                picture.resize((side_px - 2, side_px - 2), Image.Resampling.LANCZOS), position
            )
            filled[label] += 1
    draw = ImageDraw.Draw(sheet)
    for row, label in enumerate(shown):
        draw.text((2, row * (side_px + 14) + 1), dataset.classes[label], fill="black")
    return sheet
