"""JobStore: the single source of truth about jobs, on Redis (or Valkey).

Operations that must be atomic are Lua functions in scripts/, one file per topic; the others are
plain commands. The head of scripts/common.lua lists all keys. This module knows no images, Celery
or HTTP and reads no settings. It is synchronous; docs/decisions/0002-synchronous-store.md says why.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from cachetools import TTLCache
from redis.exceptions import LockNotOwnedError, ResponseError

from core import errors
from core.jobs import audit
from core.jobs.audit import AuditReader
from core.jobs.estimates import EstimateQueue
from core.jobs.models import (
    LOCAL_OWNER,
    MAX_ATTEMPTS,
    MAX_FRAMES,
    MAX_SPEC_UPDATES,
    NO_POOL,
    Batch,
    Frame,
    Job,
    JobError,
    JobInput,
    JobProgress,
    ModelUsed,
    Output,
    QueueLimits,
    QueuePosition,
    ServiceLoad,
    Status,
    SubmissionContext,
    SubmissionOptions,
    WorkCounts,
    WorkerInfo,
    WorkerReport,
    WorkerUse,
    new_job_id,
)
from core.jobs.operations import Operations
from core.jobs.serialization import (
    fingerprint,
    parse_load,
    parse_rank,
    parse_row,
    serialize,
    sha256_hex,
)
from core.jobs.statistics import ServiceStatistics, Statistics
from core.jobs.store_monitor import StoreMonitor
from core.jobs.suspensions import Suspensions
from core.redis_client import PREFIX, CircuitBreaker, connect
from core.storage.location import IdentityFile

LEASE_SECONDS = 5.0
MAX_UPLOADS = 10_000  # of one owner, unless the caller sets another limit
DELETION_LOCK_SECONDS = 600.0
RESERVATION_SECONDS = 600.0  # protects a blob until the operation that uses it
REPLICATION_MS = 1000  # how long a new job waits for replicas; less than the client's timeout
WORKER_TTL_MS = 5_000  # a worker sends a heartbeat every second; scripts/common.lua has it as well
WORKER_FORGET_MS = 60_000  # then the store forgets the description of a worker
# Jobs wait so long for a worker like one that is gone; scripts/lanes.lua has it as well.
KNOWN_SECONDS = 3600
POLL_MS = 10_000  # an idle worker asks for a job more often, while jobs wait
# A list keeps its jobs for the next one; not for long, as another store could take the place of
# this one meanwhile. A queued job takes 2.3 KB. Callers take turns, so where the jobs of all
# of them have no room, a list finds that its own were dropped.
MAX_LISTED, LISTED_SECONDS = 10_000, 60
ANY_OWNER = ""  # for operations that may touch the jobs of all owners
NO_OWNER = ""  # of a blob that no client may name
# `time_limit_exceeded` comes from the worker, the others from the store.
LeaseStatus = Literal[
    "ok", "spec_updated", "cancel", "deadline_exceeded", "time_limit_exceeded", "stale"
]
DeliveryOutcome = Literal["delivered", "gone", "given_up"]
OnCall = Callable[[str, float, bool], None]  # function, seconds, whether it has succeeded

_DEFAULT_OPTIONS, _UNLIMITED = SubmissionOptions(), QueueLimits()
_DEFAULT_CONTEXT = SubmissionContext()
_NOTHING_DONE = WorkCounts()

NO_FUNCTION = "Function not found"  # the server's error for an unknown function
# In the order of their dependencies: Lua knows a local function only below its definition.
SCRIPTS = (
    "common",
    "statistics",
    "blobs",
    "lanes",
    "queue",
    "outbox",
    "lifecycle",
    "submission",
    "queries",
    "maintenance",
)


@cache
def load_library() -> tuple[str, str]:
    """Return the common prefix of the Lua functions, and the code of the library.

    The prefix contains a hash of the code. The server keeps functions on its disk, so a new version
    never runs the functions of an old one, and both can run side by side during an upgrade.
    """
    folder = Path(__file__).with_name("scripts")
    code = "\n".join((folder / f"{topic}.lua").read_text(encoding="utf-8") for topic in SCRIPTS)
    version = f"impasto_{hashlib.sha256(code.encode()).hexdigest()[:12]}"
    return version, code.replace("impasto_VERSION", version)


class JobStore:
    """All operations on jobs, blobs, workers and webhooks. Thread-safe.

    Every method raises StoreUnavailable when the server does not answer in time.
    `monitor` checks the server itself; `operations` is what the operator sees and does; `audit`
    reads the audit log, to which every change by a caller (`audit.actor`) adds an entry;
    `suspensions` says which workers take no jobs.
    """

    def __init__(
        self,
        redis_url: str,
        *,
        lease_seconds: float = LEASE_SECONDS,
        cooldown_seconds: float = 0,
        identity_file: IdentityFile | None = None,
        accepts_unsafe: bool = False,
        on_call: OnCall | None = None,
        replicas: int = 0,
    ) -> None:
        """cooldown_seconds: of the CircuitBreaker, for a process with many concurrent callers.

        replicas: how many must have a job before `create` returns. identity_file, accepts_unsafe:
        see StoreMonitor. on_call: gets the name of each Lua function that was called, the seconds
        it took, and whether it succeeded.
        """
        self._redis = connect(redis_url, self._on_connect)
        self._circuit_breaker = CircuitBreaker(cooldown_seconds)
        self.monitor = StoreMonitor(
            self._redis,
            self._circuit_breaker,
            identity_file,
            accepts_unsafe=accepts_unsafe,
            replicas=replicas,
        )
        self._replicas = replicas
        self.estimates = EstimateQueue(self._redis, self._circuit_breaker)
        self.suspensions = Suspensions(self._redis, self._circuit_breaker)
        self.operations = Operations(
            self._redis, self._circuit_breaker, self._call, self.suspensions
        )
        self.audit = AuditReader(self._redis, self._circuit_breaker)
        self._statistics = Statistics(self._redis, self._circuit_breaker)
        # Of the jobs of a list, few or none have changed since the last one.
        self._listed: TTLCache[str, Job] = TTLCache(MAX_LISTED, LISTED_SECONDS)
        self._listed_lock = threading.Lock()
        self._on_call = on_call
        self.lease_seconds = lease_seconds

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def _on_connect(self) -> None:
        self.monitor.invalidate()

    # ------------------------------------------------------------------ for the API

    def create(
        self,
        job_id: str,
        job_input: JobInput,
        options: SubmissionOptions = _DEFAULT_OPTIONS,
        limits: QueueLimits = _UNLIMITED,
        context: SubmissionContext = _DEFAULT_CONTEXT,
    ) -> Job:
        """Queue a new job. Its blobs must be reserved and written before.

        A known idempotency key returns the job of its first use; `find_replay` only looks it up.
        Raises IdempotencyConflict if that request was another one, QuotaExceeded, QueueFull, and
        ImageNotFound if a blob is no longer reserved: it may have been deleted. Raises StoreUnsafe
        if the server's settings may lose the job, and IntakePaused.
        """
        submission = serialize(job_input, options, limits, context)
        return self.get(self._create(job_id, [job_id], [submission]))

    def create_batch(
        self,
        batch_id: str,
        inputs: Sequence[JobInput],
        options: SubmissionOptions,
        limits: QueueLimits,
        context: SubmissionContext = _DEFAULT_CONTEXT,
    ) -> Batch:
        """Queue several jobs with the same options, all or none. Raises what `create` does."""
        context = context.model_copy(update={"batch_id": batch_id})
        submissions = [serialize(job_input, options, limits, context) for job_input in inputs]
        hashes = [submission["request_hash"] for submission in submissions]
        submissions[0]["request_hash"] = context.request_hash or sha256_hex(
            " ".join(["batch", *hashes])
        )
        ids = [new_job_id() for _ in submissions]
        return self.get_batch(self._create(batch_id, ids, submissions), context.owner)

    def _create(self, new_id: str, ids: list[str], submissions: list[dict[str, Any]]) -> str:
        """Create a job or a batch. Returns its id, or that of an earlier one with the same key."""
        self.monitor.require_safe()
        entry = audit.build_entry("job.create", new_id)
        if new_id not in ids:
            entry = audit.build_entry("batch.create", new_id, jobs=len(ids))
        try:
            outcome, created_id = self._call(
                "create",
                new_id,
                json.dumps(ids),
                json.dumps(submissions),
                entry=entry,
            )
        except errors.StoreUnsafe:  # too few replicas have it
            # With a key, the client's next request may have found the job, and been answered.
            if "key_hash" not in submissions[0]:
                self._discard(ids)
            raise
        if outcome == "conflict":
            raise errors.IdempotencyConflict()
        if outcome == "no_image":
            raise errors.ImageNotFound()
        if outcome == "records":
            raise errors.QuotaExceeded(
                "You have the maximum number of jobs, and your oldest ones are pinned or have not "
                "ended. Delete or unpin some.",
                retry_seconds=60.0,
            )
        if outcome == "paused":
            raise errors.IntakePaused()
        if outcome != "created":
            raise self._make_limit_error(outcome)
        # Again: the call may have reconnected, to a server that came back with other settings.
        try:
            self.monitor.require_safe()
        except errors.Unavailable:
            if created_id == new_id:
                self._discard(ids)
            raise
        return str(created_id)

    def _discard(self, job_ids: Sequence[str]) -> None:
        """Delete jobs that are stored and not accepted, so that they do not run."""
        with suppress(errors.Unavailable, errors.NotFound):
            for job_id in job_ids:
                self.delete(job_id)

    def check_limits(
        self,
        owner: str,
        limits: QueueLimits,
        count: int = 1,
        picture_bytes: Mapping[str, int] | None = None,
    ) -> None:
        """Raise QuotaExceeded or QueueFull if `count` more jobs exceed the limits now.

        picture_bytes: the sizes of their pictures, by digest.
        Raises StoreUnsafe and IntakePaused, too. `create` checks again. This earlier check keeps
        the pictures of a refused submission from being stored.
        """
        self.monitor.require_safe()
        sizes = picture_bytes or {}
        with self._circuit_breaker, self._redis.pipeline() as pipe:
            pipe.zcard(f"{PREFIX}queue:{owner}")
            pipe.zcard(f"{PREFIX}jobs_of:{owner}:running")
            pipe.zcard(f"{PREFIX}queue")
            pipe.hget(f"{PREFIX}pending_sizes:{owner}", "sum")
            pipe.hmget(f"{PREFIX}pending:{owner}", ["", *sizes])
            pipe.exists(f"{PREFIX}intake_paused")
            own_queued, own_running, queued, pending, (_, *uses), is_paused = pipe.execute()
        if is_paused:
            raise errors.IntakePaused()
        if limits.per_owner is not None and own_queued + own_running + count > limits.per_owner:
            raise self._make_limit_error("quota")
        new = sum(size for size, use in zip(sizes.values(), uses, strict=True) if use is None)
        if limits.pending_bytes is not None and int(pending or 0) + new > limits.pending_bytes:
            raise self._make_limit_error("bytes")
        if limits.queued is not None and queued + count > limits.queued:
            raise self._make_limit_error("full")

    def _make_limit_error(self, outcome: str) -> errors.ImpastoError:
        load = self.get_load()
        job_seconds = (load.average_job_seconds or 2.0) / max(1, load.workers)
        retry_seconds = min(max(1.0, job_seconds), 600.0)
        if outcome == "quota":
            return errors.QuotaExceeded(retry_seconds=retry_seconds)
        if outcome == "bytes":
            return errors.QuotaExceeded(
                "The pictures of your queued and running jobs fill your quota of bytes; send fewer "
                "or smaller ones, or try again when a job has ended.",
                retry_seconds=retry_seconds,
            )
        return errors.QueueFull(retry_seconds=retry_seconds)

    def get_batch(self, batch_id: str, owner: str = ANY_OWNER) -> Batch:
        """Return the owner's remaining jobs of a batch. Raises BatchNotFound if there are none."""
        jobs = [job for job in self._read(self._batch_ids(batch_id), owner) if job is not None]
        if not jobs:
            raise errors.BatchNotFound()
        return Batch.from_jobs(batch_id, jobs)

    def cancel_batch(self, batch_id: str, owner: str = ANY_OWNER) -> Batch:
        """Cancel every job of the batch, as `cancel` does. Raises BatchNotFound.

        The last ones first: a worker that ends the running job would claim the next one.
        """
        for job_id in reversed(self._batch_ids(batch_id)):
            self._call("cancel", owner, job_id, entry=audit.build_entry("job.cancel", job_id))
        return self.get_batch(batch_id, owner)

    def delete_batch(self, batch_id: str, owner: str = ANY_OWNER) -> None:
        """Delete every job of the batch, as `delete` does, and as `cancel_batch` the last first."""
        for job_id in reversed(self._batch_ids(batch_id)):
            self.delete(job_id, owner)

    def find_result(self, job_input: JobInput, owner: str = LOCAL_OWNER) -> str | None:
        """Return the digest of the result that a submission with `reuse` may get, or None."""
        with self._circuit_breaker:
            found: Any = self._redis.hget(f"{PREFIX}results:{owner}", fingerprint(job_input))
            output: Any = found and self._redis.hget(f"{PREFIX}job:{found}", "output")
        return output or None

    def find_replay(self, key: str, request: str, owner: str = LOCAL_OWNER) -> str | None:
        """Return the id of the job or batch that this request created before, or None.

        key: the idempotency key; request: the hash of the request. Raises IdempotencyConflict if
        the key belongs to another request, and StoreUnsafe if too few replicas have the job: its
        first request may have failed for that reason.
        """
        with self._circuit_breaker:
            name = f"{PREFIX}replay:{owner}:{sha256_hex(key)}"
            replay: Any = self._run_replicated("get", name)
            if replay is None:
                return None
            request_hash, found = replay.split(" ")
            if not self._redis.exists(f"{PREFIX}job:{found}", f"{PREFIX}batch:{found}"):
                return None
        if request_hash != request:
            raise errors.IdempotencyConflict()
        return str(found)

    def get(self, job_id: str, owner: str = ANY_OWNER) -> Job:
        """Return a job. Raises JobNotFound, also for a job of another owner."""
        job = self._read([job_id], owner)[0]
        if job is None:
            raise errors.JobNotFound()
        return job

    def list_page(
        self,
        *,
        limit: int,
        before: int | None = None,
        statuses: Sequence[Status] = (),
        owner: str = LOCAL_OWNER,
    ) -> tuple[list[Job], int | None]:
        """Return a page of the owner's jobs, newest first, and the cursor of the next page or None.

        limit: the maximum number of jobs; before: the cursor. statuses: only jobs in one of these;
        empty: all. A job whose status changes during the call may appear in its new status.
        """
        upper = "+inf" if before is None else f"({before}"
        with self._circuit_breaker, self._redis.pipeline() as pipe:
            for ending in [f":{status}" for status in statuses] or [""]:
                index = f"{PREFIX}jobs_of:{owner}{ending}"
                pipe.zrevrangebyscore(index, upper, "-inf", start=0, num=limit + 1, withscores=True)
            rows: Any = sorted(chain(*pipe.execute()), key=lambda row: -row[1])
        job_ids = [job_id for job_id, _ in rows[:limit]]
        with self._listed_lock:
            known = [self._listed.get(job_id) for job_id in job_ids]
        jobs = [job for job in self._read(job_ids, owner, known) if job is not None]
        with self._listed_lock:
            self._listed.update((job.id, job) for job in jobs)
        return jobs, int(rows[limit - 1][1]) if len(rows) > limit else None

    def cancel(self, job_id: str, owner: str = ANY_OWNER) -> Job:
        """Cancel a queued job at once; ask the worker of a running one to stop. Raises JobNotFound.

        An ended job stays as it is.
        """
        entry = audit.build_entry("job.cancel", job_id)
        if self._call("cancel", owner, job_id, entry=entry) is None:
            raise errors.JobNotFound()
        return self.get(job_id, owner)

    def set_pinned(self, job_id: str, owner: str = ANY_OWNER, *, pinned: bool = True) -> Job:
        """Exempt the job from expiry, or end the exemption. Raises JobNotFound."""
        entry = audit.build_entry("job.pin" if pinned else "job.unpin", job_id)
        if self._call("set_pinned", owner, job_id, int(pinned), entry=entry) is None:
            raise errors.JobNotFound()
        return self.get(job_id, owner)

    def update_spec(
        self, job_id: str, update: Callable[[JobInput], JobInput], owner: str = ANY_OWNER
    ) -> Job:
        """Replace the input of an unfinished job by `update(input)`. The images must stay the same.

        A worker that runs the job gets a signal. `update` is called again if another update came
        first. Raises JobNotFound, JobAlreadyEnded, Conflict after MAX_SPEC_UPDATES updates, and
        what `update` raises.
        """
        while True:
            job = self.get(job_id, owner)
            if job.status.has_ended:
                raise errors.JobAlreadyEnded()
            new = update(job.input)
            if new == job.input:
                return job
            if job.spec_update_count >= MAX_SPEC_UPDATES:
                raise errors.Conflict(
                    f"The spec of a job can change at most {MAX_SPEC_UPDATES} times."
                )
            new_json = new.model_dump_json()
            outcome = self._call(
                "update_spec",
                owner,
                job_id,
                job.spec_update_count,
                new_json,
                sha256_hex(new_json),
                entry=audit.build_entry("job.update", job_id),
            )
            if outcome is None:
                raise errors.JobNotFound()
            if outcome == "ended":
                raise errors.JobAlreadyEnded()

    def delete(self, job_id: str, owner: str = ANY_OWNER) -> None:
        """Delete the job in any status. The garbage collector deletes blobs that no job uses."""
        self._call("delete", owner, job_id, entry=audit.build_entry("job.delete", job_id))

    def list_frames(self, job_id: str, owner: str = ANY_OWNER) -> list[Frame]:
        """Return the frames of the run, in order. Raises JobNotFound."""
        with self._circuit_breaker, self._redis.pipeline() as pipe:
            pipe.hget(f"{PREFIX}job:{job_id}", "owner")
            pipe.lrange(f"{PREFIX}frames:{job_id}", 0, -1)
            job_owner, rows = pipe.execute()
        if job_owner is None or owner not in (ANY_OWNER, job_owner):
            raise errors.JobNotFound()
        return [Frame.model_validate_json(row) for row in rows]

    def get_load(self) -> ServiceLoad:
        """Return the numbers of queued jobs, running jobs and workers, and the mean run time."""
        return parse_load(self._call("get_load"))

    def get_queue_end(self, size_px: int, pool: str = NO_POOL) -> QueuePosition:
        """Return the queue position that a new job of this size and pool would get."""
        position = parse_rank(self._call("read_end", pool, size_px))
        assert position is not None
        return position

    def list_workers(self) -> list[tuple[WorkerInfo | None, bool]]:
        """Return for each live worker its description, if there is one, and whether it is busy."""
        with self._circuit_breaker, self._redis.pipeline(transaction=False) as pipe:
            pipe.time()
            pipe.zrange(f"{PREFIX}leases", 0, 999)
            pipe.zrange(f"{PREFIX}workers", 0, -1, withscores=True)
            pipe.hgetall(f"{PREFIX}worker_info")
            now, running, heartbeats, infos = pipe.execute()
            for job_id in running:
                pipe.hget(f"{PREFIX}job:{job_id}", "worker")
            busy = set(pipe.execute())
        workers = []
        for worker, heartbeat_ms in heartbeats:
            if heartbeat_ms >= _to_ms(now) - WORKER_TTL_MS:
                info = infos.get(worker)
                info = WorkerInfo.model_validate_json(info) if info else None
                workers.append((info, worker in busy))
        return workers

    def get_statistics(self) -> ServiceStatistics:
        """Return the figures of the whole service, for its metrics."""
        return self._statistics.read(WORKER_TTL_MS)

    def get_queue_work_seconds(self) -> float:
        """Estimate the seconds that one worker would take for all queued jobs."""
        return self._statistics.get_queue_work_seconds()

    def get_counts(self) -> tuple[dict[Status, int], int]:
        """Return how many jobs have ever ended, by status, and how many webhooks are pending."""
        with self._circuit_breaker, self._redis.pipeline() as pipe:
            pipe.hgetall(f"{PREFIX}ended")
            pipe.zcard(f"{PREFIX}outbox")
            ended, pending = pipe.execute()
        return {Status(name): int(count) for name, count in ended.items()}, int(pending)

    def ping(self) -> None:
        """Check that the server answers. Raises StoreUnavailable."""
        with self._circuit_breaker:
            self._redis.ping()

    def check_writable(self) -> None:
        """Check that the server persists a write. Raises StoreUnavailable."""
        with self._circuit_breaker:
            # At most one write a second, however often it is asked. A server that takes no writes
            # refuses the command in any case.
            self._redis.set(f"{PREFIX}probe", "1", px=1000, nx=True)

    def has_seen_worker(self) -> bool:
        """Whether a worker has sent a heartbeat within the last minute."""
        with self._circuit_breaker:
            return bool(self._redis.exists(f"{PREFIX}worker_seen"))

    # ------------------------------------------------------------------ for a worker

    def heartbeat(
        self,
        worker: str,
        info: WorkerInfo | None = None,
        use: WorkerUse | None = None,
        done: WorkCounts = _NOTHING_DONE,
    ) -> None:
        """Report that the worker is alive, with its description. Called once a second.

        info: a WorkerReport also tells the store which jobs it takes. use, done: what it uses of
        its device, and what it has done since the last heartbeat.
        """
        workers, worker_info = f"{PREFIX}workers", f"{PREFIX}worker_info"
        with self._circuit_breaker, self._redis.pipeline() as pipe:
            report = info if isinstance(info, WorkerReport) else WorkerReport.of_unknown()
            pipe.time()
            pipe.hexists(f"{PREFIX}suspended", report.id)
            now, is_suspended = pipe.execute()
            now_ms = _to_ms(now)
            pipe.zadd(workers, {worker: now_ms})
            pipe.hset(worker_info, worker, "" if info is None else info.model_dump_json())
            for pool in report.pools:
                # One that is suspended is known, but does not count as live.
                seen_ms = now_ms - (WORKER_TTL_MS + 1) * is_suspended
                pipe.zadd(f"{PREFIX}sizes_of:{pool}", {str(report.claim_size_px): seen_ms}, gt=True)
                pipe.expire(f"{PREFIX}sizes_of:{pool}", KNOWN_SECONDS)
                same_size = f"{PREFIX}workers_of:{pool}/{report.claim_size_px}"
                pipe.zadd(same_size, {worker: seen_ms})
                pipe.zremrangebyscore(same_size, "-inf", now_ms - WORKER_FORGET_MS)
                pipe.pexpire(same_size, WORKER_FORGET_MS)
            pipe.set(f"{PREFIX}size_of:{report.id}", report.claim_size_px, ex=KNOWN_SECONDS)
            pipe.set(f"{PREFIX}worker_seen", now_ms, px=WORKER_FORGET_MS)
            if use is not None:
                self._statistics.report_use(pipe, worker, use, done)
            pipe.zrangebyscore(workers, "-inf", now_ms - WORKER_FORGET_MS)
            *_, forgotten = pipe.execute()
            if forgotten:  # a worker that is alive after all restores its entry within a second
                pipe.zrem(workers, *forgotten)
                pipe.hdel(worker_info, *forgotten)
                pipe.hdel(f"{PREFIX}worker_use", *forgotten)
                pipe.hdel(f"{PREFIX}worker_polls", *forgotten)
                pipe.execute()

    def announce(self, report: WorkerReport) -> None:
        """Report that a process of the worker starts; call it before the first heartbeat.

        If an earlier process held larger jobs, they no longer wait for it.
        """
        with self._circuit_breaker:
            earlier: Any = self._redis.get(f"{PREFIX}size_of:{report.id}")
            if earlier is not None and int(earlier) > report.claim_size_px:
                for pool in report.pools:  # other workers of that size restore it in a second
                    self._redis.zrem(f"{PREFIX}sizes_of:{pool}", earlier)

    def record_model_weights(self, model: str, sha256: str) -> None:
        """Record the weights that workers use for this model from now on."""
        with self._circuit_breaker:
            self._redis.hset(f"{PREFIX}networks", model, sha256)

    def claim(self, token: str, worker: str, report: WorkerReport | None = None) -> Job | None:
        """Start the next queued job that the worker may take, under a lease, or return None.

        report: which jobs it may take; None: all without a pool. token: new and unguessable. If the
        answer is lost, call again with the same token: the call returns the same job, and the lease
        starts anew.
        """
        report = report or WorkerReport.of_unknown()
        args = (report.id, json.dumps(report.pools), report.claim_size_px)
        job_id = self._call("claim", token, worker, self._lease_ms, *args)
        return None if job_id is None else self.get(job_id)

    def renew(self, job_id: str, token: str, spec_update_count: int | None = None) -> LeaseStatus:
        """Extend the lease.

        After `cancel` or `deadline_exceeded` the worker stops the run and ends the job accordingly.
        After `stale` it discards the run. `spec_updated`: the spec has more updates than the
        `spec_update_count` that the run knows.
        """
        status: LeaseStatus = self._call(
            "renew",
            job_id,
            token,
            self._lease_ms,
            "" if spec_update_count is None else spec_update_count,
        )
        return status

    def lock_spec(self, job_id: str, token: str, spec_update_count: int) -> LeaseStatus:
        """Allow no further spec update, because the run is complete.

        `spec_updated`: there is an update that the run does not know; nothing is locked.
        """
        status: LeaseStatus = self._call("lock_spec", job_id, token, spec_update_count)
        return status

    def wait_for_signal(self, token: str, seconds: float) -> bool:
        """Wait for a signal to the run under this token. Returns False after the timeout."""
        with self._circuit_breaker:
            return self._redis.blpop([f"{PREFIX}signal:{token}"], timeout=seconds) is not None

    def send_signal(self, token: str) -> None:
        """Wake `wait_for_signal`."""
        with self._circuit_breaker, self._redis.pipeline() as pipe:
            pipe.lpush(f"{PREFIX}signal:{token}", "1")
            pipe.pexpire(f"{PREFIX}signal:{token}", 10_000)
            pipe.execute()

    def report_progress(
        self, job_id: str, token: str, progress: JobProgress | None, preview: str | None = None
    ) -> LeaseStatus:
        """Record the progress, and the digest of a preview that is reserved and written.

        progress: None before the first iteration.
        """
        fields = progress.model_dump_json() if progress else ""
        status: LeaseStatus = self._call("report_progress", job_id, token, fields, preview or "")
        return status

    def save_checkpoint(self, job_id: str, token: str, checkpoint: str) -> LeaseStatus:
        """Record the checkpoint from which the next attempt resumes."""
        status: LeaseStatus = self._call("save_checkpoint", job_id, token, checkpoint)
        return status

    def add_frame(self, job_id: str, token: str, frame: Frame) -> int:
        """Append a frame whose blob is reserved and written. The store assigns its index.

        Returns how often the frames were thinned out: after each time the run should add frames
        half as often. Returns -1 if the token is stale.
        """
        fields = json.dumps({**frame.model_dump(exclude={"index"}), "digest": frame.digest})
        thinnings = self._call("add_frame", job_id, token, fields, MAX_FRAMES)
        return -1 if thinnings == "stale" else int(thinnings)

    def succeed(
        self, job_id: str, token: str, output: Output, model: ModelUsed, metrics: dict[str, float]
    ) -> LeaseStatus:
        """End the job with a result that is reserved and written. `stale`: nothing changed."""
        fields = {"model": model.model_dump_json(), "metrics": json.dumps(metrics)}
        return self._finish(job_id, token, Status.SUCCEEDED, fields, output)

    def fail(
        self, job_id: str, token: str, error: errors.ImpastoError, output: Output | None = None
    ) -> LeaseStatus:
        """End the job with an error and perhaps a partial result. `stale`: nothing changed."""
        return self._finish(job_id, token, Status.FAILED, {"error": _error_json(error)}, output)

    def end_canceled(self, job_id: str, token: str, output: Output | None = None) -> LeaseStatus:
        """End the job when `renew` returns `cancel`, with the image so far. `stale`: no change."""
        return self._finish(job_id, token, Status.CANCELED, {}, output)

    def release(self, job_id: str, token: str) -> LeaseStatus:
        """Requeue the job. It keeps its place, and the attempt does not count."""
        status: LeaseStatus = self._call("release", job_id, token)
        return status

    def release_to_larger(self, job_id: str, token: str, report: WorkerReport) -> bool:
        """Requeue a job that this worker cannot hold, for a larger one.

        Returns False, and changes nothing, if no larger worker of its pool is known, or if the
        token is stale.
        """
        outcome = self._call("release_to_larger", job_id, token, report.claim_size_px)
        return bool(outcome == "ok")

    def count_queued(self) -> int:
        """Return how many jobs are queued."""
        with self._circuit_breaker:
            return int(self._redis.zcard(f"{PREFIX}queue"))

    def is_running(self, worker: str) -> bool:
        """Whether this worker runs a job."""
        with self._circuit_breaker, self._redis.pipeline(transaction=False) as pipe:
            running: Any = self._redis.zrange(f"{PREFIX}leases", 0, -1)
            for job_id in running:
                pipe.hget(f"{PREFIX}job:{job_id}", "worker")
            return worker in pipe.execute()

    def is_idle_with_backlog(self, worker: str) -> bool:
        """Whether jobs are queued while this worker runs none and has not asked for one."""
        with self._circuit_breaker, self._redis.pipeline() as pipe:
            pipe.time()
            pipe.zcard(f"{PREFIX}queue")
            pipe.hget(f"{PREFIX}worker_polls", worker)
            now, queued, polled_ms = pipe.execute()
        has_asked = polled_ms is not None and _to_ms(now) - int(polled_ms) < POLL_MS
        return bool(queued) and not has_asked and not self.is_running(worker)

    def requeue_jobs_of(self, worker: str) -> int:
        """Requeue the jobs of a worker whose process has exited, before their leases expire.

        Returns how many.
        """
        return int(
            self._call("requeue_jobs_of", worker, MAX_ATTEMPTS, _error_json(errors.WorkerLost()))
        )

    # ------------------------------------------------------------------ for the reaper

    def acquire_leadership(self, process_id: str, term_seconds: float) -> bool:
        """Elect or confirm this process as the reaper for `term_seconds`. False: another leads."""
        lock = self._redis.lock(f"{PREFIX}leader", timeout=term_seconds, thread_local=False)
        with self._circuit_breaker:
            lock.local.token = process_id
            with suppress(LockNotOwnedError):  # if this process leads, its term starts anew
                return bool(lock.reacquire())
            return bool(lock.acquire(blocking=False, token=process_id))

    def reap_expired_leases(self) -> tuple[int, int]:
        """Requeue or end jobs whose lease has expired, and end queued jobs after their deadline.

        Returns (how many are queued again, how many have ended).
        """
        requeued, ended = self._call(
            "reap_expired_leases", MAX_ATTEMPTS, _error_json(errors.WorkerLost())
        )
        return int(requeued), int(ended)

    def expire_due(self, job_retention_seconds: float, max_jobs: int = 100) -> int:
        """Delete the images of expired jobs, and their records `job_retention_seconds` later.

        Returns how many, of at most `max_jobs` each.
        """
        return int(self._call("expire_due", round(job_retention_seconds * 1000), max_jobs))

    def rebuild_indexes(self) -> None:
        """Index the records and sum the uploads that an earlier version has written.

        Safe to repeat, and while both versions run. Each step is short, for the other callers.
        """
        with self._circuit_breaker:
            owners: Any = {*self._redis.hkeys(f"{PREFIX}entries"), LOCAL_OWNER}
            owners |= {*self._redis.hkeys(f"{PREFIX}keys")}  # of core/auth/api_keys.py
        for owner in sorted(owners):
            entry: Any = 0
            while entry is not None:
                entry = self._call("index_records", owner, entry)
            while self._call("move_upload_sizes", owner):
                pass
        with self._circuit_breaker:
            lanes: Any = self._redis.hkeys(f"{PREFIX}lanes")
        for lane in lanes:
            place: Any = ""
            while place is not None:
                place = self._call("sweep_lane", lane, place)

    def count_expiring(self) -> int:
        """Count the ended jobs that still have their images, without pinned ones."""
        with self._circuit_breaker:
            return int(self._redis.zcard(f"{PREFIX}expiry"))

    def expire_early(self, count: int) -> int:
        """Let the `count` jobs that would expire next expire now. Returns how many."""
        expiry = f"{PREFIX}expiry"
        if count < 1:
            return 0
        with self._circuit_breaker:
            job_ids: Any = self._redis.zrange(expiry, 0, count - 1)
            if job_ids:  # not those that were pinned or deleted meanwhile
                self._redis.zadd(expiry, dict.fromkeys(job_ids, 0), xx=True)
        return len(job_ids)

    # ------------------------------------------------------------------ for the webhook dispatcher

    def claim_delivery(
        self,
        token: str,
        lease_seconds: float,
        max_tries: int,
        blocked: Collection[str] = (),
    ) -> tuple[Job, int] | None:
        """Claim the webhook that is due next. Returns its job and the number of this try, or None.

        token: must be new. No other dispatcher claims the same webhook before the lease expires or
        `complete_delivery` reschedules it. blocked: owners and destinations to skip.
        """
        lease_ms = round(lease_seconds * 1000)
        args = (token, lease_ms, max_tries, json.dumps(sorted(blocked)))
        found: Any = 0
        while isinstance(found, int):  # it has postponed so many blocked ones and is not through
            found = self._call("claim_delivery", *args, found)
        if found is None:
            return None
        job = self._read([found[0]], ANY_OWNER)[0]
        if job is None:  # it was deleted meanwhile, or its record is damaged
            self.complete_delivery(found[0], token, "gone")
            return None
        return job, int(found[1])

    def complete_delivery(
        self,
        job_id: str,
        token: str,
        outcome: DeliveryOutcome,
        retry_seconds: float | None = None,
    ) -> bool:
        """Record the outcome of a delivery, or schedule the next try after `retry_seconds`.

        Returns False if the claim is no longer valid; then nothing changes.
        """
        retry_ms = "" if retry_seconds is None else round(retry_seconds * 1000)
        return bool(self._call("complete_delivery", job_id, token, retry_ms, outcome) == "ok")

    # ------------------------------------------------------------------ blob references

    def reserve(
        self,
        digest: str,
        keep_seconds: float = RESERVATION_SECONDS,
        owner: str = NO_OWNER,
        *,
        size_bytes: int = 0,
        max_bytes: float = 0,
        max_uploads: int = MAX_UPLOADS,
    ) -> None:
        """Protect a blob from the garbage collector, before it is written.

        During `keep_seconds` the owner may name it in a submission. Waits up to 2 s while the old
        file of the same digest is being deleted. size_bytes: of an upload; max_bytes and
        max_uploads: of all the owner's uploads. Raises Unavailable if the deletion takes longer,
        QuotaExceeded if the upload does not fit.
        """
        keep_ms = round(keep_seconds * 1000)
        args = (digest, keep_ms, owner, size_bytes, round(max_bytes), max_uploads)
        for _ in range(100):
            if self._call_within_quota("reserve", *args):
                return
            time.sleep(0.02)
        raise errors.Unavailable()

    def check_upload(
        self, digest: str, owner: str, *, size_bytes: int, max_bytes: float, max_uploads: int
    ) -> None:
        """Raise QuotaExceeded if `reserve` would not count this upload now. Changes nothing."""
        args = (digest, owner, size_bytes, round(max_bytes), max_uploads)
        self._call_within_quota("check_upload", *args)

    def is_owner(self, owner: str, digest: str) -> bool:
        """Whether the owner uploaded the blob and it is reserved, or a job of theirs uses it."""
        with self._circuit_breaker, self._redis.pipeline() as pipe:
            pipe.hexists(f"{PREFIX}refs:{owner}", digest)
            pipe.zscore(f"{PREFIX}uploads:{owner}", digest)
            pipe.time()
            is_used, until_ms, now = pipe.execute()
        return bool(is_used) or (until_ms is not None and until_ms > _to_ms(now))

    def mark_deleting(self) -> Sequence[str]:
        """Return unused, unreserved blobs to delete now. Then call `confirm_deleted` for each.

        Returns none if the store is not that of the pictures: it does not know what they are for.
        """
        digests: list[str] = self._call("mark_deleting", self.monitor.identity)
        return digests

    def confirm_deleted(self, *digests: str) -> None:
        """Record that the files of marked blobs are deleted."""
        with self._circuit_breaker:
            self._redis.srem(f"{PREFIX}deleting", *digests)

    @contextmanager
    def try_deletion_lock(self, *, renews: bool = False) -> Iterator[bool]:
        """Try to lock deletions against other machines. Yields whether it did.

        The lock ends after DELETION_LOCK_SECONDS if its process has died; also of a living one,
        unless it `renews` the lock.
        """
        lock = self._redis.lock(
            f"{PREFIX}deletions", timeout=DELETION_LOCK_SECONDS, thread_local=False
        )
        with self._circuit_breaker:
            is_locked = bool(lock.acquire(blocking=False))
        over = threading.Event()

        def renew() -> None:
            while not over.wait(DELETION_LOCK_SECONDS / 10):
                with suppress(errors.StoreUnavailable, LockNotOwnedError), self._circuit_breaker:
                    lock.reacquire()

        if is_locked and renews:
            threading.Thread(target=renew, name="deletion-lock", daemon=True).start()
        try:
            yield is_locked
        finally:
            over.set()
            if is_locked:
                with suppress(LockNotOwnedError), self._circuit_breaker:
                    lock.release()

    def register_orphans(self, digests: Sequence[str], keep_seconds: float) -> int:
        """Let blobs that the store does not know expire after `keep_seconds`. Returns how many."""
        if not digests:
            return 0
        with self._circuit_breaker, self._redis.pipeline() as pipe:
            pipe.time()
            pipe.hmget(f"{PREFIX}refs", digests)
            pipe.smismember(f"{PREFIX}deleting", [*digests])
            now, uses, deleting = pipe.execute()
            until_ms = _to_ms(now) + round(keep_seconds * 1000)
            for digest, use_count, is_deleting in zip(digests, uses, deleting, strict=True):
                if use_count is None and not is_deleting:
                    # NX: a reservation stays. A job that uses the blob meanwhile protects it.
                    pipe.zadd(f"{PREFIX}orphans", {digest: until_ms}, nx=True)
            return sum(pipe.execute())

    # ------------------------------------------------------------------ internal

    @property
    def _lease_ms(self) -> int:
        return round(self.lease_seconds * 1000)

    def _finish(
        self, job_id: str, token: str, status: Status, fields: dict[str, str], output: Output | None
    ) -> LeaseStatus:
        if output is not None:
            fields = {"output": output.id, "outputs": json.dumps([output.model_dump()]), **fields}
        lease_status: LeaseStatus = self._call(
            "finish", job_id, token, status, *chain.from_iterable(fields.items())
        )
        return lease_status

    def _call(self, function: str, *args: str | int, entry: tuple[str, str] | None = None) -> Any:
        """Call a Lua function. Loads the library if the server does not have it yet.

        entry: of the audit log, with its stream; the function appends it in the same step. Raises
        StoreUnsafe if too few replicas have a new job; the primary has it.
        """
        version, code = load_library()
        call = partial(self._run_replicated, "fcall") if function == "create" else self._redis.fcall
        name, keys = f"{version}_{function}", [PREFIX]
        if entry is not None:
            stream, text = entry
            keys, args = [PREFIX, stream], (*args, text)
        began, has_succeeded = time.monotonic(), False
        try:
            with self._circuit_breaker:
                try:
                    result = call(name, len(keys), *keys, *args)
                except ResponseError as error:
                    if NO_FUNCTION not in str(error):
                        raise
                    self._redis.function_load(code, replace=True)
                    result = call(name, len(keys), *keys, *args)
            has_succeeded = True
            return result
        finally:
            if self._on_call is not None:
                self._on_call(function, time.monotonic() - began, has_succeeded)

    def _run_replicated(self, command: str, *args: Any) -> Any:
        """Run a command, and wait until the replicas have all that was written before its end.

        Raises StoreUnsafe if too few have it in time.
        """
        if not self._replicas:
            return getattr(self._redis, command)(*args)
        with self._redis.pipeline(transaction=False) as pipe:
            getattr(pipe, command)(*args)
            pipe.set(f"{PREFIX}probe", "1", px=1000)  # WAIT waits for writes of its own connection
            pipe.wait(self._replicas, REPLICATION_MS)
            result, _, replicas = pipe.execute()
        if replicas < self._replicas:
            raise errors.StoreUnsafe(
                f"No job is accepted: {replicas} of {self._replicas} replicas of the store have it."
            )
        return result

    def _call_within_quota(self, function: str, *args: str | int) -> bool:
        """Return whether the function succeeded. Raises QuotaExceeded."""
        result = 2
        while result == 2:  # it has forgotten some expired uploads, and there are more
            result = self._call(function, *args)
        if result < 0:
            raise errors.QuotaExceeded(
                "Your uploads fill your quota, in bytes or in number; use them by digest, or "
                "wait until one expires.",
                retry_seconds=-result / 1000,
            )
        return result == 1

    def _read(
        self, job_ids: Sequence[str], owner: str, known: Sequence[Job | None] = ()
    ) -> list[Job | None]:
        """Read the jobs; one whose version is that of the known job is neither sent nor parsed."""
        if not job_ids:
            return []
        known = known or [None] * len(job_ids)
        versions = (job.version if job else "" for job in known)
        args = chain.from_iterable(zip(job_ids, versions, strict=True))
        rows = self._call("read_changed", owner, *args)
        return [parse_row(job, row) for job, row in zip(known, rows, strict=True)]

    def _batch_ids(self, batch_id: str) -> list[str]:
        with self._circuit_breaker:
            job_ids: Any = self._redis.zrange(f"{PREFIX}batch:{batch_id}", 0, -1)
        return list(job_ids)


def _to_ms(time: tuple[int, int]) -> int:
    """Convert the answer of the command TIME, (seconds, microseconds)."""
    return time[0] * 1000 + time[1] // 1000


def _error_json(error: errors.ImpastoError) -> str:
    return JobError.of(error).model_dump_json()
