"""How often one caller may ask. The counts are in Redis, common to all API processes; a minute begins with a request.

Every write to Redis goes to the disk, so requests that only look are counted here first, and told to Redis a hundredth
of the limit at a time, or after a second. A caller can thus ask a little more often than the limit says, never less.
Submissions are counted one by one. Who is over the limit is refused from memory until their minute is over.

Wrong keys are counted by the address that they come from, in Redis alone: a stranger can make nothing grow here.
"""

import math
import time
from collections.abc import Callable
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
_WRONG_KEYS = "wrong-keys"


class RequestKind(StrEnum):
    """What is counted apart."""

    SUBMISSION = "submission"  # what costs work: a picture to check, a job to paint
    OTHER = "other"


@dataclass
class _Account:
    """One caller's requests of one kind, as this process knows them."""

    unsettled: int = 0
    settled_at: float = -math.inf
    refused_until: float = -math.inf


class RateLimiter:
    """The limits of a service. Used on the event loop; what waits for Redis waits in a thread."""

    def __init__(
        self,
        redis_url: str,
        submissions: int,
        others: int,
        wrong_keys: int,
        *,
        cooldown_seconds: float = 0,
    ) -> None:
        """A minute. submissions, others: of one caller; wrong_keys: from one address.

        rest_seconds: as of core.redis_client.CircuitBreaker.
        """
        self._redis, self._unavailable = connect(redis_url), CircuitBreaker(cooldown_seconds)
        storage = RedisStorage(
            redis_url, connection_pool=self._redis.connection_pool, key_prefix=f"{PREFIX}rates"
        )
        self._limiter = FixedWindowRateLimiter(storage)
        self._limits = {
            RequestKind.SUBMISSION: RateLimitItemPerMinute(submissions),
            RequestKind.OTHER: RateLimitItemPerMinute(others),
        }
        self._wrong_keys = RateLimitItemPerMinute(wrong_keys)
        self._batch = {RequestKind.SUBMISSION: 1, RequestKind.OTHER: max(1, others // 100)}
        self._accounts: dict[
            tuple[str, RequestKind], _Account
        ] = {}  # of keys that there are: no stranger can make it grow

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()

    async def count(self, caller: str, kind: RequestKind) -> None:
        """One request more. Raises RateLimited, StoreUnavailable."""
        account, now = self._accounts.setdefault((caller, kind), _Account()), time.monotonic()
        if now < account.refused_until:
            raise errors.RateLimited(retry_seconds=account.refused_until - now)
        account.unsettled += 1
        if account.unsettled >= self._batch[kind] or now - account.settled_at >= FLUSH_SECONDS:
            cost, account.unsettled, account.settled_at = account.unsettled, 0, now
            seconds = await run_in_threadpool(self._settle, caller, kind, cost)
            if seconds:
                account.refused_until = time.monotonic() + seconds
                raise errors.RateLimited(retry_seconds=seconds)

    def _settle(self, caller: str, kind: RequestKind, cost: int) -> float:
        """Tell Redis. 0, or the seconds until the caller may ask again."""
        limit = self._limits[kind]
        with self._unavailable:
            return (
                0.0
                if self._limiter.hit(limit, caller, kind, cost=cost)
                else self._left(limit, caller, kind)
            )

    def _left(self, limit: RateLimitItemPerMinute, *who: str) -> float:
        """Seconds until their minute is over."""
        reset_at = self._limiter.get_window_stats(limit, *who).reset_time
        return max(1.0, reset_at - time.time() + 0.5)  # Redis tells whole seconds, the nearest

    async def check_guesses(self, address: str) -> None:
        """Before a key is looked up that is not known. Raises RateLimited, StoreUnavailable."""
        await self._guess(self._limiter.test, address)

    async def note_guess(self, address: str) -> None:
        """It was wrong. Raises RateLimited, StoreUnavailable."""
        await self._guess(self._limiter.hit, address)

    async def _guess(self, step: Callable[..., bool], address: str) -> None:
        who = (_WRONG_KEYS, _neighborhood(address))

        def ask() -> float:
            with self._unavailable:
                return 0.0 if step(self._wrong_keys, *who) else self._left(self._wrong_keys, *who)

        if seconds := await run_in_threadpool(ask):
            words = "Too many wrong API keys came from your address; wait for as long as Retry-After says."
            raise errors.RateLimited(words, seconds)


def _neighborhood(address: str) -> str:
    """What one client is given: an address, or all of IPv6 that begin with the same 64 bits."""
    try:
        known = ip_address(address)
    except ValueError:  # what a proxy calls it
        return address[:100]
    return (
        str(IPv6Network((known, 64), strict=False).network_address)
        if isinstance(known, IPv6Address)
        else address
    )
