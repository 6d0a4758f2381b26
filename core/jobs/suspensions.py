"""Which workers take no jobs, and why: the operator pauses or drains them, or a device is broken.

A worker is named by its id, its host and device, so a suspension survives restarts of its process.
scripts/lifecycle.lua refuses the claims of suspended workers.
"""

from datetime import datetime
from typing import Any

import redis
from pydantic import ValidationError

from core.jobs import audit
from core.jobs.models import parse_timestamp
from core.jobs.service_info import Suspension, SuspensionKind
from core.redis_client import PREFIX, CircuitBreaker

FAULT_SECONDS = 600  # how long a fault of a device counts


class Suspensions:
    """Every method raises StoreUnavailable when the server does not answer in time."""

    def __init__(self, client: redis.Redis, circuit_breaker: CircuitBreaker) -> None:
        self._redis, self._circuit_breaker = client, circuit_breaker

    def suspend(self, worker_id: str, kind: SuspensionKind, **details: Any) -> None:
        """Let the worker claim no further job. details: other fields of Suspension."""
        with self._circuit_breaker, self._redis.pipeline() as pipe:
            seconds, microseconds = self._redis.time()
            since = parse_timestamp(seconds * 1000 + microseconds // 1000)
            suspension = Suspension(kind=kind, since=since, **details)
            pipe.hset(_KEY, worker_id, suspension.model_dump_json())
            audit.append(pipe, _ACTIONS[kind], worker_id)
            pipe.execute()

    def resume(self, worker_id: str) -> None:
        """Let the worker claim jobs again. Safe to repeat."""
        with self._circuit_breaker, self._redis.pipeline() as pipe:
            pipe.hdel(_KEY, worker_id)
            audit.append(pipe, "worker.resume", worker_id)
            pipe.execute()

    def get(self, worker_id: str) -> Suspension | None:
        """Return why the worker takes no jobs; None if it does."""
        with self._circuit_breaker:
            text: Any = self._redis.hget(_KEY, worker_id)
        return None if text is None else _parse(text)

    def list(self) -> dict[str, Suspension]:
        """Return all suspensions by the id of the worker."""
        with self._circuit_breaker:
            texts: Any = self._redis.hgetall(_KEY)
        return {worker_id: _parse(text) for worker_id, text in sorted(texts.items())}

    def record_fault(self, worker_id: str, job_id: str) -> int:
        """Record that the worker's device failed with this job.

        Returns with how many different jobs it has failed within FAULT_SECONDS.
        """
        key = f"{PREFIX}faults:{worker_id}"
        with self._circuit_breaker, self._redis.pipeline() as pipe:
            pipe.sadd(key, job_id)
            pipe.expire(key, FAULT_SECONDS)
            pipe.scard(key)
            return int(pipe.execute()[-1])

    def forget_faults(self, worker_id: str) -> None:
        """Count the worker's faults anew."""
        with self._circuit_breaker:
            self._redis.delete(f"{PREFIX}faults:{worker_id}")


_KEY = f"{PREFIX}suspended"
# As the audit log names them.
_ACTIONS: dict[SuspensionKind, str] = {
    "paused": "worker.pause",
    "draining": "worker.drain",
    "out_of_service": "worker.take_out",
}


def _parse(text: str) -> Suspension:
    """A later version may know other kinds; to this one they are a pause."""
    try:
        return Suspension.model_validate_json(text)
    except ValidationError:
        return Suspension(kind="paused", since=datetime.fromtimestamp(0).astimezone())
