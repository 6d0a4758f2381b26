"""API keys: who may ask, and how much. A key's secret is shown once, when it is made; we keep its SHA-256 only.

32 random bytes need no slow hash: nobody guesses them. Knows no HTTP.

    <p>key:<hash>  hash  one key: the fields of Key
    <p>keys        hash  id -> the hash of the secret
"""

import hashlib
import re
import secrets
from base64 import b32encode
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from core import errors
from core.jobs.models import Priority
from core.redis_client import PREFIX, CircuitBreaker, connect

_SECRET = re.compile(r"impasto_[a-z2-7]{52}")
_NAME = re.compile(r"\S(?:.{0,98}\S)?")


class ApiKey(BaseModel):
    """What may be told of a key. Its id owns the jobs that are submitted with it."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    priority: Priority  # the highest that it may ask for
    created_at: datetime
    last_used_at: datetime | None = None  # to the minute
    revoked: bool = False


class ApiKeyStore:
    """All keys of a service. Every method raises StoreUnavailable when the server does not answer in time."""

    def __init__(self, redis_url: str, *, cooldown_seconds: float = 0) -> None:
        """rest_seconds: as of core.redis_client.CircuitBreaker."""
        self._redis, self._unavailable = connect(redis_url), CircuitBreaker(cooldown_seconds)

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()

    def create(self, name: str, priority: Priority = Priority.NORMAL) -> tuple[ApiKey, str]:
        """A new key and its secret, which nobody can tell again. Raises BadInput for an unfit name."""
        if not _NAME.fullmatch(name) or not name.isprintable():
            raise errors.BadInput("A key's name must be 1 to 100 printable characters.")
        secret = f"impasto_{_random(32)}"
        key = ApiKey(
            id=f"key_{_random(10)}", name=name, priority=priority, created_at=datetime.now(UTC)
        )
        fields = [
            text
            for pair in key.model_dump(mode="json", exclude_unset=True).items()
            for text in pair
        ]
        with self._unavailable, self._redis.pipeline() as pipe:
            pipe.hset(_at(secret), items=fields)
            pipe.hset(f"{PREFIX}keys", key.id, _hash(secret))
            pipe.execute()
        return key, secret

    def find(self, secret: str) -> ApiKey | None:
        """The key with this secret, unless it is revoked. Found by its hash: no time tells how much of it fits."""
        if not _SECRET.fullmatch(secret):
            return None
        with self._unavailable:
            fields: Any = self._redis.hgetall(_at(secret))
        key = _key(fields) if fields else None
        return None if key is None or key.revoked else key

    def mark_used(self, secret: str) -> None:
        """Note that the key was used now."""
        with self._unavailable:
            self._redis.hset(_at(secret), "last_used_at", datetime.now(UTC).isoformat())

    def list(self) -> list[ApiKey]:
        """Oldest first, revoked ones, too."""
        with self._unavailable:
            hashes: Any = self._redis.hvals(f"{PREFIX}keys")
            with self._redis.pipeline(transaction=False) as pipe:
                for digest in hashes:
                    pipe.hgetall(f"{PREFIX}key:{digest}")
                rows = pipe.execute()
        return sorted((_key(fields) for fields in rows if fields), key=lambda key: key.created_at)

    def revoke(self, key_id: str) -> None:
        """It is refused from now on; its jobs stay, and run. Safe to repeat. Raises BadInput for an unknown id."""
        with self._unavailable:
            digest: Any = self._redis.hget(f"{PREFIX}keys", key_id)
            if digest is None:
                raise errors.BadInput(
                    "There is no key with this id; `impasto keys list` tells them."
                )
            self._redis.hset(f"{PREFIX}key:{digest}", "revoked", 1)


def _random(count: int) -> str:
    return b32encode(secrets.token_bytes(count)).decode().rstrip("=").lower()


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _at(secret: str) -> str:
    return f"{PREFIX}key:{_hash(secret)}"


def _key(fields: dict[str, str]) -> ApiKey:
    return ApiKey.model_validate(fields)
