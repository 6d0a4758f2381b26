"""Copies all keys of the job store to a file, as they were at one moment, and back.

DUMP and RESTORE work on every Redis and Valkey, also where a provider forbids BGSAVE, SYNC and
access to files. The copy is consistent although it takes many commands and the service goes on: the
server reports each key that changes (client tracking), such keys are copied again, and the last of
them by one script.

A file has a line of JSON, then records: the lengths of key and value and the time when the key
expires (ms; -1: never), key, value; an empty value says that the key is gone. A later record of a
key replaces earlier ones. The last record has no key; its value is the SHA-256 of all before.
"""

import hashlib
import json
import secrets
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import redis
from redis.backoff import NoBackoff
from redis.exceptions import ResponseError
from redis.retry import Retry

from core import errors, redis_client
from core.jobs.store_monitor import IDENTITY, RESTORING
from core.redis_client import PREFIX, CircuitBreaker

FORMAT = 1
TIMEOUT_SECONDS = 60.0  # of one command; the largest key takes longest
BATCH_KEYS = 500
BATCH_BYTES = 4_000_000
MAX_CHANGED = 1000  # keys that have changed, which one script may copy at once
BUSY = (250, 500, 1000, 2000)  # others that have changed shortly before, beside them
MAX_ROUNDS, MAX_TRIES = 20, 2000

_RECORD = struct.Struct("<IIq")
_INVALIDATE = b"__redis__:invalidate"
# What describes the processes of one host, or one moment.
_VOLATILE = tuple(
    f"{PREFIX}{name}".encode()
    for name in (
        *("leader", "deletions", "restoring", "probe", "rates", "signal:"),
        *("workers", "worker_info", "worker_seen", "estimate_re"),
    )
)
# From these a process takes work: they are restored last, all at once, with the identity.
_LAST = {
    f"{PREFIX}{name}".encode()
    for name in ("queue", "leases", "deadlines", "expiry", "records", "outbox", "orphans")
}


# One command for many keys: a reply of its own for each takes redis-py three times as long.
_READ = """
local found = {}
for i, key in ipairs(KEYS) do
  found[2 * i - 1], found[2 * i] = redis.call('DUMP', key), redis.call('PEXPIRETIME', key)
end
return found
"""
_READ_AT_ONCE = f"""
local function read() {_READ} end
return {{read(), redis.call('HKEYS', ARGV[1]), redis.call('ZRANGE', ARGV[2], 0, -1)}}
"""


class StoreState(NamedTuple):
    """The moment that a copy shows."""

    used: set[str]  # digests of the blobs that jobs use
    reserved: set[str]  # digests of uploads, and of blobs that may not be written yet
    keys: int


@contextmanager
def connect(redis_url: str) -> Iterator[Any]:
    """Yield a client with one connection, which it never replaces. Raises StoreUnavailable."""
    with (
        CircuitBreaker(),
        redis_client.connect(
            redis_url,
            protocol=2,
            decode_responses=False,
            socket_timeout=TIMEOUT_SECONDS,
            socket_connect_timeout=5,
            health_check_interval=0,
            retry=Retry(NoBackoff(), 0),
        ) as pooled,
        redis.Redis(
            connection_pool=pooled.connection_pool, single_connection_client=True
        ) as client,
    ):
        yield client


class _Changes:
    """The keys that change, as the server reports them."""

    def __init__(self, client: Any) -> None:
        self._client, self._marker = client, f"impasto-backup-{secrets.token_hex(8)}".encode()
        self._messages: Any = client.pubsub()
        self._publisher = redis.Redis(connection_pool=client.connection_pool)

    def __enter__(self) -> "_Changes":
        self._messages.execute_command("CLIENT", "ID")
        own_id = self._messages.parse_response()
        self._messages.subscribe(_INVALIDATE, self._marker)
        self._client.execute_command(
            *("CLIENT", "TRACKING", "ON", "REDIRECT", own_id, "BCAST", "PREFIX", PREFIX)
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._messages.close()
        with suppress(redis.ConnectionError):
            self._client.execute_command("CLIENT", "TRACKING", "OFF")

    def take(self) -> set[bytes]:
        """Return all keys that have changed until now, since the last mark."""
        self.mark()
        return self.take_marked()

    def mark(self) -> None:
        """Mark this moment: the server sends the mark after the names of what changed before.

        Not if another client's command is in the same round of the server's event loop. So what
        matters is a reply of the server, received before this call.
        """
        self._publisher.publish(self._marker, b"")

    def take_marked(self) -> set[bytes]:
        """Return all keys that have changed until the mark, since the one before."""
        changed: set[bytes] = set()
        while True:
            message = self._messages.get_message(timeout=TIMEOUT_SECONDS)
            if message is None:
                raise errors.StoreUnavailable()
            if message["type"] != "message":
                continue
            if message["channel"] == self._marker:
                return changed
            if message["data"] is None:
                raise errors.Unavailable("The store was emptied during the backup.")
            changed.update(message["data"])


class _Writer:
    """Appends records to a file, and their digest at the end."""

    def __init__(self, file: BinaryIO, header: dict[str, Any]) -> None:
        self._file, self._hash = file, hashlib.sha256()
        self._write(json.dumps(header).encode() + b"\n")

    def _write(self, data: bytes) -> None:
        self._hash.update(data)
        self._file.write(data)

    def add(self, key: bytes, value: bytes | None, expires_ms: int) -> None:
        value = value or b""
        self._write(_RECORD.pack(len(key), len(value), expires_ms) + key + value)

    def end(self) -> None:
        digest = self._hash.digest()
        self._file.write(_RECORD.pack(0, len(digest), -1) + digest)


def dump_store(client: Any, file: BinaryIO) -> StoreState:
    """Write a copy of the store to the file. Raises Unavailable.

    The caller must hold the lock on deletions, or blobs of the copy may disappear.
    """
    header = {"format": FORMAT, "server": _describe_server(client)}
    writer = _Writer(file, {**header, "identity": find_identity(client)})
    with _Changes(client) as changes:
        count = 0
        for batch in _scan(client):
            kept = _without_volatile(batch)
            count += len(kept)
            _copy(client, kept, writer)
        changed = changes.take()
        for _ in range(MAX_ROUNDS):
            if len(changed) <= MAX_CHANGED:
                break
            _copy(client, _without_volatile(changed), writer)
            changed = changes.take()
        # Keys that are likely to change again. Many make it likely that no other one changes; few
        # make the script short. Which is better depends on the load, so the limit varies.
        busy: set[bytes] = set()
        limits = cycle(BUSY)
        limit = next(limits)
        for _ in range(MAX_TRIES):
            # No key outside `wanted` may change between this and the script, which follows at once.
            changed |= changes.take()
            wanted = busy.union(_without_volatile(changed))
            records, used, reserved = _read_at_once(client, [*wanted], changes.mark)
            changed = changes.take_marked()
            for record in records:
                writer.add(*record)
            if wanted.issuperset(_without_volatile(changed)):
                break
            busy = wanted
            if len(busy) > limit:
                busy, limit = set(), next(limits)
        else:
            raise errors.Unavailable("The store changes too quickly for a backup; try again.")
    writer.end()
    decode = {digest.decode("ascii", "replace") for digest in used}
    return StoreState(
        decode,
        {digest.decode("ascii", "replace") for digest in reserved} - decode,
        count,
    )


def _describe_server(client: Any) -> str:
    info = client.info("server")
    name = info.get("server_name", "redis")
    return f"{name} {info.get(f'{name}_version', info.get('redis_version', ''))}"


def _without_volatile(keys: Iterable[bytes]) -> list[bytes]:
    return [key for key in keys if not key.startswith(_VOLATILE)]


def _scan(client: Any) -> Iterator[list[bytes]]:
    """Yield the keys of the store in batches; a key may appear twice."""
    keys = client.scan_iter(f"{PREFIX}*", count=BATCH_KEYS)
    while batch := [*islice(keys, BATCH_KEYS)]:
        yield batch


def _copy(client: Any, keys: list[bytes], writer: _Writer) -> None:
    """Copy keys, each batch at its own moment."""
    for start in range(0, len(keys), BATCH_KEYS):
        batch = keys[start : start + BATCH_KEYS]
        for record in _split_answers(batch, client.eval(_READ, len(batch), *batch)):
            writer.add(*record)


def _read_at_once(
    client: Any, keys: list[bytes], on_reply: Callable[[], None]
) -> tuple[list[tuple[bytes, bytes | None, int]], list[bytes], list[bytes]]:
    """Return keys with values and times, and the digests of used and of reserved blobs.

    `on_reply` is called as soon as the reply begins to arrive; a large one takes longer.
    """
    connection = client.connection
    connection.send_command(
        "EVAL", _READ_AT_ONCE, len(keys), *keys, f"{PREFIX}refs", f"{PREFIX}orphans"
    )
    if not connection.can_read(TIMEOUT_SECONDS):
        raise errors.StoreUnavailable()
    on_reply()
    answers, used, reserved = client.parse_response(connection, "EVAL")
    return _split_answers(keys, answers), used, reserved


def _split_answers(keys: list[bytes], answers: list[Any]) -> list[tuple[bytes, bytes | None, int]]:
    return list(zip(keys, answers[::2], answers[1::2], strict=True))


# ---------------------------------------------------------------------- restore


def read_dump(path: Path) -> Iterator[tuple[bytes, bytes, int]]:
    """Yield key, value and time of each record. Raises BadBackup for a torn or damaged file."""
    with path.open("rb") as file:
        header = file.readline()
        digest = hashlib.sha256(header)
        try:
            version = json.loads(header)["format"]
        except (ValueError, KeyError, TypeError):
            raise errors.BadBackup(f"{path} is no copy of a store.") from None
        if version != FORMAT:
            raise errors.BadBackup(f"{path} was written by another version of Impasto.")
        while True:
            head = file.read(_RECORD.size)
            if len(head) < _RECORD.size:
                raise errors.BadBackup(f"{path} is torn.")
            key_size, value_size, expires_ms = _RECORD.unpack(head)
            body = file.read(key_size + value_size)
            if not key_size:
                if body != digest.digest() or file.read(1):
                    raise errors.BadBackup(f"{path} is damaged.")
                return
            digest.update(head)
            digest.update(body)
            yield body[:key_size], body[key_size:], expires_ms


def read_identity(path: Path) -> str:
    """Return the identity of the store that `read_dump` has accepted."""
    with path.open("rb") as file:
        return str(json.loads(file.readline())["identity"])


def find_identity(client: Any) -> str:
    """Return the identity of the store; empty if it has none yet."""
    return bytes(client.get(IDENTITY) or b"").decode("ascii", "replace")


def has_jobs(client: Any) -> bool:
    """Return whether the store has keys beside those of a running service without jobs."""
    empty = (*_VOLATILE, IDENTITY.encode())
    return any(not key.startswith(empty) for key in client.scan_iter(f"{PREFIX}*", count=1000))


def mark_unfinished(client: Any, name: str) -> None:
    """Begin a restore. Until it ends no job is submitted, claimed or expired."""
    client.set(RESTORING, name)


def is_unfinished(client: Any) -> bool:
    """Return whether a restore was interrupted."""
    return bool(client.exists(RESTORING))


def restore_store(client: Any, path: Path, identity: str) -> int:
    """Replace all keys of the store by those of the file, which `read_dump` has accepted.

    Call `mark_unfinished` before. Returns the number of keys. Raises BadBackup, Unavailable.
    """
    _delete_all(client)
    last: dict[bytes, tuple[bytes, int]] = {}
    count = 0
    for batch in _split(read_dump(path)):
        now = [row for row in batch if row[0] not in _LAST]
        last |= {key: (value, at) for key, value, at in batch if key in _LAST}
        count += len({key for key, value, _ in now if value})
        with client.pipeline(transaction=False) as pipe:
            for key, value, expires_ms in now:
                _queue_write(pipe, key, value, expires_ms)
            _execute(pipe)
    with client.pipeline(transaction=True) as pipe:
        for key, (value, expires_ms) in last.items():
            _queue_write(pipe, key, value, expires_ms)
        pipe.set(IDENTITY, identity)
        pipe.delete(RESTORING)
        _execute(pipe)
    return count + len(last)


def _delete_all(client: Any) -> None:
    keep = {RESTORING.encode()}
    for batch in _scan(client):
        if wanted := [key for key in batch if key not in keep]:
            client.unlink(*wanted)


def _split(
    records: Iterator[tuple[bytes, bytes, int]],
) -> Iterator[list[tuple[bytes, bytes, int]]]:
    batch: list[tuple[bytes, bytes, int]] = []
    size = 0
    for record in chain(records, [None]):
        if record is None or size > BATCH_BYTES or len(batch) >= BATCH_KEYS:
            yield batch
            batch, size = [], 0
        if record is not None:
            batch.append(record)
            size += len(record[1])


def _queue_write(pipe: Any, key: bytes, value: bytes, expires_ms: int) -> None:
    if value:
        pipe.restore(key, max(0, expires_ms), value, replace=True, absttl=expires_ms > 0)
    else:
        pipe.unlink(key)


def _execute(pipe: Any) -> None:
    try:
        pipe.execute()
    except ResponseError as error:
        if "payload version" not in str(error):
            raise
        raise errors.BadBackup(
            "This server cannot read the copy: restore it to the same product (Redis or Valkey), "
            "in the same version or a newer one."
        ) from error
