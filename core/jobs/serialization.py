"""Converts submissions to the form of the store, and its answers to models. Opens no connection."""

import hashlib
import json
import logging
import threading
from collections.abc import Sequence
from typing import Any

from cachetools import LRUCache
from pydantic import BaseModel

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
from core.style.schedule import count_work, schedule
from core.style.spec import parse_spec

log = logging.getLogger(__name__)

SIZE_CLASSES = ("256", "512", "1024", "2048", "4096", "8192")  # long side of the result, in px
REPLAY_SECONDS = 86_400.0  # how long the store remembers an idempotency key


def sha256_hex(text: str) -> str:
    """The SHA-256 of the text, in hexadecimal digits."""
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint(job_input: JobInput) -> str:
    """The identity of an input: jobs with the same one may share a result."""
    return sha256_hex(job_input.model_dump_json())


def serialize(
    job_input: JobInput,
    options: SubmissionOptions,
    limits: QueueLimits,
    context: SubmissionContext,
) -> dict[str, Any]:
    """Convert a submission to the table that scripts/submission.lua reads. Leaves out every None.

    `fingerprint` identifies the input: jobs with the same one may share a result. `request_hash`
    identifies the whole request: an idempotency key returns its job only for the same one.
    """
    input_json = job_input.model_dump_json()
    digests = job_input.digests()
    # Without what is not set, so that a version with more options computes the same.
    requested = f"{options.model_dump_json(exclude={'pool'} if options.pool is None else None)} "
    requested += str(context.retried_from)
    warnings = job_input.list_warnings(context.picture_warnings)
    deadline_ms = key_hash = None
    if options.deadline_seconds is not None:
        deadline_ms = round(options.deadline_seconds * 1000)
    if context.idempotency_key is not None:
        key_hash = sha256_hex(context.idempotency_key)
    submission = {
        "owner": context.owner,
        "priority": options.priority,
        "pool": options.pool,
        "size": job_input.spec.get("size", 0),
        "retention_ms": round(context.result_retention_seconds * 1000),
        "deadline_ms": deadline_ms,
        "webhook": options.webhook,
        "root_path": (context.root_path or None) if options.webhook else None,
        "retried_from": context.retried_from,
        "batch_id": context.batch_id,
        "input": input_json,
        "digests": digests,
        "sizes": [context.picture_bytes.get(digest, 0) for digest in digests],
        "fingerprint": fingerprint(job_input),
        "reuse": options.reuse or None,
        "model": job_input.spec.get("model", "auto"),
        "work": _count_work(job_input, context),
        "size_class": _size_class(job_input.spec.get("size", 0)),
        "traceparent": context.traceparent,
        "warnings": json.dumps(warnings) if warnings else None,
        "key_hash": key_hash,
        "request_hash": context.request_hash or sha256_hex(f"{fingerprint(job_input)} {requested}"),
        "replay_ms": round(REPLAY_SECONDS * 1000),
        "max_queued": limits.queued,
        "max_per_owner": limits.per_owner,
        "max_bytes": limits.pending_bytes,
    }
    return {name: value for name, value in submission.items() if value is not None}


def _count_work(job_input: JobInput, context: SubmissionContext) -> int | None:
    """Return the work of the job, in pixel evaluations; None without the photo's size."""
    content = context.picture_sizes.get(job_input.content)
    if content is None:
        return None
    init = context.picture_sizes.get(job_input.init_image or "")
    return count_work(schedule(parse_spec(job_input.spec), *content, max(init) if init else None))


def _size_class(size_px: int) -> str:
    """Return the smallest of SIZE_CLASSES that a result of this size does not exceed."""
    return next((name for name in SIZE_CLASSES if size_px <= int(name)), SIZE_CLASSES[-1])


def parse_load(row: Sequence[Any]) -> ServiceLoad:
    """Parse the answer of the Lua function `get_load`."""
    queued, running, workers, average_seconds = row
    return ServiceLoad(
        queued=queued,
        running=running,
        workers=workers,
        average_job_seconds=float(average_seconds) if average_seconds else None,
    )


def parse_rank(rank: str) -> QueuePosition | None:
    """Parse the rank that the Lua function `read_changed` returns; None: not queued."""
    if rank == "-1":
        return None
    position, start_seconds, missing, has_worker = rank.split(" ")
    return QueuePosition(
        position=int(position),
        start_seconds=float(start_seconds) if start_seconds else None,
        waits_for=missing or None,
        has_worker=has_worker == "1",
    )


def parse_job(fields: dict[str, Any]) -> Job | None:
    """Parse the fields and the rank that the Lua function `read_changed` returns.

    Returns None for a record that a disk fault has damaged: it must not hide the rest of a page.
    """
    try:
        return _parse_job(fields)
    except (ValueError, KeyError, TypeError, AssertionError):
        log.exception("the record of job %s is damaged", fields.get("id"))
        return None


def parse_row(known: Job | None, row: list[Any]) -> Job | None:
    """Parse a row of the Lua function `read_changed`.

    It is empty (no job), the rank alone (same version as `known`), or all fields. A job that has
    not changed comes back as the same object.
    """
    if not row:
        return None
    if len(row) > 1:
        return parse_job(dict(zip(row[::2], row[1::2], strict=True)))
    assert known is not None, "the store returns the rank alone only for a known version"
    queue = parse_rank(row[0])
    return known if queue == known.queue else known.model_copy(update={"queue": queue})


def _parse_job(fields: dict[str, Any]) -> Job:
    created_at = parse_timestamp(fields["created_at"])
    assert created_at is not None
    queue = parse_rank(fields["rank"])
    progress = model = error = None
    if "progress" in fields:
        progress = JobProgress.model_validate_json(fields["progress"])
    if "model" in fields:
        model = ModelUsed.model_validate_json(fields["model"])
    if "error" in fields:
        error = JobError.model_validate_json(fields["error"])
    outputs = [Output.model_validate(output) for output in json.loads(fields.get("outputs", "[]"))]
    job = Job(
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
        pool=fields.get("pool"),
        attempt=int(fields["attempt"]),
        max_attempts=MAX_ATTEMPTS,
        retried_from=fields.get("retried_from"),
        reused_from=fields.get("reused_from"),
        batch_id=fields.get("batch_id"),
        cancel_requested=fields.get("cancel_requested") == "1",
        input=_parse_input(fields["input"]),
        queue=queue,
        progress=progress,
        preview=fields.get("preview"),
        outputs=outputs,
        model=model,
        error=error,
        metrics=json.loads(fields.get("metrics", "{}")),
        warnings=json.loads(fields.get("warnings", "[]")),
        images_deleted=fields.get("images_deleted") == "1",
        checkpoint=fields.get("checkpoint"),
        frames=int(fields.get("frames", 0)),
        frame_thinnings=int(fields.get("frame_thinnings", 0)),
        spec_update_count=int(fields.get("spec_update_count", 0)),
        owner=fields["owner"],
        webhook=fields.get("webhook"),
        root_path=fields.get("root_path", ""),
        claimed_at=parse_timestamp(fields.get("claimed_at")),
        traceparent=fields.get("traceparent"),
    )
    for record in (job, job.input, queue, progress, model, error, *outputs):
        if record is not None:
            _share_field_set(record)
    return job


# What records share, so that a followed job takes 3 KB instead of 10. None is changed in place.
_field_sets: dict[frozenset[str], set[str]] = {}
_specs: LRUCache[str, dict[str, Any]] = LRUCache(200)
_lock = threading.Lock()


def _share_field_set(record: BaseModel) -> None:
    """Use one set for all records that have the same fields set.

    Pydantic keeps the names of these fields in each record: 3 KB for a job.
    """
    names = record.model_fields_set
    object.__setattr__(
        record, "__pydantic_fields_set__", _field_sets.setdefault(frozenset(names), names)
    )


def _parse_input(data: str) -> JobInput:
    """Parse an input; those with the same parameters share one spec, which takes 2.5 KB."""
    job_input = JobInput.model_validate_json(data)
    with _lock:
        spec = _specs.setdefault(repr(job_input.spec), job_input.spec)
    object.__setattr__(job_input, "spec", spec)
    return job_input
