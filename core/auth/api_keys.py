"""Creates, finds, lists and revokes API keys.

A key's secret is shown once, when it is created; the store has only its SHA-256. A secret of 32
random bytes cannot be guessed, so it needs no slow hash. This module does not depend on HTTP.

    <p>key:<hash>  hash  one key: the fields of ApiKey
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
from core.jobs import audit
from core.jobs.models import LABEL_PATTERN, Priority
from core.redis_client import PREFIX, CircuitBreaker, connect

_SECRET = re.compile(r"impasto_[a-z2-7]{52}")
_NAME = re.compile(r"\S(?:.{0,98}\S)?")


class ApiKey(BaseModel):
    """The public fields of a key. Its id owns the jobs that are submitted with it."""

    model_config = ConfigDict(frozen=True)

    id: str
    name: str
    priority: Priority  # the highest that its jobs may have
    admin: bool = False  # whether it may operate the service: /v1/operator
    pool: str | None = None  # only workers with this label run its jobs
    created_at: datetime
    last_used_at: datetime | None = None  # with the precision of a minute
    revoked: bool = False


class ApiKeyStore:
    """All keys of a service.

    Every method raises StoreUnavailable when the server does not answer in time.
    """

    def __init__(self, redis_url: str, *, cooldown_seconds: float = 0) -> None:
        """cooldown_seconds: see core.redis_client.CircuitBreaker."""
        self._redis, self._circuit_breaker = connect(redis_url), CircuitBreaker(cooldown_seconds)

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def create(
        self,
        name: str,
        priority: Priority = Priority.NORMAL,
        *,
        admin: bool = False,
        pool: str | None = None,
    ) -> tuple[ApiKey, str]:
        """Create a key; return it with its secret, which cannot be read again.

        Raises BadInput for an invalid name or pool.
        """
        if not _NAME.fullmatch(name) or not name.isprintable():
            raise errors.BadInput("A key's name must be 1 to 100 printable characters.")
        if pool is not None and not re.fullmatch(LABEL_PATTERN, pool):
            raise errors.BadInput("A pool is the label of workers, such as team=a.")
        secret = f"impasto_{_random_text(32)}"
        key = ApiKey(
            id=f"key_{_random_text(10)}",
            name=name,
            priority=priority,
            admin=admin,
            pool=pool,
            created_at=datetime.now(UTC),
        )
        fields: Any = key.model_dump(mode="json", exclude_none=True, exclude={"revoked"})
        fields["admin"] = int(admin)
        with self._circuit_breaker, self._redis.pipeline() as pipe:
            pipe.hset(_redis_key(secret), mapping=fields)
            pipe.hset(f"{PREFIX}keys", key.id, _hash_secret(secret))
            audit.append(pipe, "key.create", key.id, name=name, priority=priority, admin=admin)
            pipe.execute()
        return key, secret

    def find(self, secret: str) -> ApiKey | None:
        """Find the key with this secret; None if it does not exist or is revoked.

        The lookup is by hash, so its duration does not reveal how much of a guess is right.
        """
        if not _SECRET.fullmatch(secret):
            return None
        with self._circuit_breaker:
            fields: Any = self._redis.hgetall(_redis_key(secret))
        key = _parse_key(fields) if fields else None
        return None if key is None or key.revoked else key

    def mark_used(self, secret: str) -> None:
        """Record that the key was used now."""
        with self._circuit_breaker:
            self._redis.hset(_redis_key(secret), "last_used_at", datetime.now(UTC).isoformat())

    def list(self) -> list[ApiKey]:
        """List all keys, also revoked ones, the oldest first."""
        with self._circuit_breaker:
            hashes: Any = self._redis.hvals(f"{PREFIX}keys")
            with self._redis.pipeline(transaction=False) as pipe:
                for digest in hashes:
                    pipe.hgetall(f"{PREFIX}key:{digest}")
                rows = pipe.execute()
        return sorted(
            (_parse_key(fields) for fields in rows if fields), key=lambda key: key.created_at
        )

    def revoke(self, key_id: str) -> None:
        """Refuse the key from now on. Its jobs stay and run. Safe to repeat.

        Raises BadInput for an unknown id.
        """
        with self._circuit_breaker:
            digest: Any = self._redis.hget(f"{PREFIX}keys", key_id)
            if digest is None:
                raise errors.BadInput(
                    "There is no key with this id; `impasto keys list` shows all."
                )
            with self._redis.pipeline() as pipe:
                pipe.hset(f"{PREFIX}key:{digest}", "revoked", 1)
                audit.append(pipe, "key.revoke", key_id)
                pipe.execute()

    def record_denial(self, method: str) -> None:
        """Add to the audit log that a key which is no operator's tried to operate the service."""
        with self._circuit_breaker, self._redis.pipeline() as pipe:
            audit.append(pipe, "operator.request", outcome="denied", method=method)
            pipe.execute()


def _random_text(byte_count: int) -> str:
    return b32encode(secrets.token_bytes(byte_count)).decode().rstrip("=").lower()


def _hash_secret(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _redis_key(secret: str) -> str:
    return f"{PREFIX}key:{_hash_secret(secret)}"


def _parse_key(fields: dict[str, str]) -> ApiKey:
    return ApiKey.model_validate(fields)
