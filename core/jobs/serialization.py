"""A job's record: how a submission is written for the store's functions, and how what they tell of a job is read.

Asks no server.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from typing import Any

from core.jobs.models import (
    MAX_ATTEMPTS,
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
    parse_timestamp,
)

log = logging.getLogger(__name__)

REPLAY_SECONDS = 86_400.0  # that an idempotency key is remembered


def sha256_hex(text: str) -> str:
    """SHA-256, in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def serialize(
    job_input: JobInput,
    options: SubmissionOptions,
    limits: QueueLimits,
    context: SubmissionContext,
) -> dict[str, Any]:
    """Return a submission in the form that the functions in scripts/ read, without None values."""
    painting, digests = job_input.model_dump_json(), job_input.digests()
    fingerprint = sha256_hex(painting)
    requested = f"{options.model_dump_json()} {context.retried_from}"
    order = {
        "owner": context.owner,
        "priority": options.priority,
        "keep_ms": round(context.keep_seconds * 1000),
        "deadline_ms": None
        if options.deadline_seconds is None
        else round(options.deadline_seconds * 1000),
        "webhook": options.webhook,
        "retried_from": context.retried_from,
        "batch_id": context.batch_id,
        "input": painting,
        "digests": digests,
        "fingerprint": fingerprint,
        "reuse": options.reuse or None,
        "model": job_input.spec.get("model", "auto"),
        "key": None if context.idempotency_key is None else sha256_hex(context.idempotency_key),
        "print": context.request_hash or sha256_hex(f"{fingerprint} {requested}"),
        "replay_ms": round(REPLAY_SECONDS * 1000),
        "most_queued": limits.queued,
        "most_own": limits.per_owner,
    }
    return {name: value for name, value in order.items() if value is not None}


def parse_load(told: Sequence[Any]) -> ServiceLoad:
    """As the function `load` tells it."""
    queued, running, workers, pace, left = told
    return ServiceLoad(
        queued=queued,
        running=running,
        workers=workers,
        average_job_seconds=float(pace) if pace else None,
        remaining_seconds=float(left),
    )


def parse_job(fields: dict[str, Any], load: ServiceLoad | None) -> Job | None:
    """As the function `read` tells it, fields and rank.

    None for a record that the store's disk has damaged: it must not hide the others on its page.
    """
    try:
        return _job(fields, load)
    except (ValueError, KeyError, TypeError, AssertionError):
        log.exception("a record cannot be read: %s", fields.get("id"))
        return None


def _job(fields: dict[str, Any], load: ServiceLoad | None) -> Job:
    created_at, rank = parse_timestamp(fields["created_at"]), fields["rank"]
    assert created_at is not None
    queue = None
    if rank >= 0 and load is not None:
        queue = QueuePosition(position=rank, start_seconds=load.start_seconds(rank))
    return Job(
        id=fields["id"],
        status=Status(fields["status"]),
        version=int(fields["version"]),
        created_at=created_at,
        started_at=parse_timestamp(fields.get("started_at")),
        completed_at=parse_timestamp(fields.get("completed_at")),
        expires_at=parse_timestamp(fields.get("expires_at")),
        deadline_at=parse_timestamp(fields.get("deadline_at")),
        pinned=fields.get("pinned") == "1",
        priority=fields["priority"],
        attempt=int(fields["attempt"]),
        max_attempts=MAX_ATTEMPTS,
        retried_from=fields.get("retried_from"),
        reused_from=fields.get("reused_from"),
        batch_id=fields.get("batch_id"),
        cancel_requested=fields.get("cancel_requested") == "1",
        input=JobInput.model_validate_json(fields["input"]),
        queue=queue,
        progress=JobProgress.model_validate_json(fields["progress"])
        if "progress" in fields
        else None,
        preview=fields.get("preview"),
        outputs=[
            Output.model_validate(output) for output in json.loads(fields.get("outputs", "[]"))
        ],
        model=ModelUsed.model_validate_json(fields["model"]) if "model" in fields else None,
        error=JobError.model_validate_json(fields["error"]) if "error" in fields else None,
        metrics=json.loads(fields.get("metrics", "{}")),
        images_deleted=fields.get("images_deleted") == "1",
        checkpoint=fields.get("checkpoint"),
        frames=int(fields.get("frames", 0)),
        frame_thinnings=int(fields.get("frame_thinnings", 0)),
        spec_update_count=int(fields.get("spec_update_count", 0)),
        owner=fields["owner"],
        webhook=fields.get("webhook"),
    )
