"""The way to Redis (or Valkey): how it is reached, and what it means that it does not answer. Knows no key, no job."""

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


def connection(redis_url: str) -> redis.Redis:
    """A client of the server that gives up after a second. Opens nothing yet."""
    return redis.Redis.from_url(
        redis_url,
        decode_responses=True,
        encoding_errors="replace",  # of a byte that the disk has damaged: the record is wrong, and no other is
        socket_timeout=1,
        socket_connect_timeout=1,
        health_check_interval=5,
        # One more try, for a connection that went stale in the pool. Every step may be sent twice unharmed.
        retry=Retry(ConstantBackoff(0.05), 1),
    )


class unavailable:
    """Any failure of the server or the way to it, as StoreUnavailable."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, _AWAY) or (isinstance(error, ResponseError) and str(error).startswith("MISCONF")):
            raise errors.StoreUnavailable() from error
