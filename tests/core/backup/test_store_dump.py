"""The copy of the store: consistent, complete, and refused if it is torn."""

import io
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from core import errors
from core.backup import store_dump
from core.jobs.store import JobStore
from core.jobs.store_monitor import IDENTITY, RESTORING
from core.redis_client import PREFIX

ACCOUNTS, MONEY = 1500, 100


@pytest.fixture
def client(valkey: Any) -> Iterator[Any]:
    with store_dump.connect(valkey.url) as connection:
        yield connection


@pytest.fixture
def dump(client: Any, tmp_path: Path) -> Callable[[], Path]:
    """Copy the store to a file."""

    def write() -> Path:
        path = tmp_path / "some.store"
        with path.open("wb") as file:
            store_dump.dump_store(client, file)
        return path

    return write


def _restore(client: Any, path: Path) -> int:
    store_dump.mark_unfinished(client, "some")
    return store_dump.restore_store(client, path, "new")


def _read(client: Any, key: bytes) -> Any:
    return {
        b"string": client.get,
        b"hash": client.hgetall,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"set": client.smembers,
        b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
    }[client.type(key)](key)


def _read_all(client: Any) -> dict[bytes, Any]:
    found = {}
    for key in client.scan_iter(f"{PREFIX}*"):
        if not key.startswith(store_dump._VOLATILE) and key != IDENTITY.encode():
            found[key] = (client.pexpiretime(key), _read(client, key))
    return found


@pytest.fixture
def transfers(valkey: Any) -> Iterator[None]:
    """Two clients that move money between accounts, of which some are busier."""
    over = threading.Event()
    with redis.Redis(port=valkey.port) as client, client.pipeline() as pipe:
        for number in range(ACCOUNTS):
            pipe.set(f"{PREFIX}account:{number}", MONEY)
        pipe.execute()

    def move(seed: int) -> None:
        rng = random.Random(seed)
        with redis.Redis(port=valkey.port) as client:
            while not over.wait(0.0001):  # without a pause nothing else would get the server
                first, second = (int(rng.random() ** 3 * ACCOUNTS) for _ in range(2))
                with client.pipeline() as pipe:
                    pipe.decrby(f"{PREFIX}account:{first}", 7)
                    pipe.incrby(f"{PREFIX}account:{second}", 7)
                    pipe.execute()

    threads = [threading.Thread(target=move, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    yield
    over.set()
    for thread in threads:
        thread.join()


def _sum(path: Path, own_valkey: Any) -> int:
    with store_dump.connect(own_valkey.url) as other:
        _restore(other, path)
        keys = [*other.scan_iter(f"{PREFIX}account:*")]
        assert len(keys) == ACCOUNTS
        return sum(map(int, other.mget(keys)))


@pytest.mark.usefixtures("transfers")
def test_a_copy_shows_one_moment_although_the_store_changes_all_the_time(
    dump: Any, own_valkey: Any
) -> None:
    assert [_sum(dump(), own_valkey) for _ in range(5)] == [ACCOUNTS * MONEY] * 5


def test_a_copy_has_every_kind_of_key_and_its_expiry(
    client: Any, dump: Any, store: JobStore, own_valkey: Any
) -> None:
    client.set(f"{PREFIX}text", b"\0\xff")
    client.set(f"{PREFIX}short", "x", px=60_000)
    client.hset(f"{PREFIX}hash", mapping={str(number): number for number in range(2000)})
    client.zadd(f"{PREFIX}queue", {"a": 0, "b": 1.5})
    client.rpush(f"{PREFIX}list", *range(500))
    client.sadd(f"{PREFIX}set", "a")
    client.set(f"{PREFIX}leader", "a process of this host")
    client.set("celery", "of the broker")
    before = _read_all(client)
    path = dump()
    with store_dump.connect(own_valkey.url) as other:
        other.set(f"{PREFIX}earlier", "x")
        other.set("celery", "its own")
        assert _restore(other, path) == len(before)

        assert _read_all(other) == before
        assert other.get(IDENTITY) == b"new"
        assert other.get("celery") == b"its own"
        assert not other.exists(f"{PREFIX}leader", RESTORING)


@pytest.mark.parametrize("cut", [0, 1, 2, 10, 40], ids=lambda cut: f"without-{cut}")
def test_a_torn_or_damaged_copy_is_refused(client: Any, dump: Any, cut: int) -> None:
    client.set(f"{PREFIX}text", "paint")
    path = dump()
    data = bytearray(path.read_bytes())
    if cut:
        data = data[:-cut]
    else:
        data[data.index(b"paint")] ^= 1
    path.write_bytes(data)

    with pytest.raises(errors.BadBackup, match=r"torn|damaged"):
        list(store_dump.read_dump(path))


@pytest.mark.parametrize("header", [b"", b"\n", b"x\n", b"[1]\n", b'{"format": 99}\n'], ids=repr)
def test_another_file_is_refused(header: bytes, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(header)
    with pytest.raises(errors.BadBackup):
        list(store_dump.read_dump(path))


def test_a_copy_of_another_server_is_refused_with_a_reason(
    client: Any, dump: Any, tmp_path: Path
) -> None:
    path = tmp_path / "foreign.store"
    with path.open("wb") as file:
        writer = store_dump._Writer(file, {"format": store_dump.FORMAT, "identity": ""})
        writer.add(f"{PREFIX}text".encode(), b"\0\1x\xff\xff12345678", -1)
        writer.end()

    with pytest.raises(errors.BadBackup, match="same product"):
        _restore(client, path)


def test_a_store_that_is_emptied_meanwhile_gives_no_copy(
    client: Any, valkey: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    client.set(f"{PREFIX}text", "paint")
    take = store_dump._Changes.take

    def flush_and_take(changes: Any) -> set[bytes]:
        with redis.Redis(port=valkey.port) as other:
            other.flushall()
        return take(changes)

    monkeypatch.setattr(store_dump._Changes, "take", flush_and_take)
    with pytest.raises(errors.Unavailable, match="emptied"):
        store_dump.dump_store(client, io.BytesIO())
