"""How often one caller may ask. The counts are in Redis, common to all API processes; a minute begins with a request.

Every write to Redis goes to the disk, so requests that only look are counted here first, and told to Redis a hundredth
of the limit at a time, or after a second. A caller can thus ask a little more often than the limit says, never less.
Submissions are counted one by one. Who is over the limit is refused from memory until their minute is over.
"""

import math
import time
from dataclasses import dataclass
from enum import StrEnum

from limits import RateLimitItemPerMinute
from limits.storage import RedisStorage
from limits.strategies import FixedWindowRateLimiter
from starlette.concurrency import run_in_threadpool

from core import errors
from core.store import PREFIX, connection, unavailable

SETTLE_SECONDS = 1.0


class Kind(StrEnum):
    """What is counted apart."""

    SUBMISSION = "submission"  # what costs work: a picture to check, a job to paint
    OTHER = "other"


@dataclass
class _Account:
    """One caller's requests of one kind, as this process knows them."""

    unsettled: int = 0
    settled_at: float = -math.inf
    refused_until: float = -math.inf


class Rates:
    """The limits of a service. Used on the event loop; what waits for Redis waits in a thread."""

    def __init__(self, redis_url: str, submissions: int, others: int) -> None:
        """submissions, others: a minute, of one caller."""
        self._redis = connection(redis_url)
        storage = RedisStorage(redis_url, connection_pool=self._redis.connection_pool, key_prefix=f"{PREFIX}rates")
        self._limiter = FixedWindowRateLimiter(storage)
        self._limits = {
            Kind.SUBMISSION: RateLimitItemPerMinute(submissions),
            Kind.OTHER: RateLimitItemPerMinute(others),
        }
        self._batch = {Kind.SUBMISSION: 1, Kind.OTHER: max(1, others // 100)}
        self._accounts: dict[tuple[str, Kind], _Account] = {}  # of keys that there are: no stranger can make it grow

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()

    async def count(self, caller: str, kind: Kind) -> None:
        """One request more. Raises RateLimited, StoreUnavailable."""
        account, now = self._accounts.setdefault((caller, kind), _Account()), time.monotonic()
        if now < account.refused_until:
            raise errors.RateLimited(retry_seconds=account.refused_until - now)
        account.unsettled += 1
        if account.unsettled >= self._batch[kind] or now - account.settled_at >= SETTLE_SECONDS:
            cost, account.unsettled, account.settled_at = account.unsettled, 0, now
            seconds = await run_in_threadpool(self._settle, caller, kind, cost)
            if seconds:
                account.refused_until = time.monotonic() + seconds
                raise errors.RateLimited(retry_seconds=seconds)

    def _settle(self, caller: str, kind: Kind, cost: int) -> float:
        """Tell Redis. 0, or the seconds until the caller may ask again."""
        limit = self._limits[kind]
        with unavailable():
            if self._limiter.hit(limit, caller, kind, cost=cost):
                return 0.0
            reset_at = self._limiter.get_window_stats(limit, caller, kind).reset_time
        return max(1.0, reset_at - time.time() + 0.5)  # Redis tells whole seconds, the nearest
