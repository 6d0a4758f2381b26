"""What the operator of a service sees and does, over the jobs of all callers.

Shows numbers, ids and times; no picture, digest or webhook of a caller. Every read takes the same
time whatever the number of jobs: it reads counters, lengths of indexes, or a bounded page.
Scripts/statistics.lua counts per hour.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Literal

import redis
from pydantic import BaseModel, ConfigDict

from core import errors
from core.jobs import audit
from core.jobs.models import Priority, Status, WorkerInfo, WorkerReport, parse_timestamp
from core.jobs.service_info import SuspensionKind, WorkerState
from core.jobs.suspensions import Suspensions
from core.redis_client import PREFIX, CircuitBreaker

HOUR_SECONDS = 3600
MAX_HOURS = 7 * 24  # the store keeps the counts of eight days
MAX_RUNNING = 1000  # jobs that are read to tell what each worker does
DAY_MS = 86_400_000
ALL_WORKERS = "*"

QueueEnd = Literal["first", "last"]


class _View(BaseModel):
    model_config = ConfigDict(frozen=True)


class QueuedJob(_View):
    """A job in the queue. position: 0 is next."""

    id: str
    owner: str
    position: int
    priority: Priority
    created_at: datetime
    size: int | None  # of the result, in px
    pool: str | None = None


class HourCounts(_View):
    """What happened within an hour: ends by status, failures by error code, waits until the start.

    A percentile is at most a fifth too high; null if no job started.
    """

    start: datetime
    succeeded: int = 0
    failed: int = 0
    canceled: int = 0
    expired: int = 0
    started: int = 0
    wait_p50_seconds: float | None = None
    wait_p95_seconds: float | None = None
    failures: dict[str, int] = {}


class ExpiryCounts(_View):
    """Ended jobs by what becomes of them, and the number of stored pictures in use."""

    with_pictures: int
    expiring_within_a_day: int
    records_without_pictures: int
    pictures: int


class OwnerUsage(_View):
    """How much of the service one owner uses."""

    queued: int
    running: int
    jobs: int  # records, also of ended ones
    uploads: int
    upload_bytes: int


class Operations:
    """Every method raises StoreUnavailable when the server does not answer in time."""

    def __init__(
        self,
        client: redis.Redis,
        circuit_breaker: CircuitBreaker,
        call: Callable[..., Any],
        suspensions: Suspensions,
    ) -> None:
        """call: of JobStore; it runs a Lua function."""
        self._redis, self._circuit_breaker, self._call = client, circuit_breaker, call
        self._suspensions = suspensions

    # ------------------------------------------------------------------ what the operator does

    def move_in_queue(self, job_id: str, to: QueueEnd) -> None:
        """Let a queued job run before, or after, all that are queued now.

        Raises JobNotFound, and Conflict if it is not queued any more.
        """
        entry = audit.build_entry("job.move", job_id, to=to)
        outcome = self._call("move_in_queue", "", job_id, to, entry=entry)
        if outcome is None:
            raise errors.JobNotFound()
        if outcome == "started":
            raise errors.Conflict("The job is not queued any more, so it cannot be moved.")

    def pause_intake(self) -> None:
        """Accept no new jobs from now on; those that are queued run. Safe to repeat."""
        with self._circuit_breaker, self._redis.pipeline() as pipe:
            seconds, microseconds = self._redis.time()
            now_ms = seconds * 1000 + microseconds // 1000
            pipe.set(f"{PREFIX}intake_paused", now_ms, nx=True)
            audit.append(pipe, "intake.pause")
            pipe.execute()

    def resume_intake(self) -> None:
        """Accept new jobs again. Safe to repeat."""
        with self._circuit_breaker, self._redis.pipeline() as pipe:
            pipe.delete(f"{PREFIX}intake_paused")
            audit.append(pipe, "intake.resume")
            pipe.execute()

    def suspend(self, worker_id: str, kind: SuspensionKind, ttl_ms: int, **details: Any) -> None:
        """Let a worker, or ALL_WORKERS that are alive, take no jobs from now on.

        A broken device stays out of service. Raises WorkerNotFound.
        """
        for worker in self._find_workers(worker_id, ttl_ms):
            if worker.suspension is None or worker.suspension.kind != "out_of_service":
                self._suspensions.suspend(worker.id, kind, **details)

    def resume(self, worker_id: str, ttl_ms: int) -> None:
        """Let a worker, or ALL_WORKERS, take jobs again. Safe to repeat. Raises WorkerNotFound."""
        for worker in self._find_workers(worker_id, ttl_ms):
            self._suspensions.resume(worker.id)

    def _find_workers(self, worker_id: str, ttl_ms: int) -> Sequence[WorkerState]:
        workers = [worker for worker in self.list_workers(ttl_ms) if worker.id]
        found = [worker for worker in workers if worker_id in (worker.id, ALL_WORKERS)]
        if not found and worker_id != ALL_WORKERS:
            raise errors.WorkerNotFound()
        return found

    # ------------------------------------------------------------------ what the operator sees

    def get_intake_pause(self) -> datetime | None:
        """Return since when no jobs are accepted; None if they are."""
        with self._circuit_breaker:
            paused_ms: Any = self._redis.get(f"{PREFIX}intake_paused")
        return parse_timestamp(paused_ms)

    def list_queue(self, offset: int, limit: int) -> tuple[list[QueuedJob], int]:
        """Return a page of the queue in the order in which its jobs start, and its length."""
        with self._circuit_breaker, self._redis.pipeline() as pipe:
            pipe.zcard(f"{PREFIX}queue")
            pipe.zrange(f"{PREFIX}queue", offset, offset + limit - 1)
            total, places = pipe.execute()
            ids = [place.partition(":")[2] for place in places]
            for job_id in ids:
                pipe.hmget(
                    f"{PREFIX}job:{job_id}", "owner", "priority", "created_at", "input", "pool"
                )
            rows = pipe.execute() if ids else []
        jobs = []
        for index, (job_id, row) in enumerate(zip(ids, rows, strict=True)):
            # A job that was deleted meanwhile, or has a damaged record, must not hide the others.
            with suppress(ValueError):
                jobs.append(_parse_queued(job_id, offset + index, row))
        return jobs, int(total)

    def list_workers(self, ttl_ms: int) -> list[WorkerState]:
        """Return the workers whose last heartbeat is younger than this, and those suspended."""
        suspensions = self._suspensions.list()
        with self._circuit_breaker, self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.zrange(f"{PREFIX}leases", 0, MAX_RUNNING - 1)
            pipe.zrange(f"{PREFIX}workers", 0, -1, withscores=True)
            pipe.hgetall(f"{PREFIX}worker_info")
            (seconds, microseconds), running, heartbeats, infos = pipe.execute()
            for job_id in running:
                pipe.hmget(f"{PREFIX}job:{job_id}", "worker", "owner", "progress")
            rows = pipe.execute() if running else []
        now_ms = seconds * 1000 + microseconds // 1000
        jobs = {row[0]: (job_id, *row[1:]) for job_id, row in zip(running, rows, strict=True)}
        states = []
        for name, heartbeat_ms in heartbeats:
            if heartbeat_ms < now_ms - ttl_ms:
                continue
            job_id, owner, progress = jobs.get(name, (None, None, None))
            report = _parse_report(infos.get(name))
            states.append(
                WorkerState(
                    id=report.id if report else "",
                    name=name,
                    info=report and WorkerInfo.model_validate(report.model_dump()),
                    pools=report.pools if report else [],
                    suspension=suspensions.get(report.id) if report else None,
                    seconds_since_heartbeat=(now_ms - heartbeat_ms) / 1000,
                    job_id=job_id,
                    owner=owner,
                    progress=_parse_progress(progress),
                )
            )
        live = {state.id for state in states}
        states += [
            WorkerState(id=worker_id, suspension=suspension)
            for worker_id, suspension in suspensions.items()
            if worker_id not in live
        ]
        return states

    def list_hours(self, count: int) -> tuple[HourCounts, list[HourCounts]]:
        """Return the counts of the last hours: of all together, and of each, the current one last.

        count: 1 to MAX_HOURS.
        """
        with self._circuit_breaker, self._redis.pipeline(transaction=False) as pipe:
            current = int(self._redis.time()[0]) // HOUR_SECONDS
            hours = range(current - min(count, MAX_HOURS) + 1, current + 1)
            for hour in hours:
                pipe.hgetall(f"{PREFIX}hour:{hour}")
            rows = pipe.execute()
        starts = [datetime.fromtimestamp(hour * HOUR_SECONDS, UTC) for hour in hours]
        each = [_summarize(start, [row]) for start, row in zip(starts, rows, strict=True)]
        return _summarize(starts[0], rows), each

    def count_expiry(self) -> ExpiryCounts:
        """Count what is stored and what expires soon."""
        expiry = f"{PREFIX}expiry"
        with self._circuit_breaker, self._redis.pipeline() as pipe:
            now_ms = int(self._redis.time()[0]) * 1000
            pipe.zcard(expiry)
            pipe.zcount(expiry, "-inf", now_ms + DAY_MS)
            pipe.zcard(f"{PREFIX}records")
            pipe.hlen(f"{PREFIX}refs")
            counts = pipe.execute()
        return ExpiryCounts(**dict(zip(ExpiryCounts.model_fields, counts, strict=True)))

    def get_usage(self, owners: Sequence[str]) -> dict[str, OwnerUsage]:
        """Return the usage of each owner."""
        with self._circuit_breaker, self._redis.pipeline(transaction=False) as pipe:
            for owner in owners:
                pipe.zcard(f"{PREFIX}queue:{owner}")
                pipe.zcard(f"{PREFIX}jobs_of:{owner}:running")
                pipe.zcard(f"{PREFIX}jobs_of:{owner}")
                pipe.zcard(f"{PREFIX}uploads:{owner}")
                pipe.hget(f"{PREFIX}upload_sizes:{owner}", "sum")
            counts = [int(count or 0) for count in pipe.execute()] if owners else []
        names = tuple(OwnerUsage.model_fields)
        rows = zip(*[iter(counts)] * len(names), strict=True)
        return {
            owner: OwnerUsage(**dict(zip(names, row, strict=True)))
            for owner, row in zip(owners, rows, strict=True)
        }


def _summarize(start: datetime, rows: Iterable[dict[str, str]]) -> HourCounts:
    """Return the counts of these hours together."""
    sums: Counter[str] = Counter()
    for row in rows:
        sums.update({name: int(count) for name, count in row.items()})
    waits = {
        int(name.removeprefix("wait:")): count
        for name, count in sums.items()
        if name.startswith("wait:")
    }
    return HourCounts(
        start=start,
        **{status: sums[status] for status in Status if status.has_ended},
        started=sum(waits.values()),
        wait_p50_seconds=_percentile(waits, 0.5),
        wait_p95_seconds=_percentile(waits, 0.95),
        failures={
            name.removeprefix("error:"): count
            for name, count in sorted(sums.items())
            if name.startswith("error:")
        },
    )


def _percentile(waits: dict[int, int], share: float) -> float | None:
    """Return the end of the bucket that contains this share of the waits; None without any."""
    rest = share * sum(waits.values())
    for bucket in sorted(waits):
        rest -= waits[bucket]
        if rest <= 0:
            return float(0.1 * 2 ** (bucket / 4))  # as statistics.lua
    return None


def _parse_queued(job_id: str, position: int, row: Sequence[str | None]) -> QueuedJob:
    """Raises ValueError for a missing or damaged record."""
    owner, priority, created_ms, job_input, pool = row
    fields = {
        "id": job_id,
        "owner": owner,
        "position": position,
        "priority": priority,
        "created_at": parse_timestamp(created_ms),
        "size": _parse_object(job_input).get("spec", {}).get("size"),
        "pool": pool,
    }
    return QueuedJob.model_validate(fields)


def _parse_progress(text: str | None) -> float | None:
    value = _parse_object(text).get("value")
    return float(value) if isinstance(value, int | float) else None


def _parse_report(text: str | None) -> WorkerReport | None:
    return WorkerReport.model_validate_json(text) if text else None


def _parse_object(text: str | None) -> dict[str, Any]:
    """Return an object that was stored as JSON; an empty one if a disk fault has damaged it."""
    try:
        value = json.loads(text or "{}")
    except ValueError:
        value = None
    return value if isinstance(value, dict) else {}
