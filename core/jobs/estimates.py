"""EstimateQueue: requests for an estimate, from the API to a worker, and the replies.

Both are lists on Redis that expire soon: an estimate that nobody awaits is worth nothing.
"""

import json
import secrets
import time
from typing import Any

from redis import Redis

from core.jobs.models import EstimateRequest, EstimateResponse
from core.redis_client import PREFIX, CircuitBreaker

BLOCKING_SECONDS = 0.5  # of a blocking command; must be below the socket timeout
MAX_REQUESTS, TTL_MS = 100, 10_000

_REQUESTS = f"{PREFIX}estimate_requests"


class EstimateQueue:
    """The pending estimate requests. Thread-safe.

    Every method raises StoreUnavailable when the server does not answer in time.
    """

    def __init__(self, client: Redis, circuit_breaker: CircuitBreaker) -> None:
        self._redis, self._circuit_breaker = client, circuit_breaker

    def request(self, request: EstimateRequest, timeout_seconds: float) -> EstimateResponse | None:
        """Ask the workers and return the first answer; None after the timeout."""
        name, deadline = secrets.token_hex(16), time.monotonic() + timeout_seconds
        with self._circuit_breaker, self._redis.pipeline() as pipe:
            pipe.lpush(_REQUESTS, json.dumps([name, request.model_dump()]))
            pipe.ltrim(_REQUESTS, 0, MAX_REQUESTS - 1)  # drops the oldest
            pipe.pexpire(_REQUESTS, TTL_MS)  # then the caller has given up
            pipe.execute()
        while (left := deadline - time.monotonic()) > 0:
            with self._circuit_breaker:
                found: Any = self._redis.blpop([_reply_key(name)], min(left, BLOCKING_SECONDS))
            if found is not None:
                return EstimateResponse.model_validate_json(found[1])
        return None

    def next_request(self) -> tuple[str, EstimateRequest] | None:
        """Take the oldest request and its name. Returns None after BLOCKING_SECONDS."""
        with self._circuit_breaker:
            found: Any = self._redis.brpop([_REQUESTS], BLOCKING_SECONDS)
        if found is None:
            return None
        name, request = json.loads(found[1])
        return name, EstimateRequest.model_validate(request)

    def reply(self, name: str, response: EstimateResponse) -> None:
        """Answer the request of that name."""
        with self._circuit_breaker, self._redis.pipeline() as pipe:
            pipe.lpush(_reply_key(name), response.model_dump_json())
            pipe.pexpire(_reply_key(name), TTL_MS)
            pipe.execute()


def _reply_key(name: str) -> str:
    return f"{PREFIX}estimate_reply:{name}"
