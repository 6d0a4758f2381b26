"""JobStore: the truth about jobs, on Redis (or Valkey). Every change of more than one key is one function of store.lua.

The keys are listed at the head of store.lua. This module knows no pictures, no Celery, no HTTP; it reads no settings.
Synchronous: one color, docs/decisions/0002-one-color.md.
"""

import hashlib
import json
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import redis
from redis.backoff import ConstantBackoff
from redis.exceptions import BusyLoadingError, OutOfMemoryError, ReadOnlyError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from core import errors
from core.jobs import MAX_ATTEMPTS, Job, JobError, JobInput, JobProgress, NetworkUsed, Output, Queue, Status, when

PREFIX = "impasto:"
LEASE_SECONDS = 5.0
HOLD_SECONDS = 600.0  # of a blob, between its writing and the step that uses it
Standing = Literal["ok", "cancel", "stale"]

# Any other answer of the server is a mistake of ours, and must not look like an outage. MISCONF: its disk is full.
_AWAY = (RedisConnectionError, RedisTimeoutError, BusyLoadingError, OutOfMemoryError, ReadOnlyError)
_NO_FUNCTION = "Function not found"


@cache
def _library() -> tuple[str, str]:
    """The functions' common prefix and the library's code.

    The server keeps functions on its disk. Their names carry a hash of the code, so that a new version never runs the
    old one's functions, and both can serve side by side while a service is renewed.
    """
    code = Path(__file__).with_name("store.lua").read_text(encoding="utf-8")
    version = f"impasto_{hashlib.sha256(code.encode()).hexdigest()[:12]}"
    return version, code.replace("impasto_VERSION", version)


class JobStore:
    """The verbs of a job's life. Every method raises StoreUnavailable when the server does not answer in time."""

    def __init__(self, redis_url: str, *, lease_seconds: float = LEASE_SECONDS) -> None:
        self._redis = redis.Redis.from_url(
            redis_url,
            decode_responses=True,
            socket_timeout=1,
            socket_connect_timeout=1,
            health_check_interval=5,
            # One more try, for a connection that went stale in the pool. Every step may be sent twice unharmed.
            retry=Retry(ConstantBackoff(0.05), 1),
        )
        self.lease_seconds = lease_seconds

    def close(self) -> None:
        """Give the connections back."""
        self._redis.close()

    # ------------------------------------------------------------------ for the API

    def create(self, job_id: str, job_input: JobInput) -> Job:
        """Put a new job at the end of the queue. Its blobs must be held (`hold`) and written before.

        Raises ImageNotFound if one is no longer held: the janitor may have deleted it.
        """
        if self._step("create", job_id, job_input.model_dump_json(), *job_input.digests()) is None:
            raise errors.ImageNotFound()
        return self.get(job_id)

    def get(self, job_id: str) -> Job:
        """Raises JobNotFound."""
        job = self._read([job_id])[0]
        if job is None:
            raise errors.JobNotFound()
        return job

    def page(
        self, *, limit: int, before: int | None = None, status: Status | None = None
    ) -> tuple[list[Job], int | None]:
        """Newest first: at most `limit` jobs that came before number `before`, and the number to go on from."""
        index = PREFIX + (f"status:{status}" if status else "jobs")
        upper = "+inf" if before is None else f"({before}"
        with _unavailable():
            rows: Any = self._redis.zrevrangebyscore(index, upper, "-inf", start=0, num=limit + 1, withscores=True)
        jobs = [job for job in self._read([job_id for job_id, _ in rows[:limit]]) if job is not None]
        return jobs, int(rows[limit - 1][1]) if len(rows) > limit else None

    def cancel(self, job_id: str) -> Job:
        """A queued job is canceled at once, a running one is asked to stop; an ended one stays. Raises JobNotFound."""
        if self._step("cancel", job_id) is None:
            raise errors.JobNotFound()
        return self.get(job_id)

    def delete(self, job_id: str) -> None:
        """Forget the job, whatever its status; blobs that no other job uses are left to the janitor."""
        self._step("delete", job_id)

    def queued(self) -> int:
        """How many jobs wait."""
        with _unavailable():
            return int(self._redis.zcard(f"{PREFIX}status:{Status.QUEUED}"))

    def ping(self) -> None:
        """Raises StoreUnavailable."""
        with _unavailable():
            self._redis.ping()

    # ------------------------------------------------------------------ for a worker

    def claim(self, token: str, worker: str) -> Job | None:
        """Take the next queued job for one lease, or None. The token must be new and unguessable."""
        job_id = self._step("claim", token, worker, self._lease_ms)
        return None if job_id is None else self.get(job_id)

    def renew(self, job_id: str, token: str) -> Standing:
        """One more lease. `cancel`: stop the run and finish as canceled; `stale`: drop it without a word."""
        answer: Standing = self._step("renew", job_id, token, self._lease_ms)
        return answer

    def progress(self, job_id: str, token: str, progress: JobProgress, preview: str | None = None) -> Standing:
        """How far the run is, and the digest of the picture so far (held and written before)."""
        answer: Standing = self._step("progress", job_id, token, progress.model_dump_json(), preview or "")
        return answer

    def succeed(
        self, job_id: str, token: str, output: Output, model: NetworkUsed, metrics: dict[str, float]
    ) -> Standing:
        """End the job with its picture (held and written before). `stale`: nothing was changed."""
        fields = {"output": output.id, "outputs": json.dumps([output.model_dump()]), "model": model.model_dump_json()}
        return self._finish(job_id, token, Status.SUCCEEDED, {**fields, "metrics": json.dumps(metrics)})

    def fail(self, job_id: str, token: str, error: errors.ImpastoError) -> Standing:
        """End the job with an error. `stale`: nothing was changed."""
        return self._finish(job_id, token, Status.FAILED, {"error": _error_json(error)})

    def end_canceled(self, job_id: str, token: str) -> Standing:
        """End the job because `renew` said `cancel`. `stale`: nothing was changed."""
        return self._finish(job_id, token, Status.CANCELED, {})

    def release(self, job_id: str, token: str) -> Standing:
        """Hand the job back; it keeps its place ahead of all later ones, and the attempt does not count."""
        answer: Standing = self._step("release", job_id, token)
        return answer

    # ------------------------------------------------------------------ for the reaper

    def lead(self, me: str, term_seconds: float) -> bool:
        """Whether process `me` is the one that reaps for the next `term_seconds`."""
        return bool(self._step("lead", me, round(term_seconds * 1000)))

    def reap(self) -> tuple[int, int]:
        """Put jobs whose lease ran out back into the queue, or end them; (put back, ended)."""
        requeued, ended = self._step("reap", MAX_ATTEMPTS, _error_json(errors.WorkerLost()))
        return int(requeued), int(ended)

    # ------------------------------------------------------------------ blobs in use

    def hold(self, digest: str, keep_seconds: float = HOLD_SECONDS) -> None:
        """Keep a blob from the janitor; to be called before it is written. Waits while its old file is being deleted.

        Raises Unavailable when that takes too long.
        """
        for _ in range(100):
            if self._step("hold", digest, round(keep_seconds * 1000)):
                return
            time.sleep(0.02)
        raise errors.Unavailable()

    def condemn(self) -> Sequence[str]:
        """Digests of blobs to delete now, because nothing uses or holds them; `forget` each once it is gone."""
        digests: list[str] = self._step("condemn")
        return digests

    def forget(self, digest: str) -> None:
        """The condemned blob is deleted."""
        self._step("forget", digest)

    # ------------------------------------------------------------------ within

    @property
    def _lease_ms(self) -> int:
        return round(self.lease_seconds * 1000)

    def _finish(self, job_id: str, token: str, status: Status, fields: dict[str, str]) -> Standing:
        flat = [word for pair in fields.items() for word in pair]
        answer: Standing = self._step("finish", job_id, token, status, *flat)
        return answer

    def _step(self, name: str, *args: str | int) -> Any:
        version, code = _library()
        with _unavailable():
            try:
                return self._redis.fcall(f"{version}_{name}", 1, PREFIX, *args)
            except ResponseError as error:
                if _NO_FUNCTION not in str(error):
                    raise
            self._redis.function_load(code, replace=True)
            return self._redis.fcall(f"{version}_{name}", 1, PREFIX, *args)

    def _read(self, job_ids: Sequence[str]) -> list[Job | None]:
        if not job_ids:
            return []
        with _unavailable(), self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hgetall(f"{PREFIX}job:{job_id}")
                pipe.zrank(f"{PREFIX}status:{Status.QUEUED}", job_id)
            answers = pipe.execute()
        return [
            _job(fields, rank) if fields else None for fields, rank in zip(answers[::2], answers[1::2], strict=True)
        ]


class _unavailable:
    """Any failure of the server or the way to it, as StoreUnavailable."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, _AWAY) or (isinstance(error, ResponseError) and str(error).startswith("MISCONF")):
            raise errors.StoreUnavailable() from error


def _error_json(error: errors.ImpastoError) -> str:
    return JobError(code=error.code, message=error.message).model_dump_json()


def _job(fields: dict[str, str], rank: int | None) -> Job:
    created_at, started_at = when(fields["created_at"]), when(fields.get("started_at"))
    assert created_at is not None
    return Job(
        id=fields["id"],
        status=Status(fields["status"]),
        version=int(fields["version"]),
        created_at=created_at,
        started_at=started_at,
        completed_at=when(fields.get("completed_at")),
        attempt=int(fields["attempt"]),
        max_attempts=MAX_ATTEMPTS,
        cancel_requested=fields.get("cancel_requested") == "1",
        input=JobInput.model_validate_json(fields["input"]),
        queue=None if rank is None else Queue(position=rank),
        progress=JobProgress.model_validate_json(fields["progress"]) if "progress" in fields else None,
        preview=fields.get("preview"),
        outputs=[Output.model_validate(output) for output in json.loads(fields.get("outputs", "[]"))],
        model=NetworkUsed.model_validate_json(fields["model"]) if "model" in fields else None,
        error=JobError.model_validate_json(fields["error"]) if "error" in fields else None,
        metrics=json.loads(fields.get("metrics", "{}")),
    )
