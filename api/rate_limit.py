"""Limits how often one caller may send requests.

The counts are in Redis, common to all API processes; a window of one minute begins with a request.

Every write to Redis goes to the disk. So cheap requests are counted in memory first and flushed to
Redis a hundredth of the limit at a time, or after a second. A caller can thus send slightly more
requests than the limit allows, never fewer. Submissions are counted one by one. A caller above the
limit is refused from memory until its minute ends.

Wrong API keys are counted by client address, in Redis only: an untrusted client cannot make a table
grow here.
"""

import math
import time
from dataclasses import dataclass
from enum import StrEnum
from ipaddress import IPv6Address, IPv6Network, ip_address

from limits import RateLimitItemPerMinute
from limits.storage import RedisStorage
from limits.strategies import FixedWindowRateLimiter
from starlette.concurrency import run_in_threadpool

from core import errors
from core.redis_client import PREFIX, CircuitBreaker, connect

FLUSH_SECONDS = 1.0
_AUTH_FAILURES = "auth-failures"


class RequestKind(StrEnum):
    """Kinds of requests that have separate limits."""

    SUBMISSION = "submission"  # causes work: an image to validate, a job to run
    OTHER = "other"


@dataclass
class _Window:
    """One caller's requests of one kind, as this process knows them."""

    pending: int = 0  # counted here, not in Redis yet
    flushed_at: float = -math.inf
    refused_until: float = -math.inf


class RateLimiter:
    """The limits of a service. For one event loop; calls to Redis run in a thread."""

    def __init__(
        self,
        redis_url: str,
        submissions: int,
        others: int,
        auth_failures: int,
        *,
        cooldown_seconds: float = 0,
    ) -> None:
        """All limits are per minute.

        submissions, others: per caller. auth_failures: per client address.
        cooldown_seconds: see core.redis_client.CircuitBreaker.
        """
        self._redis, self._circuit_breaker = connect(redis_url), CircuitBreaker(cooldown_seconds)
        storage = RedisStorage(
            "redis://",  # any: the connections are those of `connect`
            connection_pool=self._redis.connection_pool,
            key_prefix=f"{PREFIX}rates",
        )
        self._limiter = FixedWindowRateLimiter(storage)
        self._limits = {
            RequestKind.SUBMISSION: RateLimitItemPerMinute(submissions),
            RequestKind.OTHER: RateLimitItemPerMinute(others),
        }
        self._auth_failures = RateLimitItemPerMinute(auth_failures)
        self._batch = {RequestKind.SUBMISSION: 1, RequestKind.OTHER: max(1, others // 100)}
        # Only callers with a valid key get an entry, so an untrusted client cannot make this grow.
        self._windows: dict[tuple[str, RequestKind], _Window] = {}

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    async def count_request(self, caller: str, kind: RequestKind) -> None:
        """Count one request. Raises RateLimited, StoreUnavailable."""
        window, now = self._windows.setdefault((caller, kind), _Window()), time.monotonic()
        if now < window.refused_until:
            raise errors.RateLimited(retry_seconds=window.refused_until - now)
        window.pending += 1
        if window.pending >= self._batch[kind] or now - window.flushed_at >= FLUSH_SECONDS:
            cost, window.pending, window.flushed_at = window.pending, 0, now
            seconds = await run_in_threadpool(self._flush, caller, kind, cost)
            if seconds:
                window.refused_until = time.monotonic() + seconds
                raise errors.RateLimited(retry_seconds=seconds)

    def _flush(self, caller: str, kind: RequestKind, cost: int) -> float:
        """Add pending requests to the count in Redis.

        Returns 0, or the seconds until the caller may send requests again.
        """
        limit = self._limits[kind]
        with self._circuit_breaker:
            if self._limiter.hit(limit, caller, kind, cost=cost):
                return 0.0
            return self._seconds_left(limit, caller, kind)

    def _seconds_left(self, limit: RateLimitItemPerMinute, *identifiers: str) -> float:
        """The seconds until the window ends."""
        reset_at = self._limiter.get_window_stats(limit, *identifiers).reset_time
        return max(1.0, reset_at - time.time() + 0.5)  # Redis rounds to whole seconds

    async def count_auth_failure(self, address: str) -> None:
        """Count a wrong key from the address. Raises RateLimited, StoreUnavailable."""
        identifiers = (_AUTH_FAILURES, normalize_address(address))

        def run() -> float:
            with self._circuit_breaker:
                # Only a count below the limit is written: a flood must not fill the store's log.
                if self._limiter.test(self._auth_failures, *identifiers) and self._limiter.hit(
                    self._auth_failures, *identifiers
                ):
                    return 0.0
                return self._seconds_left(self._auth_failures, *identifiers)

        if seconds := await run_in_threadpool(run):
            message = (
                "Too many wrong API keys came from your address; "
                "use a valid one, or wait for as long as Retry-After says."
            )
            raise errors.RateLimited(message, seconds)


def normalize_address(address: str) -> str:
    """Map all addresses that one client controls to one: an IPv6 client usually has a /64."""
    try:
        parsed = ip_address(address)
    except ValueError:  # a proxy may pass any text
        return address[:100]
    if isinstance(parsed, IPv6Address):
        if parsed.ipv4_mapped is not None:  # ::ffff:192.0.2.1, as a dual-stack proxy writes it
            return str(parsed.ipv4_mapped)
        return str(IPv6Network((parsed, 64), strict=False).network_address)
    return address
