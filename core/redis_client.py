"""The Redis (or Valkey) client: timeouts, and the errors that mean an outage. Knows no jobs."""

import copy
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from typing import Any

import redis
import redis.asyncio
from redis._parsers.socket import SERVER_CLOSED_CONNECTION_ERROR
from redis.asyncio.retry import Retry as AsyncRetry
from redis.asyncio.sentinel import Sentinel as AsyncSentinel
from redis.asyncio.sentinel import SentinelConnectionPool as AsyncSentinelPool
from redis.backoff import ConstantBackoff
from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterError,
    InvalidResponse,
    MasterDownError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel, SentinelManagedConnection

from core import errors
from core.redis_url import SentinelAddress, parse_sentinel_url

PREFIX = "impasto:"

_CLUSTER = "It is a Redis Cluster; Impasto needs a single server."
_FORBIDDEN = "It forbids a command; the user in IMPASTO_REDIS_URL needs +@all."
_CLOSED = (
    "It closes the connection; if that lasts, check whether the port is Redis's, and whether it "
    "expects TLS (rediss://)."
)
_REPLICA = "It is a read-only replica; IMPASTO_REDIS_URL must name the primary."
# Any other error is a bug of this program and must not look like an outage.
_OUTAGE_ERRORS = (
    RedisConnectionError,
    RedisTimeoutError,
    BusyLoadingError,
    OutOfMemoryError,
    ReadOnlyError,
    NoPermissionError,
    AskError,
    TryAgainError,
    ClusterCrossSlotError,
    ClusterError,
    InvalidResponse,
)
# What the operator must know about an outage, by the first class that fits.
_REASONS: dict[type[BaseException], str] = {
    ssl.SSLCertVerificationError: "Its certificate cannot be verified; "
    "IMPASTO_REDIS_URL must name its host, and its authority in ssl_ca_certs.",
    ssl.SSLError: "TLS fails; check its certificate, ours, and whether it speaks TLS.",
    socket.gaierror: "The host name in IMPASTO_REDIS_URL is not known.",
    ConnectionRefusedError: "It refuses the connection: start it, or correct IMPASTO_REDIS_URL.",
    ConnectionResetError: _CLOSED,
    BrokenPipeError: _CLOSED,
    InvalidResponse: "It is no Redis server.",
    NoPermissionError: _FORBIDDEN,
    AuthenticationError: "It refuses the password in IMPASTO_REDIS_URL.",
    AuthenticationWrongNumberOfArgsError: "It refuses the password in IMPASTO_REDIS_URL.",
    ReadOnlyError: _REPLICA,
    MasterNotFoundError: "No Sentinel names a primary; a failover takes some seconds. If it lasts, "
    "check the Sentinels and the name in IMPASTO_REDIS_URL.",
    MasterDownError: "It is a replica that has lost its primary; IMPASTO_REDIS_URL must name the "
    "primary.",
    OutOfMemoryError: "Its memory is full; raise maxmemory.",
    AskError: _CLUSTER,
    TryAgainError: _CLUSTER,
    ClusterCrossSlotError: _CLUSTER,
    ClusterError: _CLUSTER,
    BusyLoadingError: "It is loading its data; try again in a few seconds.",
}
NO_DATABASE = "DB index is out of range"  # how the server refuses the database of the URL
# Outages for which redis-py has no class of its own, by how the server's answer begins.
_REASONS_BY_ANSWER = {
    "MISCONF": "Its disk is full or fails; it takes no writes.",
    "BUSY": "It is busy with a script; try again in a few seconds.",
    "NOREPLICAS": "Too few of its replicas are connected (min-replicas-to-write); it takes no "
    "writes.",
    "UNBLOCKED": _REPLICA,
    "ACL failure in script": _FORBIDDEN,
    NO_DATABASE: "It has no database of the number in IMPASTO_REDIS_URL.",
}
# The error of a command in a pipeline begins with the command.
_ANSWER = re.compile(rf"(?:^|caused error: )({'|'.join(_REASONS_BY_ANSWER)})\b")

TIMEOUT_SECONDS = 1.5  # for a server that does not answer; clients of the API wait for 2 s
CONNECT_TIMEOUT_SECONDS = 1.0
# One immediate retry, for a pooled connection that went stale. Every command is safe to send twice.
# A timeout is not retried: redis-py repeats the handshake as well, and each try of each takes the
# whole timeout again.
RETRIED_ERRORS = (RedisConnectionError,)
# A Sentinel on a host that is gone must not take the time of those that answer.
SENTINEL_OPTIONS = {"socket_timeout": 0.5, "socket_connect_timeout": 0.5, "retry": None}


def connect(
    redis_url: str, on_connect: Callable[[], None] | None = None, **changes: Any
) -> redis.Redis:
    """Return a client whose calls time out. Opens no connection yet.

    With Sentinel, each new connection leads to the primary that the Sentinels name then.
    on_connect: called after each new connection, so also after each reconnection. changes: other
    options of the connections.
    """
    options = _make_options(Retry)
    if on_connect is not None:

        def greet(connection: Any) -> None:
            # `on_connect` would check the health of a connection that is just being opened.
            connection.on_connect_check_health(check_health=False)
            on_connect()

        options["redis_connect_func"] = greet
    options |= {"health_check_interval": 5} | changes
    address = parse_sentinel_url(redis_url)
    if address is None:
        return redis.Redis.from_url(redis_url, **options)
    is_tls = "ssl" in address.options
    options["connection_class"] = PrimaryTlsConnection if is_tls else PrimaryConnection
    client: redis.Redis = _follow_primary(_Sentinels, address, options)
    return client


def connect_async(redis_url: str) -> Any:
    """Return a client for an event loop, with the same timeouts. Opens no connection yet."""
    options = _make_options(AsyncRetry)
    address = parse_sentinel_url(redis_url)
    if address is None:
        return redis.asyncio.Redis.from_url(redis_url, **options)
    return _follow_primary(_AsyncSentinels, address, options)


async def close_async(client: Any) -> None:
    """Close the connections of such a client, also those to the Sentinels."""
    await client.aclose()
    if isinstance(pool := client.connection_pool, AsyncSentinelPool):
        await pool.sentinel_manager.aclose()


def _follow_primary(sentinel_class: Any, address: SentinelAddress, options: dict[str, Any]) -> Any:
    sentinels = sentinel_class(
        address.sentinels, sentinel_kwargs=SENTINEL_OPTIONS | address.sentinel_options
    )
    return sentinels.master_for(address.name, **address.options, **options)


def _make_options(retry: type[Retry] | type[AsyncRetry]) -> dict[str, Any]:
    return {
        "decode_responses": True,
        "encoding_errors": "replace",  # a byte that the disk has damaged spoils its own record only
        "socket_timeout": TIMEOUT_SECONDS,
        "socket_connect_timeout": CONNECT_TIMEOUT_SECONDS,
        "retry": retry(ConstantBackoff(0.05), 1, supported_errors=RETRIED_ERRORS),
    }


class PrimaryConnection(SentinelManagedConnection):
    """A connection to the primary that is closed after a timeout.

    The stock class keeps it (redis-py's issue 4292), so the next command on it would get the late
    answer to the one before: perhaps another caller's.
    """

    def read_response(self, *args: Any, **options: Any) -> Any:
        """Read the answer to the oldest command that has none."""
        return super().read_response(*args, **{"disconnect_on_error": True, **options})


class PrimaryTlsConnection(PrimaryConnection, redis.SSLConnection):
    """The same with TLS."""


class _Sentinels(Sentinel):
    """Sentinels that several callers may ask at once.

    The stock class swaps entries of its list in place. Two callers that do so at once lose one
    Sentinel and have another one twice.
    """

    def discover_master(self, service_name: str) -> tuple[str, int]:
        """Return the address of the primary. Raises MasterNotFoundError."""
        call = copy.copy(self)
        call.sentinels = list(self.sentinels)
        address: tuple[str, int] = Sentinel.discover_master(call, service_name)
        self.sentinels = call.sentinels  # the one that has answered is the first now
        return address


class _AsyncSentinels(AsyncSentinel):
    """The same for an event loop."""

    async def discover_master(self, service_name: str) -> tuple[str, int]:
        """Return the address of the primary. Raises MasterNotFoundError."""
        call = copy.copy(self)
        call.sentinels = list(self.sentinels)
        address: tuple[str, int] = await AsyncSentinel.discover_master(call, service_name)
        self.sentinels = call.sentinels
        return address


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
        if is_outage(error):
            raise errors.StoreUnavailable(_describe_outage(error)) from error


def is_outage(error: BaseException | None) -> bool:
    """Whether the error means that the server cannot serve at the moment."""
    return isinstance(error, _OUTAGE_ERRORS) or _find_reason(error) is not None


def _find_reason(error: BaseException | None) -> str | None:
    """Return the reason of an outage that only the text of the server's answer tells."""
    match = _ANSWER.search(str(error)) if isinstance(error, ResponseError) else None
    return match and _REASONS_BY_ANSWER[match[1]]


def _describe_outage(error: BaseException | None) -> str | None:
    """Return the message for an outage with a known reason, else None."""
    reason = _find_reason(error)
    if isinstance(error, RedisConnectionError) and SERVER_CLOSED_CONNECTION_ERROR in str(error):
        reason = _CLOSED
    for cause in _chain(error):
        if isinstance(cause, TimeoutError) and "handshake" in str(cause):  # Python's words
            reason = reason or _REASONS[ssl.SSLError]
        reason = reason or next((_REASONS[k] for k in _REASONS if isinstance(cause, k)), None)
    return reason and f"The job store does not answer. {reason}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and what caused it. redis-py wraps the errors of a socket."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
