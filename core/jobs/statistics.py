"""The figures of the whole service, for its metrics: counts, histograms, queued work, workers.

The Lua functions count (scripts/statistics.lua), workers report what they use. Every read takes the
same time whatever the number of jobs.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import redis
from redis.exceptions import NoPermissionError

from core.jobs.models import WorkCounts, WorkerInfo, WorkerUse
from core.jobs.serialization import SIZE_CLASSES
from core.redis_client import PREFIX, CircuitBreaker

# The upper limits of the histograms' buckets; as in scripts/statistics.lua, in ms there.
LIMITS_SECONDS = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)
# The speed until a job has succeeded: that of two CPU cores.
NOMINAL_SECONDS = 2500.0  # for 10^9 pixel evaluations


class Example(NamedTuple):
    """The newest observation of a bucket that has a trace."""

    trace_id: str
    seconds: float


@dataclass(frozen=True)
class Histogram:
    """Observations by bucket, not cumulated; the last bucket has no upper limit."""

    counts: Sequence[int]
    sum_seconds: float
    examples: Sequence[Example | None]


class LiveWorker(NamedTuple):
    """A worker that has sent a heartbeat within the last seconds."""

    host: str
    info: WorkerInfo | None
    use: WorkerUse | None


@dataclass(frozen=True)
class ServiceStatistics:
    """All figures. totals: the counts of scripts/statistics.lua, by field."""

    totals: Mapping[str, str]
    queue_work_seconds: float
    queue_head_age_seconds: float
    workers: Sequence[LiveWorker]
    memory_bytes: int  # of the server; 0: not known
    memory_limit_bytes: int  # 0: none
    is_intake_paused: bool

    def count(self, field: str) -> int:
        """Return how often something has happened."""
        return int(self.totals.get(field, 0))

    def histogram(self, name: str, size: str) -> Histogram:
        """Return the durations `name`, wait or run, of the jobs of a size class."""
        fields = [f"{name}:{size}:{bucket}" for bucket in range(1, len(LIMITS_SECONDS) + 2)]
        return Histogram(
            counts=[self.count(field) for field in fields],
            sum_seconds=self.count(f"{name}:{size}:ms") / 1000,
            examples=[_parse_example(self.totals.get(f"trace:{field}")) for field in fields],
        )

    @property
    def sizes(self) -> list[str]:
        """The size classes. `unknown`: jobs of an earlier version."""
        has_unknown = any(":unknown:" in field for field in self.totals)
        return [*SIZE_CLASSES, *(["unknown"] if has_unknown else [])]


class Statistics:
    """Every method raises StoreUnavailable when the server does not answer in time."""

    def __init__(self, client: redis.Redis, circuit_breaker: CircuitBreaker) -> None:
        self._redis, self._circuit_breaker = client, circuit_breaker

    def read(self, worker_ttl_ms: int) -> ServiceStatistics:
        """Return all figures. worker_ttl_ms: the age of a living worker's last heartbeat."""
        with self._circuit_breaker, self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.hgetall(f"{PREFIX}totals")
            pipe.zrange(f"{PREFIX}workers", 0, -1, withscores=True)
            pipe.hgetall(f"{PREFIX}worker_info")
            pipe.hgetall(f"{PREFIX}worker_use")
            pipe.exists(f"{PREFIX}intake_paused")
            self._ask_work(pipe)
            now, totals, heartbeats, infos, uses, is_paused, *work = pipe.execute()
            first = work[-1]
            created: Any = None
            if first:
                created = self._redis.hget(
                    f"{PREFIX}job:{first[0].partition(':')[2]}", "created_at"
                )
            memory: Any = {}
            with suppress(NoPermissionError):  # some managed servers do not show it
                memory = self._redis.info("memory")
        now_ms = now[0] * 1000 + now[1] // 1000
        return ServiceStatistics(
            totals=totals,
            queue_work_seconds=_queue_work_seconds(*work),
            queue_head_age_seconds=max(0.0, (now_ms - int(created or now_ms)) / 1000),
            workers=[
                LiveWorker(
                    name.partition(":")[0],
                    WorkerInfo.model_validate_json(infos[name]) if infos.get(name) else None,
                    WorkerUse.model_validate_json(uses[name]) if uses.get(name) else None,
                )
                for name, heartbeat_ms in heartbeats
                if heartbeat_ms >= now_ms - worker_ttl_ms
            ],
            memory_bytes=int(memory.get("used_memory", 0)),
            memory_limit_bytes=int(memory.get("maxmemory", 0)),
            is_intake_paused=bool(is_paused),
        )

    def get_queue_work_seconds(self) -> float:
        """Return the seconds that one worker would take for all queued jobs."""
        with self._circuit_breaker, self._redis.pipeline(transaction=False) as pipe:
            self._ask_work(pipe)
            return _queue_work_seconds(*pipe.execute())

    @staticmethod
    def _ask_work(pipe: Any) -> None:
        pipe.hmget(f"{PREFIX}work", "queued", "seconds")
        pipe.get(f"{PREFIX}average_seconds")
        pipe.zcard(f"{PREFIX}queue")
        pipe.zrange(f"{PREFIX}queue", 0, 0)

    def report_use(self, pipe: Any, worker: str, use: WorkerUse, done: WorkCounts) -> None:
        """Add what a worker uses, and has done since its last report, to a heartbeat."""
        pipe.hset(f"{PREFIX}worker_use", worker, use.model_dump_json())
        for name, count in done:
            if count:
                pipe.hincrby(f"{PREFIX}totals", name, count)


def _queue_work_seconds(
    work: Sequence[str | None], average_seconds: str | None, queued: int, _: object
) -> float:
    """Return the queued work times the recent speed.

    A queue that an earlier version has filled has no sum; then the average job counts.
    """
    amount, speed = (float(value or 0) for value in work)
    seconds = amount / 1e9 * (speed or NOMINAL_SECONDS)
    if queued and seconds <= 0:
        return queued * float(average_seconds or 1)
    return max(0.0, seconds)


def _parse_example(text: str | None) -> Example | None:
    """Parse a traceparent and milliseconds."""
    parts = (text or "").split(" ")
    if len(parts) != 2:
        return None
    return Example(parts[0].split("-")[1], float(parts[1]) / 1000)
