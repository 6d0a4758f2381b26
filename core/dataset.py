"""A data set: pictures of one size in classes, for training and for validation, in one LMDB file. Read by index.

Keys and values: `header` (what it is) and `state` (how far it is) in JSON; the databases `train` and `validation` with
an index of 8 bytes for a class's number of 2 bytes and the picture; `files`, the hash of a path for class and path;
`refused`, an index for a sentence. Pictures lie in the order of their paths' hashes: neighbors have nothing to do with
each other, and the first hundred are a fair sample. Knows no folder of files (core/harvest.py) and no tensors.
"""

import errno
import hashlib
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import lmdb
from PIL import Image, ImageDraw
from pydantic import BaseModel, ConfigDict, ValidationError

from core import errors, images
from core.decoders import Resize

FORMAT, VERSION = "impasto dataset", 1
Split = Literal["train", "validation"]
SPLITS: tuple[Split, ...] = get_args(Split)
Store = Literal["jpeg", "raw"]  # JPEG at quality 95, without subsampling; or the pixels as they are
STORES: tuple[Store, ...] = get_args(Store)
Phase = Literal["listing", "reading", "complete"]

MAX_CLASSES = 65_535
INDEX, LABEL = struct.Struct(">Q"), struct.Struct(">H")
_HEADER, _STATE = b"header", b"state"
_DATABASES = (b"train", b"validation", b"files", b"refused")
_FIRST_MAP_BYTES = 64 * 2**20
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}  # LMDB calls a write that fell short EIO


class Header(BaseModel):
    """What a data set is, fixed from its first moment."""

    model_config = ConfigDict(frozen=True)

    format: str = FORMAT
    version: int = VERSION
    classes: list[str]
    side_px: int
    resize: Resize
    store: Store
    validation: float


class State(BaseModel):
    """How far a data set is, and of what bytes it consists."""

    phase: Phase = "listing"
    files: int = 0
    position: str = ""  # key in `files` of the last file that was taken or refused, in hex
    train: list[int]  # pictures of each class
    validation: list[int]
    refused: int = 0
    sha256: str  # over header and pictures, each over what came before

    @property
    def taken(self) -> int:
        """Pictures in both splits."""
        return sum(self.train) + sum(self.validation)


def digest_of(before: str, split: Split, value: bytes) -> str:
    """A data set's digest after one more picture."""
    return hashlib.sha256(before.encode() + split.encode() + hashlib.sha256(value).digest()).hexdigest()


class Book:
    """The LMDB file of a data set, open to be written; the map grows as it fills. A context manager."""

    def __init__(self, folder: Path, map_bytes: int = _FIRST_MAP_BYTES) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with room(folder):
            # metasync: a power cut may undo the last commit, never more.
            self._env = lmdb.open(str(folder), map_size=map_bytes, metasync=False, max_dbs=len(_DATABASES))
            self._open_databases()

    def _open_databases(self) -> None:
        self._databases = {name: self._env.open_db(name) for name in _DATABASES}

    def __enter__(self) -> "Book":
        return self

    def __exit__(self, *_: object) -> None:
        self._env.close()

    def read(self) -> tuple[Header, State] | None:
        """None where nothing has been written yet. Raises BadDataset."""
        return _front_matter(self._env)

    def write(self, entries: list[tuple[bytes, bytes, bytes]], state: State, header: Header | None = None) -> None:
        """Entries (database, key, value) and the state, all or nothing, on disk when it returns. Raises StorageFull."""
        while True:
            try:
                with self._env.begin(write=True) as transaction:
                    for name, key, value in entries:
                        transaction.put(key, value, db=self._databases[name])
                    if header is not None:
                        transaction.put(_HEADER, header.model_dump_json().encode())
                    transaction.put(_STATE, state.model_dump_json().encode())
            except lmdb.MapFullError:
                self._env.set_mapsize(2 * self._env.info()["map_size"])
            else:
                return

    def count(self, name: bytes) -> int:
        """Entries of a database."""
        with self._env.begin() as transaction:
            return int(transaction.stat(self._databases[name])["entries"])

    def after(self, name: bytes, key: bytes, count: int) -> list[tuple[bytes, bytes]]:
        """The next entries of a database. No transaction stays open."""
        found: list[tuple[bytes, bytes]] = []
        with self._env.begin(db=self._databases[name]) as transaction, transaction.cursor() as cursor:
            there = cursor.set_range(key) and (cursor.key() != key or cursor.next())
            while there and len(found) < count:
                found.append(cursor.item())
                there = cursor.next()
        return found


@contextmanager
def room(folder: Path) -> Iterator[None]:
    """What LMDB raises, as our errors: StorageFull, BadDataset."""
    try:
        yield
    except lmdb.Error as error:
        if isinstance(error, lmdb.DiskError) or error.code in _NO_ROOM:
            raise errors.StorageFull(
                f"There is no room for {folder}; make some and give the command again: it goes on where it was."
            ) from error
        raise errors.BadDataset(f"{folder} is no data set, or it is damaged; build it again.") from error


class Dataset:
    """A complete data set, to be read by as many processes as like. A context manager.

    A process that forks closes it before: a child must not use what its parent has open.
    """

    def __init__(self, folder: Path) -> None:
        """Raises BadDataset where it is not one, of another version, cut short or not complete."""
        self.folder = folder
        file = folder / "data.mdb"
        if not file.is_file():
            raise errors.BadDataset(f"There is no data set in {folder}; `impasto dataset build` makes one.")
        self._env: Any = None
        self._databases: dict[str, Any] = {}
        with room(folder):
            front = _front_matter(self._opened())
            info = self._opened().info()
            whole = file.stat().st_size >= (info["last_pgno"] + 1) * self._opened().stat()["psize"]
        if front is None:
            raise errors.BadDataset(f"{folder} is no data set.")
        self.header, self.state = front
        if self.state.phase != "complete":
            raise errors.BadDataset(f"{folder} is not complete; give the command that began it again.")
        if not whole:  # to read on would kill the process: what a map promises, the file must hold
            raise errors.BadDataset(f"{folder} has been cut short; build it again.")
        self.bytes = file.stat().st_size

    def _opened(self) -> Any:
        if self._env is None:
            self._env = lmdb.open(
                str(self.folder), readonly=True, lock=False, readahead=False, max_dbs=len(_DATABASES), create=False
            )
        return self._env

    def __enter__(self) -> "Dataset":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """It opens itself again when it is read."""
        if self._env is not None:
            self._env.close()
        self._env, self._databases = None, {}

    @property
    def classes(self) -> list[str]:
        """Their names, in the order of their numbers."""
        return self.header.classes

    @property
    def sha256(self) -> str:
        """The same for the same pictures, names and settings."""
        return self.state.sha256

    def count(self, split: Split) -> int:
        """Pictures in a split."""
        return sum(getattr(self.state, split))

    def value(self, split: Split, index: int) -> tuple[int, bytes]:
        """A picture's class and stored bytes. Raises IndexError, BadDataset."""
        return self._entry(split, INDEX.pack(index))

    def _entry(self, split: Split, key: bytes) -> tuple[int, bytes]:
        with room(self.folder):
            database = self._database(split)
            with self._opened().begin(db=database) as transaction:
                value = transaction.get(key)
        if value is None:
            raise IndexError(key)
        return LABEL.unpack_from(value)[0], value[LABEL.size :]

    def _database(self, name: str) -> Any:
        if name not in self._databases:
            self._databases[name] = self._opened().open_db(name.encode(), create=False)
        return self._databases[name]

    def picture(self, split: Split, index: int) -> tuple[int, Image.Image]:
        """A picture's class, and the picture. Raises IndexError, BadDataset."""
        label, data = self.value(split, index)
        if self.header.store == "raw":
            return label, Image.frombytes("RGB", (self.header.side_px, self.header.side_px), data)
        return label, images.reopened(data)

    def refusals(self, count: int) -> list[str]:
        """The first files that were not taken, and why."""
        with room(self.folder):
            database = self._database("refused")
            with self._opened().begin(db=database) as transaction, transaction.cursor() as cursor:
                return [value.decode() for _, (_, value) in zip(range(count), cursor, strict=False)]


def _front_matter(environment: Any) -> tuple[Header, State] | None:
    with environment.begin() as transaction:
        header, state = transaction.get(_HEADER), transaction.get(_STATE)
    if header is None or state is None:
        return None
    path = environment.path()
    try:
        fields = json.loads(header)
        if fields["format"] == FORMAT and fields["version"] != VERSION:
            raise errors.BadDataset(
                f"{path} is a data set of version {fields['version']}, and this program reads version {VERSION}; "
                "build it again."
            )
        return Header.model_validate(fields), State.model_validate_json(state)
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise errors.BadDataset(f"{path} is no data set that can be read; build it again.") from error


# ---------------------------------------------------------------------- to look at


def contact_sheet(dataset: Dataset, columns: int = 8, rows: int = 40, side_px: int = 96) -> Image.Image:
    """The first pictures of each class, a class a row; of many classes some, evenly spread."""
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
            place = (filled[label] * side_px, shown.index(label) * (side_px + 14) + 14)
            sheet.paste(picture.resize((side_px - 2, side_px - 2), Image.Resampling.LANCZOS), place)
            filled[label] += 1
    draw = ImageDraw.Draw(sheet)
    for row, label in enumerate(shown):
        draw.text((2, row * (side_px + 14) + 1), dataset.classes[label], fill="black")
    return sheet
