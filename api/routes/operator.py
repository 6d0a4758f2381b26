"""/v1/operator: the service as its operator sees it, for admin keys only.

api/middleware/auth.py refuses every other key. Answers have numbers, ids and times of all callers,
and no picture. Each action is a line in the log, with the id of the key that did it.
"""

import logging
import shutil
from datetime import datetime
from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import BaseModel, ConfigDict, StrictBool

from api.dependencies import Configuration, Notify, Owner, Store
from api.http.root_path import add_root_path
from core import errors
from core.auth.api_keys import ApiKey, ApiKeyStore
from core.jobs.audit import AuditEntry, AuditFilter, Log
from core.jobs.models import Priority, Status, is_job_id
from core.jobs.operations import (
    MAX_HOURS,
    ExpiryCounts,
    HourCounts,
    OwnerUsage,
    QueuedJob,
    QueueEnd,
)
from core.jobs.service_info import WorkerList, WorkerState
from core.jobs.store import WORKER_TTL_MS

router = APIRouter(prefix="/v1/operator", tags=["operator"])

_log = logging.getLogger(__name__)

_BODY_BYTES = 10_000


async def _check_job_id(job_id: str) -> str:
    if not is_job_id(job_id):
        raise errors.JobNotFound()
    return job_id


JobId = Annotated[str, Depends(_check_job_id)]


class DiskUsage(BaseModel):
    """The file system of the data folder, or null for a bucket.

    quota_bytes: for pictures and checkpoints, or null.
    """

    total_bytes: int | None
    free_bytes: int | None
    quota_bytes: int | None


class OperatorStatus(BaseModel):
    """The service now."""

    intake_paused_at: datetime | None
    queued: int
    running: int
    average_job_seconds: float | None
    queue_work_seconds: float
    workers: list[WorkerState]
    webhooks_pending: int
    disk: DiskUsage
    expiry: ExpiryCounts


class HourList(BaseModel):
    """The last hours, the current one last, and all of them together."""

    total: HourCounts
    hours: list[HourCounts]


class QueuePage(BaseModel):
    """A page of the queue; total: the length of the whole queue."""

    jobs: list[QueuedJob]
    total: int


class KeyUsage(BaseModel):
    """An API key, without its secret, and how much its owner uses now."""

    key: ApiKey
    usage: OwnerUsage


class KeyLimits(BaseModel):
    """The limits of one key, from the service's settings."""

    submissions_per_minute: int
    requests_per_minute: int
    max_jobs: int
    max_streams: int
    max_uploads: int
    max_upload_bytes: int


class KeyUsageList(BaseModel):
    """All keys, the oldest first."""

    keys: list[KeyUsage]
    limits: KeyLimits


class NewKey(BaseModel):
    """What a new key is called and may do."""

    model_config = ConfigDict(extra="forbid")

    name: str
    priority: Priority = Priority.NORMAL
    admin: StrictBool = False
    pool: str | None = None


class CreatedKey(BaseModel):
    """A new key. Its secret is not shown again."""

    key: ApiKey
    secret: str


class QueueMove(BaseModel):
    """Where a queued job goes: before or after all others."""

    model_config = ConfigDict(extra="forbid")

    to: QueueEnd


class JobState(BaseModel):
    """What became of the job. position: in the queue, null if it is not there."""

    id: str
    status: Status
    position: int | None
    cancel_requested: bool


class AuditPage(BaseModel):
    """Entries of the audit log, newest first. before: the cursor of older ones, null at the end."""

    entries: list[AuditEntry]
    before: str | None


class WorkerChoice(BaseModel):
    """The id of a worker, or * for all."""

    model_config = ConfigDict(extra="forbid")

    id: str


class Drain(WorkerChoice):
    """release: hand the running job to another worker at once, with a checkpoint."""

    release: StrictBool = False


class IntakeState(BaseModel):
    """Since when no new jobs are accepted; null if they are."""

    paused_at: datetime | None


@router.get("/status", summary="The service now")
def get_operator_status(request: Request, store: Store, config: Configuration) -> OperatorStatus:
    """Return workers with their jobs, the queue's length, disk, and what expires."""
    load, operations = store.get_load(), store.operations
    data_dir: Path | None = request.app.state.data_dir
    total_bytes = free_bytes = None
    if data_dir is not None:
        disk = shutil.disk_usage(data_dir if data_dir.exists() else data_dir.anchor)
        total_bytes, free_bytes = disk.total, disk.free
    return OperatorStatus(
        intake_paused_at=operations.get_intake_pause(),
        queued=load.queued,
        running=load.running,
        average_job_seconds=load.average_job_seconds,
        queue_work_seconds=round(store.get_queue_work_seconds(), 1),
        workers=operations.list_workers(WORKER_TTL_MS),
        webhooks_pending=store.get_counts()[1],
        disk=DiskUsage(
            total_bytes=total_bytes,
            free_bytes=free_bytes,
            quota_bytes=round(config.storage_quota_gb * 1e9) or None,
        ),
        expiry=operations.count_expiry(),
    )


@router.get("/hours", summary="Ends, failures and waits per hour")
def list_hours(store: Store, count: Annotated[int, Query(ge=1, le=MAX_HOURS)] = 24) -> HourList:
    """Return the counts of the last `count` hours, at most a week."""
    total, hours = store.operations.list_hours(count)
    return HourList(total=total, hours=hours)


@router.get("/queue", summary="The queue, in order")
def list_queue(
    store: Store,
    offset: Annotated[int, Query(ge=0, le=1_000_000)] = 0,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
) -> QueuePage:
    """Return the queued jobs of all callers in the order in which they start."""
    jobs, total = store.operations.list_queue(offset, limit)
    return QueuePage(jobs=jobs, total=total)


@router.post("/jobs/{job_id}/cancel", summary="Cancel a job of any caller")
def cancel_any_job(job_id: JobId, store: Store, operator: Owner) -> JobState:
    """Cancel as the caller of the job could. Safe to repeat."""
    store.cancel(job_id)
    _log.info("operator %s cancels %s", operator, job_id)
    return _get_state(store, job_id)


@router.post("/jobs/{job_id}/move", summary="Move a job in the queue", max_body_size=_BODY_BYTES)
def move_job(job_id: JobId, move: QueueMove, store: Store, operator: Owner) -> JobState:
    """Let a queued job start first or last, whatever its priority; 409 if it has started."""
    store.operations.move_in_queue(job_id, move.to)
    _log.info("operator %s moves %s: %s", operator, job_id, move.to)
    return _get_state(store, job_id)


@router.post("/intake/pause", summary="Accept no new jobs")
def pause_intake(store: Store, operator: Owner) -> IntakeState:
    """Refuse submissions with 503 `intake_paused` from now on. Jobs that are queued run."""
    store.operations.pause_intake()
    _log.info("operator %s pauses the intake of jobs", operator)
    return IntakeState(paused_at=store.operations.get_intake_pause())


@router.post("/intake/resume", summary="Accept new jobs again")
def resume_intake(store: Store, operator: Owner) -> IntakeState:
    """End a pause. Safe to repeat."""
    store.operations.resume_intake()
    _log.info("operator %s resumes the intake of jobs", operator)
    return IntakeState(paused_at=store.operations.get_intake_pause())


@router.get("/audit", summary="The audit log")
def list_audit(
    *,
    store: Store,
    limit: Annotated[int, Query(ge=1, le=100)] = 50,
    before: Annotated[str | None, Query(pattern=r"^[0-9]{1,16}-[0-9]{1,16}$")] = None,
    log: Log | None = None,
    actor: str | None = None,
    action: str | None = None,
    target: str | None = None,
    outcome: str | None = None,
) -> AuditPage:
    """Return who has changed what, newest first. `action` may be the beginning of one.

    With a filter, a page may be short, or empty, and still have a cursor: it examines 2,000
    entries of each log at most.
    """
    accept = AuditFilter(actor, action, target, outcome)
    entries, cursor = store.audit.read(limit, before, accept, log)
    return AuditPage(entries=entries, before=cursor)


@router.get("/workers", summary="The workers")
def list_workers(store: Store) -> WorkerList:
    """Return the live workers with their jobs, and those that are suspended."""
    return WorkerList(workers=store.operations.list_workers(WORKER_TTL_MS))


@router.post("/workers/pause", summary="Pause a worker", max_body_size=_BODY_BYTES)
def pause_worker(choice: WorkerChoice, store: Store, operator: Owner) -> WorkerList:
    """Let it take no new jobs until it is resumed, also after a restart; its job goes on."""
    store.operations.suspend(choice.id, "paused", WORKER_TTL_MS)
    _log.info("operator %s pauses the worker %s", operator, choice.id)
    return list_workers(store)


@router.post("/workers/drain", summary="Drain a worker", max_body_size=_BODY_BYTES)
def drain_worker(drain: Drain, store: Store, operator: Owner) -> WorkerList:
    """Let its process end after its running job. If it is started again, it is paused."""
    store.operations.suspend(drain.id, "draining", WORKER_TTL_MS, release=drain.release)
    _log.info("operator %s drains the worker %s", operator, drain.id)
    return list_workers(store)


@router.post("/workers/resume", summary="Resume a worker", max_body_size=_BODY_BYTES)
def resume_worker(
    choice: WorkerChoice, store: Store, notify: Notify, operator: Owner
) -> WorkerList:
    """Let it take jobs again, whatever has suspended it. Safe to repeat."""
    store.operations.resume(choice.id, WORKER_TTL_MS)
    _log.info("operator %s resumes the worker %s", operator, choice.id)
    notify()  # the reaper wakes the others
    return list_workers(store)


@router.get("/keys", summary="API keys, their use and limits")
def list_keys(request: Request, store: Store, config: Configuration) -> KeyUsageList:
    """Return every key without its secret, when it was last used, and what its owner has."""
    keys = _get_keys(request).list()
    usage = store.operations.get_usage([key.id for key in keys])
    return KeyUsageList(
        keys=[KeyUsage(key=key, usage=usage[key.id]) for key in keys],
        limits=KeyLimits(
            submissions_per_minute=config.submissions_per_minute,
            requests_per_minute=config.requests_per_minute,
            max_jobs=config.max_jobs_per_caller,
            max_streams=config.max_streams_per_caller,
            max_uploads=config.max_uploads_per_caller,
            max_upload_bytes=round(config.upload_quota_gb_per_caller * 1e9),
        ),
    )


@router.post("/keys", status_code=201, summary="Create an API key", max_body_size=_BODY_BYTES)
def create_key(new: NewKey, request: Request, response: Response, operator: Owner) -> CreatedKey:
    """Return a new key with its secret, which is shown only this once."""
    response.headers["Location"] = add_root_path(f"{router.prefix}/keys")
    key, secret = _get_keys(request).create(new.name, new.priority, admin=new.admin, pool=new.pool)
    _log.info("operator %s creates %s, admin: %s", operator, key.id, key.admin)
    return CreatedKey(key=key, secret=secret)


@router.post(
    "/keys/{key_id}/revoke",
    status_code=204,
    response_class=Response,
    summary="Revoke an API key",
)
def revoke_key(key_id: str, request: Request, operator: Owner) -> Response:
    """Refuse the key from now on. Its jobs stay and run. Safe to repeat."""
    _get_keys(request).revoke(key_id)
    _log.info("operator %s revokes %s", operator, key_id)
    return Response(status_code=204)


def _get_keys(request: Request) -> ApiKeyStore:
    keys: ApiKeyStore = request.app.state.keys
    return keys


def _get_state(store: Store, job_id: str) -> JobState:
    job = store.get(job_id)
    return JobState(
        id=job.id,
        status=job.status,
        position=job.queue.position if job.queue else None,
        cancel_requested=job.cancel_requested,
    )
