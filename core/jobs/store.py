"""JobStore: the truth about jobs, on Redis (or Valkey). Changes of several keys are Lua functions.

They are in scripts/, one file a topic; scripts/common.lua lists the keys. This module knows no pictures, no Celery, no
HTTP; it reads no settings.
Synchronous: one color, docs/decisions/0002-synchronous-store.md.
"""

import hashlib
import json
import secrets
import time
from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from redis.exceptions import ResponseError

from core import errors
from core.jobs.models import (
    LOCAL_OWNER,
    MAX_ATTEMPTS,
    MAX_FRAMES,
    MAX_SPEC_UPDATES,
    Batch,
    EstimateRequest,
    EstimateResponse,
    Frame,
    Job,
    JobError,
    JobInput,
    JobProgress,
    ModelUsed,
    Output,
    QueueLimits,
    ServiceLoad,
    Status,
    SubmissionContext,
    SubmissionOptions,
    WorkerInfo,
    new_job_id,
)
from core.jobs.serialization import parse_job, parse_load, serialize, sha256_hex
from core.redis_client import PREFIX, CircuitBreaker, connect

LEASE_SECONDS = 5.0
RESERVATION_SECONDS = 600.0  # of a blob, between its writing and the step that uses it
BLOCKING_SECONDS = 0.5  # less than a connection's patience
MAX_ESTIMATE_REQUESTS, ESTIMATE_TTL_MS = 100, 10_000
ANY_OWNER = ""  # the owner of a step that may touch every job
LeaseStatus = Literal["ok", "spec_updated", "cancel", "deadline_exceeded", "stale"]
DeliveryOutcome = Literal["delivered", "gone", "given_up"]

_DEFAULT_OPTIONS, _UNLIMITED = SubmissionOptions(), QueueLimits()
_DEFAULT_CONTEXT = SubmissionContext()

NO_FUNCTION = "Function not found"
# In the order of their dependencies: a local function is known only below its definition.
SCRIPTS = (
    "common",
    "blobs",
    "queue",
    "outbox",
    "lifecycle",
    "submission",
    "queries",
    "maintenance",
)


@cache
def load_library() -> tuple[str, str]:
    """The functions' common prefix and the library's code.

    The server keeps functions on its disk. Their names carry a hash of the code, so that a new version never runs the
    old one's functions, and both can serve side by side while a service is renewed.
    """
    folder = Path(__file__).with_name("scripts")
    code = "\n".join((folder / f"{topic}.lua").read_text(encoding="utf-8") for topic in SCRIPTS)
    version = f"impasto_{hashlib.sha256(code.encode()).hexdigest()[:12]}"
    return version, code.replace("impasto_VERSION", version)


class JobStore:
    """The verbs of a job's life. Every method raises StoreUnavailable when the server does not answer in time."""

    def __init__(
        self, redis_url: str, *, lease_seconds: float = LEASE_SECONDS, cooldown_seconds: float = 0
    ) -> None:
        """rest_seconds: as of core.redis_client.CircuitBreaker, for a process that many ask."""
        self._redis, self._unavailable = connect(redis_url), CircuitBreaker(cooldown_seconds)
        self.lease_seconds = lease_seconds

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()

    # ------------------------------------------------------------------ for the API

    def create(
        self,
        job_id: str,
        job_input: JobInput,
        options: SubmissionOptions = _DEFAULT_OPTIONS,
        limits: QueueLimits = _UNLIMITED,
        context: SubmissionContext = _DEFAULT_CONTEXT,
    ) -> Job:
        """Put a new job into the queue. Its blobs must be held (`reserve`) and written before.

        The same idempotency key again gives the job that it made the first time (`find_replay` asks for it beforehand).
        Raises IdempotencyConflict if that was another request, ImageNotFound if a blob is no longer held (the janitor
        may have deleted it), QuotaExceeded, QueueFull.
        """
        word, found = self._step(
            "create", job_id, json.dumps(serialize(job_input, options, limits, context))
        )
        self._check(word)
        return self.get(found)

    def create_batch(
        self,
        batch_id: str,
        inputs: Sequence[JobInput],
        options: SubmissionOptions,
        limits: QueueLimits,
        context: SubmissionContext = _DEFAULT_CONTEXT,
    ) -> Batch:
        """The same for several jobs with the same options: all of them or none."""
        context = context.model_copy(update={"batch_id": batch_id})
        orders = [serialize(job_input, options, limits, context) for job_input in inputs]
        orders[0]["print"] = context.request_hash or sha256_hex(
            " ".join(["batch", *(order["print"] for order in orders)])
        )
        ids = [new_job_id() for _ in orders]
        word, found = self._step("create_batch", batch_id, json.dumps(ids), json.dumps(orders))
        self._check(word)
        return self.get_batch(found, context.owner)

    def _check(self, word: str) -> None:
        """What a submission was answered with."""
        if word == "conflict":
            raise errors.IdempotencyConflict()
        if word == "gone":
            raise errors.ImageNotFound()
        if word == "records":
            raise errors.QuotaExceeded(
                "You have as many jobs as are kept, and those that waited longest are pinned or have not ended; "
                "delete some, or take their pins away.",
                retry_seconds=60.0,
            )
        if word != "created":
            load = self.get_load()
            retry_seconds = min(
                max(1.0, (load.average_job_seconds or 2.0) / max(1, load.workers)), 600.0
            )
            raise (errors.QuotaExceeded if word == "quota" else errors.QueueFull)(
                retry_seconds=retry_seconds
            )

    def get_batch(self, batch_id: str, owner: str = ANY_OWNER) -> Batch:
        """Its jobs that there still are. Raises BatchNotFound where there are none, or they are another's."""
        with self._unavailable:
            ids: Any = self._redis.zrange(f"{PREFIX}batch:{batch_id}", 0, -1)
        jobs = [job for job in self._read(ids, owner) if job is not None]
        if not jobs:
            raise errors.BatchNotFound()
        return Batch.of(batch_id, jobs)

    def cancel_batch(self, batch_id: str, owner: str = ANY_OWNER) -> Batch:
        """Cancel every job of it, as `cancel` does. Raises BatchNotFound."""
        self._step("cancel_batch", owner, batch_id)
        return self.get_batch(batch_id, owner)

    def delete_batch(self, batch_id: str, owner: str = ANY_OWNER) -> None:
        """Delete every job of it, as `delete` does."""
        self._step("delete_batch", owner, batch_id)

    def find_replay(self, key: str, request: str, owner: str = LOCAL_OWNER) -> str | None:
        """The id of the job, or the batch, that the same request (a hash of it) made under this idempotency key before.

        Raises IdempotencyConflict if the key was used for another request.
        """
        word, found = self._step("find_replay", owner, sha256_hex(key), request) or (None, None)
        if word == "conflict":
            raise errors.IdempotencyConflict()
        return None if found is None else str(found)

    def get(self, job_id: str, owner: str = ANY_OWNER) -> Job:
        """Raises JobNotFound, also for a job of another owner."""
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
        """Newest first: at most `limit` of the owner's jobs, before entry `before`; and the entry to go on from.

        statuses: of those in one of them; none: of all. One that changes meanwhile may be seen in its new one.
        """
        upper = "+inf" if before is None else f"({before}"
        with self._unavailable, self._redis.pipeline() as pipe:
            for ending in [f":{status}" for status in statuses] or [""]:
                index = f"{PREFIX}jobs_of:{owner}{ending}"
                pipe.zrevrangebyscore(index, upper, "-inf", start=0, num=limit + 1, withscores=True)
            rows: Any = sorted(chain(*pipe.execute()), key=lambda row: -row[1])
        jobs = [
            job
            for job in self._read([job_id for job_id, _ in rows[:limit]], owner)
            if job is not None
        ]
        return jobs, int(rows[limit - 1][1]) if len(rows) > limit else None

    def cancel(self, job_id: str, owner: str = ANY_OWNER) -> Job:
        """A queued job is canceled at once, a running one is asked to stop; an ended one stays. Raises JobNotFound."""
        if self._step("cancel", owner, job_id) is None:
            raise errors.JobNotFound()
        return self.get(job_id, owner)

    def set_pinned(self, job_id: str, owner: str = ANY_OWNER, *, pinned: bool = True) -> Job:
        """Keep the job for good; or no longer, from now on. Raises JobNotFound."""
        if self._step("set_pinned", owner, job_id, int(pinned)) is None:
            raise errors.JobNotFound()
        return self.get(job_id, owner)

    def update_spec(
        self, job_id: str, changed: Callable[[JobInput], JobInput], owner: str = ANY_OWNER
    ) -> Job:
        """Give a job that waits or runs another spec: what `changed` makes of its input. Its pictures stay.

        A worker that runs it is told at once. Raises JobNotFound, JobAlreadyEnded, Conflict where that was done too
        often, and what `changed` raises; it is asked again where somebody else was quicker.
        """
        while True:
            job = self.get(job_id, owner)
            if job.status.has_ended:
                raise errors.JobAlreadyEnded()
            new = changed(job.input)
            if new == job.input:
                return job
            if job.spec_update_count >= MAX_SPEC_UPDATES:
                raise errors.Conflict(f"A job may be spec_updates {MAX_SPEC_UPDATES} times.")
            painting = new.model_dump_json()
            word = self._step(
                "update_spec", owner, job_id, job.spec_update_count, painting, sha256_hex(painting)
            )
            if word is None:
                raise errors.JobNotFound()
            if word == "ended":
                raise errors.JobAlreadyEnded()

    def delete(self, job_id: str, owner: str = ANY_OWNER) -> None:
        """Forget the job, whatever its status; blobs that no other job uses are left to the janitor."""
        self._step("delete", owner, job_id)

    def list_frames(self, job_id: str, owner: str = ANY_OWNER) -> list[Frame]:
        """Small pictures of the run, in their order. Raises JobNotFound."""
        rows = self._step("list_frames", owner, job_id)
        if rows is None:
            raise errors.JobNotFound()
        return [Frame.model_validate_json(row) for row in rows]

    def get_load(self) -> ServiceLoad:
        """What waits, what runs, who works."""
        return parse_load(self._step("get_load"))

    def list_workers(self) -> list[tuple[WorkerInfo | None, bool]]:
        """What each live worker tells of itself, and whether it runs a job."""
        return [
            (WorkerInfo.model_validate_json(told) if told else None, bool(busy))
            for told, busy in self._step("list_workers")
        ]

    def get_counts(self) -> tuple[dict[Status, int], int]:
        """How many jobs have ended in which way, since ever; how many webhooks wait to be sent."""
        ended, waiting = self._step("get_counts")
        return {
            Status(name): int(count) for name, count in zip(ended[::2], ended[1::2], strict=True)
        }, waiting

    def ping(self) -> None:
        """Raises StoreUnavailable."""
        with self._unavailable:
            self._redis.ping()

    # ------------------------------------------------------------------ for a worker

    def heartbeat(self, worker: str, told: WorkerInfo | None = None) -> None:
        """A worker lives, and what it tells of itself; to be said once a second."""
        self._step("heartbeat", worker, "" if told is None else told.model_dump_json())

    def record_model_weights(self, model: str, sha256: str) -> None:
        """The weights that jobs with this model are painted with, from now on."""
        with self._unavailable:
            self._redis.hset(f"{PREFIX}networks", model, sha256)

    def claim(self, token: str, worker: str) -> Job | None:
        """Take the next queued job for one lease, or None. The token must be new and unguessable.

        When the answer is lost, ask again with the same token: it is the same job, and no loss of it.
        """
        job_id = self._step("claim", token, worker, self._lease_ms)
        return None if job_id is None else self.get(job_id)

    def renew(self, job_id: str, token: str, spec_update_count: int | None = None) -> LeaseStatus:
        """One more lease. `cancel`, `late`: stop the run and end it so; `stale`: drop it without a word.

        `spec_updates`: its spec was changed more often than the `spec_update_count` that the run knows of.
        """
        status: LeaseStatus = self._step(
            "renew",
            job_id,
            token,
            self._lease_ms,
            "" if spec_update_count is None else spec_update_count,
        )
        return status

    def lock_spec(self, job_id: str, token: str, spec_update_count: int) -> LeaseStatus:
        """The run is at its end: from now on the spec does not change. Not so if it is `spec_updates`: then it goes on."""
        status: LeaseStatus = self._step("lock_spec", job_id, token, spec_update_count)
        return status

    def wait_for_signal(self, token: str, seconds: float) -> bool:
        """Sleep so long, or until somebody asks the run under this token to stop; whether they did."""
        with self._unavailable:
            return self._redis.blpop([f"{PREFIX}signal:{token}"], timeout=seconds) is not None

    def send_signal(self, token: str) -> None:
        """End the sleep of `wait_for_signal`."""
        with self._unavailable, self._redis.pipeline() as pipe:
            pipe.lpush(f"{PREFIX}signal:{token}", "1")
            pipe.pexpire(f"{PREFIX}signal:{token}", 10_000)
            pipe.execute()

    def report_progress(
        self, job_id: str, token: str, progress: JobProgress, preview: str | None = None
    ) -> LeaseStatus:
        """How far the run is, and the digest of the picture so far (held and written before)."""
        status: LeaseStatus = self._step(
            "report_progress", job_id, token, progress.model_dump_json(), preview or ""
        )
        return status

    def save_checkpoint(self, job_id: str, token: str, checkpoint: str) -> LeaseStatus:
        """The next attempt goes on from this checkpoint."""
        status: LeaseStatus = self._step("save_checkpoint", job_id, token, checkpoint)
        return status

    def add_frame(self, job_id: str, token: str, frame: Frame) -> int:
        """One more small picture of the run (held and written before); its index is the store's to choose.

        How often they were frame_thinnings out by now, so as to come half as often from then on; -1 if it was not kept.
        """
        told = json.dumps({**frame.model_dump(exclude={"index"}), "digest": frame.digest})
        return int(self._step("add_frame", job_id, token, told, MAX_FRAMES))

    def succeed(
        self, job_id: str, token: str, output: Output, model: ModelUsed, metrics: dict[str, float]
    ) -> LeaseStatus:
        """End the job with its picture (held and written before). `stale`: nothing was changed."""
        fields = {"model": model.model_dump_json(), "metrics": json.dumps(metrics)}
        return self._finish(job_id, token, Status.SUCCEEDED, fields, output)

    def fail(
        self, job_id: str, token: str, error: errors.ImpastoError, output: Output | None = None
    ) -> LeaseStatus:
        """End the job with an error, and perhaps a picture all the same. `stale`: nothing was changed."""
        return self._finish(job_id, token, Status.FAILED, {"error": _error_json(error)}, output)

    def end_canceled(self, job_id: str, token: str, output: Output | None = None) -> LeaseStatus:
        """End the job because `renew` said `cancel`, with the picture so far. `stale`: nothing was changed."""
        return self._finish(job_id, token, Status.CANCELED, {}, output)

    def release(self, job_id: str, token: str) -> LeaseStatus:
        """Hand the job back; it keeps its place ahead of all later ones, and the attempt does not count."""
        status: LeaseStatus = self._step("release", job_id, token)
        return status

    def is_idle_with_backlog(self, worker: str) -> bool:
        """Whether jobs wait while this worker runs none."""
        with self._unavailable, self._redis.pipeline(transaction=False) as pipe:
            pipe.zcard(f"{PREFIX}queue")
            pipe.zrange(f"{PREFIX}leases", 0, -1)
            queued, running = pipe.execute()
            if queued:
                for job_id in running:
                    pipe.hget(f"{PREFIX}job:{job_id}", "worker")
            return bool(queued) and worker not in pipe.execute()

    def requeue_jobs_of(self, worker: str) -> int:
        """A worker's process has died: put back what it ran, without waiting for the lease; how many."""
        return int(
            self._step("requeue_jobs_of", worker, MAX_ATTEMPTS, _error_json(errors.WorkerLost()))
        )

    # ------------------------------------------------------------------ for the reaper

    def acquire_leadership(self, me: str, term_seconds: float) -> bool:
        """Whether process `me` is the one that reaps for the next `term_seconds`."""
        return bool(self._step("acquire_leadership", me, round(term_seconds * 1000)))

    def reap_expired_leases(self) -> tuple[int, int]:
        """Put jobs whose lease ran out back into the queue, or end them; end what waited too long. (put back, ended)"""
        again, ended = self._step(
            "reap_expired_leases", MAX_ATTEMPTS, _error_json(errors.WorkerLost())
        )
        return int(again), int(ended)

    def expire_due(self, record_seconds: float, most: int = 100) -> int:
        """Let jobs that ended long ago lose their pictures, and so much later their records; how many, at most."""
        return int(self._step("expire_due", round(record_seconds * 1000), most))

    def count_expiring(self) -> int:
        """Ended jobs that still have their pictures; pinned ones do not count."""
        with self._unavailable:
            return int(self._redis.zcard(f"{PREFIX}expiry"))

    def expire_early(self, count: int) -> int:
        """Let the next `count` jobs expire now; how many there were."""
        return int(self._step("expire_early", count))

    # ------------------------------------------------------------------ for a courier

    def claim_delivery(
        self, token: str, lease_seconds: float, most_tries: int
    ) -> tuple[Job, int] | None:
        """Take the ended job whose webhook is due next, and which try this is, from 1; or None.

        Nobody else sends to its host for its owner before the lease is over, or `complete_delivery`. The token must be new.
        """
        found = self._step("claim_delivery", token, round(lease_seconds * 1000), most_tries)
        if found is None:
            return None
        job = self._read([found[0]], ANY_OWNER)[0]
        if job is None:  # deleted in this moment: nobody is on the way to its host
            self.complete_delivery(found[0], token, "gone")
            return None
        return job, int(found[1])

    def complete_delivery(
        self, job_id: str, token: str, end: DeliveryOutcome, again_seconds: float | None = None
    ) -> bool:
        """Say how a delivery went, or when to try again. False: it is another courier's by now, nothing was changed."""
        again = "" if again_seconds is None else round(again_seconds * 1000)
        return bool(self._step("complete_delivery", job_id, token, again, end) == "ok")

    # ------------------------------------------------------------------ estimate_requests to workers

    def request_estimate(
        self, question: EstimateRequest, seconds: float
    ) -> EstimateResponse | None:
        """The answer of whichever worker is first, or None when so long there was none."""
        name, until = secrets.token_hex(16), time.monotonic() + seconds
        with self._unavailable, self._redis.pipeline() as pipe:
            pipe.lpush(f"{PREFIX}estimate_requests", json.dumps([name, question.model_dump()]))
            pipe.ltrim(f"{PREFIX}estimate_requests", 0, MAX_ESTIMATE_REQUESTS - 1)
            pipe.pexpire(
                f"{PREFIX}estimate_requests", ESTIMATE_TTL_MS
            )  # who asked has gone by then
            pipe.execute()
        while (left := until - time.monotonic()) > 0:
            with self._unavailable:
                found: Any = self._redis.blpop(
                    [f"{PREFIX}estimate_reply:{name}"], timeout=min(left, BLOCKING_SECONDS)
                )
            if found is not None:
                return EstimateResponse.model_validate_json(found[1])
        return None

    def next_estimate_request(self) -> tuple[str, EstimateRequest] | None:
        """The oldest question that nobody has taken, and its name; or None when for half a second there is none."""
        with self._unavailable:
            found: Any = self._redis.brpop([f"{PREFIX}estimate_requests"], timeout=BLOCKING_SECONDS)
        if found is None:
            return None
        name, question = json.loads(found[1])
        return name, EstimateRequest.model_validate(question)

    def reply_to_estimate(self, name: str, forecast: EstimateResponse) -> None:
        """To the question of that name."""
        with self._unavailable, self._redis.pipeline() as pipe:
            pipe.lpush(f"{PREFIX}estimate_reply:{name}", forecast.model_dump_json())
            pipe.pexpire(f"{PREFIX}estimate_reply:{name}", ESTIMATE_TTL_MS)
            pipe.execute()

    # ------------------------------------------------------------------ blobs in use

    def reserve(
        self,
        digest: str,
        keep_seconds: float = RESERVATION_SECONDS,
        owner: str = ANY_OWNER,
        *,
        size_bytes: int = 0,
        most_bytes: float = 0,
    ) -> None:
        """Keep a blob from the janitor; to be called before it is written. Waits while its old file is being deleted.

        For so long its owner may name it. size_bytes: of an upload; most_bytes: of all uploads that the owner may name.
        Raises Unavailable when the wait takes too long, QuotaExceeded where there is no room for the upload.
        """
        words = (digest, round(keep_seconds * 1000), owner, size_bytes, round(most_bytes))
        for _ in range(100):
            held = self._step("reserve", *words)
            if held == 1:
                return
            if held < 0:
                raise errors.QuotaExceeded(
                    "Your uploads take as much room as they may; use them by digest, or wait until one has gone.",
                    retry_seconds=-held / 1000,
                )
            time.sleep(0.02)
        raise errors.Unavailable()

    def is_owner(self, owner: str, digest: str) -> bool:
        """Whether they uploaded it and it is still held, or a job of theirs uses it."""
        return bool(self._step("is_owner", owner, digest))

    def mark_deleting(self) -> Sequence[str]:
        """Digests of blobs to delete now, because nothing uses or holds them; `confirm_deleted` each once it is gone."""
        digests: list[str] = self._step("mark_deleting")
        return digests

    def confirm_deleted(self, digest: str) -> None:
        """The condemned blob is deleted."""
        self._step("confirm_deleted", digest)

    def register_orphans(self, digests: Sequence[str], keep_seconds: float) -> int:
        """Let blobs that are on the disk and known to nobody go after so long; how many there were."""
        return int(self._step("register_orphans", round(keep_seconds * 1000), *digests))

    # ------------------------------------------------------------------ within

    @property
    def _lease_ms(self) -> int:
        return round(self.lease_seconds * 1000)

    def _finish(
        self, job_id: str, token: str, status: Status, fields: dict[str, str], output: Output | None
    ) -> LeaseStatus:
        if output is not None:
            fields = {"output": output.id, "outputs": json.dumps([output.model_dump()]), **fields}
        flat = [word for pair in fields.items() for word in pair]
        outcome: LeaseStatus = self._step("finish", job_id, token, status, *flat)
        return outcome

    def _step(self, name: str, *args: str | int) -> Any:
        version, code = load_library()
        with self._unavailable:
            try:
                return self._redis.fcall(f"{version}_{name}", 1, PREFIX, *args)
            except ResponseError as error:
                if NO_FUNCTION not in str(error):
                    raise
            self._redis.function_load(code, replace=True)
            return self._redis.fcall(f"{version}_{name}", 1, PREFIX, *args)

    def _read(self, job_ids: Sequence[str], owner: str) -> list[Job | None]:
        if not job_ids:
            return []
        *jobs, told = self._step("read_jobs", owner, *job_ids)
        load = parse_load(told) if told else None
        rows = (dict(zip(flat[::2], flat[1::2], strict=True)) for flat in jobs)
        return [parse_job(fields, load) if fields else None for fields in rows]


def _error_json(error: errors.ImpastoError) -> str:
    return JobError(code=error.code, message=error.message).model_dump_json()
