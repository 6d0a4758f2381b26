"""The way to Redis (or Valkey): how it is reached, and what it means that it does not answer. Knows no key, no job."""

import time

import redis
from redis.backoff import ConstantBackoff
from redis.exceptions import BusyLoadingError, OutOfMemoryError, ReadOnlyError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from core import errors

PREFIX = "impasto:"

# Any other answer of the server is a mistake of ours, and must not look like an outage. MISCONF: its disk is full.
_AWAY = (RedisConnectionError, RedisTimeoutError, BusyLoadingError, OutOfMemoryError, ReadOnlyError)


TIMEOUT_SECONDS = 1.5  # with a server that says nothing; whoever asks us waits for two
CONNECT_TIMEOUT_SECONDS = 1.0
# One more try at once, for a connection that went stale in the pool. Every step may be sent twice unharmed. Not where
# it says nothing: the client repeats the greeting as well, and each try of each takes as long as the first.
RETRIED_ERRORS = (RedisConnectionError,)


def connect(redis_url: str) -> redis.Redis:
    """A client of the server that gives up in time. Opens nothing yet."""
    return redis.Redis.from_url(
        redis_url,
        decode_responses=True,
        encoding_errors="replace",  # of a byte that the disk has damaged: the record is wrong, and no other is
        socket_timeout=TIMEOUT_SECONDS,
        socket_connect_timeout=CONNECT_TIMEOUT_SECONDS,
        health_check_interval=5,
        retry=Retry(ConstantBackoff(0.05), 1, supported_errors=RETRIED_ERRORS),
    )


class CircuitBreaker:
    """Any failure of the server or the way to it, as StoreUnavailable. For any number of threads.

    And a circuit breaker, if asked for one: after a call that nobody answered, one in `rest_seconds` is made, and the
    others are refused at once, until one is answered. A crowd does not wait where one has waited in vain, nor hold
    every thread of the process.
    """

    def __init__(self, cooldown_seconds: float = 0) -> None:
        """rest_seconds: 0 makes every call."""
        self._rest_seconds = cooldown_seconds
        self._next_at: float | None = None  # while it says nothing

    def __enter__(self) -> None:
        if self._rest_seconds and (next_at := self._next_at) is not None:
            if (now := time.monotonic()) < next_at:
                raise errors.StoreUnavailable()
            self._next_at = now + self._rest_seconds

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        silent = isinstance(error, RedisTimeoutError)
        self._next_at = time.monotonic() + self._rest_seconds if silent else None
        if isinstance(error, _AWAY) or (
            isinstance(error, ResponseError) and str(error).startswith("MISCONF")
        ):
            raise errors.StoreUnavailable() from error
