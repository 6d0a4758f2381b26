"""The Redis (or Valkey) client: timeouts, and the errors that mean an outage. Knows no jobs."""

import time

import redis
from redis.backoff import ConstantBackoff
from redis.exceptions import BusyLoadingError, OutOfMemoryError, ReadOnlyError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from core import errors

PREFIX = "impasto:"

# Any other error is a bug of this program and must not look like an outage. Beside these, MISCONF
# means that the server's disk is full.
_OUTAGE_ERRORS = (
    RedisConnectionError,
    RedisTimeoutError,
    BusyLoadingError,
    OutOfMemoryError,
    ReadOnlyError,
)

TIMEOUT_SECONDS = 1.5  # for a server that does not answer; clients of the API wait for 2 s
CONNECT_TIMEOUT_SECONDS = 1.0
# One immediate retry, for a pooled connection that went stale. Every command is safe to send twice.
# A timeout is not retried: redis-py repeats the handshake as well, and each try of each takes the
# whole timeout again.
RETRIED_ERRORS = (RedisConnectionError,)


def connect(redis_url: str) -> redis.Redis:
    """Return a client whose calls time out. Opens no connection yet."""
    return redis.Redis.from_url(
        redis_url,
        decode_responses=True,
        encoding_errors="replace",  # a byte that the disk has damaged spoils its own record only
        socket_timeout=TIMEOUT_SECONDS,
        socket_connect_timeout=CONNECT_TIMEOUT_SECONDS,
        health_check_interval=5,
        retry=Retry(ConstantBackoff(0.05), 1, supported_errors=RETRIED_ERRORS),
    )


class CircuitBreaker:
    """A context manager that raises StoreUnavailable for any outage. Thread-safe.

    With a cooldown it also breaks the circuit: after a call that timed out, it lets one call per
    cooldown through and fails the others at once, until one is answered. So a crowd of callers
    does not wait for a server that is known to be silent, and does not occupy every thread.
    """

    def __init__(self, cooldown_seconds: float = 0) -> None:
        """cooldown_seconds: 0 lets every call through."""
        self._cooldown_seconds = cooldown_seconds
        self._next_call_at: float | None = None  # set while the server does not answer

    def __enter__(self) -> None:
        if self._cooldown_seconds and (next_call_at := self._next_call_at) is not None:
            if (now := time.monotonic()) < next_call_at:
                raise errors.StoreUnavailable()
            self._next_call_at = now + self._cooldown_seconds

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        # Only a timeout opens the circuit. A refused connection costs the next caller no time.
        if isinstance(error, RedisTimeoutError):
            self._next_call_at = time.monotonic() + self._cooldown_seconds
        else:
            self._next_call_at = None
        # The error of a command in a pipeline begins with the number of the command.
        disk_full = isinstance(error, ResponseError) and "MISCONF" in str(error)
        if disk_full or isinstance(error, _OUTAGE_ERRORS):
            raise errors.StoreUnavailable() from error
