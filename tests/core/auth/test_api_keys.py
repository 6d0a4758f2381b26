"""API keys in a real Valkey: shown once, stored as hashes, refused when revoked."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from core import errors
from core.auth.api_keys import ApiKeyStore
from core.jobs.models import Priority


@pytest.fixture
def keys(valkey: Any) -> Iterator[ApiKeyStore]:
    store = ApiKeyStore(valkey.url)
    yield store
    store.close()


def test_a_key_is_found_only_by_its_secret(keys: ApiKeyStore) -> None:
    key, secret = keys.create("Ada's laptop", Priority.HIGH)
    other, _ = keys.create("CI")

    assert keys.find(secret) == key
    assert (key.name, key.priority, other.priority) == (
        "Ada's laptop",
        Priority.HIGH,
        Priority.NORMAL,
    )
    assert keys.list() == [key, other]
    wrong = secret[:-2] + ("aa" if not secret.endswith("aa") else "bb")
    digest = hashlib.sha256(secret.encode()).hexdigest()
    for text in (
        "",
        wrong,
        secret.upper(),
        secret + "\n",
        key.id,
        digest,
        "impasto_" + "a" * 52,
        "*",
        "ключ",
    ):
        assert keys.find(text) is None, text


def test_the_secret_is_not_in_the_store(keys: ApiKeyStore, own_valkey: Any, tmp_path: Path) -> None:
    """Neither in its memory nor in its files: a backup contains no usable key."""
    store = ApiKeyStore(own_valkey.url)
    _, secret = store.create("a")
    store.mark_used(secret)
    store.close()

    with redis.Redis.from_url(own_valkey.url, decode_responses=True) as client:
        values = [str(client.hgetall(name)) + str(name) for name in client.keys("*")]
    files = [path.read_bytes() for path in (tmp_path / "valkey").rglob("*") if path.is_file()]

    assert values
    assert any(b"HSET" in data.upper() for data in files)
    assert not [text for text in values if secret in text]
    assert not [data for data in files if secret.encode() in data]
    assert len(secret) - len("impasto_") == 52  # 32 bytes


def test_a_revoked_key_is_refused_and_still_listed(keys: ApiKeyStore) -> None:
    key, secret = keys.create("a")
    keys.mark_used(secret)
    keys.revoke(key.id)
    keys.revoke(key.id)

    assert keys.find(secret) is None
    (listed,) = keys.list()
    assert (listed.revoked, listed.last_used_at is not None) == (True, True)
    with pytest.raises(errors.BadInput, match="impasto keys list"):
        keys.revoke("key_x")


@pytest.mark.parametrize("name", ["", " a", "a" * 101, "a\nb", "a\x1b[31m", "a\u202eb"])
def test_a_name_that_a_terminal_could_misinterpret_is_refused(keys: ApiKeyStore, name: str) -> None:
    with pytest.raises(errors.BadInput):
        keys.create(name)
    assert keys.list() == []


def test_every_method_raises_when_the_store_is_unavailable(tmp_path: Path) -> None:
    keys = ApiKeyStore("redis://127.0.0.1:1/0")
    for step in (
        lambda: keys.find("impasto_" + "a" * 52),
        keys.list,
        lambda: keys.create("a"),
        lambda: keys.revoke("a"),
    ):
        with pytest.raises(errors.StoreUnavailable):
            step()
