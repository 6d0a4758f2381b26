"""Creates jobs from accepted submissions: stores the pictures, applies the limits, wakes a worker.

Knows no route.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fastapi import Response

from api.dependencies import (
    Blobs,
    Configuration,
    CurrentCaller,
    CurrentWaiter,
    JobLimits,
    Notify,
    Store,
    Webhooks,
)
from api.http.root_path import add_root_path, root_path
from api.schemas.job import JOBS, RETRY_AFTER_SECONDS, JobResource, job_resource
from api.schemas.submission import Picture
from api.submissions.multipart import FormQuota
from api.submissions.pictures import measure_picture
from core import errors, tracing
from core.jobs.models import (
    Job,
    JobInput,
    Priority,
    QueueLimits,
    SubmissionContext,
    SubmissionOptions,
    new_job_id,
)
from core.style.spec import StyleSpec
from core.style.vgg_layers import DOWNLOADABLE_MODELS

IDEMPOTENCY_KEY_PATTERN = r"^[!-~]{1,255}$"


@dataclass
class SubmissionService:
    """Creates jobs for one caller. A FastAPI dependency: its fields are dependencies, too."""

    caller: CurrentCaller
    waiter: CurrentWaiter
    store: Store
    blobs: Blobs
    notify: Notify
    config: Configuration
    webhooks: Webhooks
    job_limits: JobLimits

    def replay_job(
        self, key: str | None, request_hash: str, response: Response
    ) -> JobResource | None:
        """Return the job that the same request created earlier, even if its pictures are deleted.

        key: the Idempotency-Key. Raises IdempotencyConflict.
        """
        job_id = self.find_replay(key, request_hash)
        if job_id is None:
            return None
        return _respond(self.store.get(job_id, self.caller.owner), response, replayed=True)

    def find_replay(self, key: str | None, request_hash: str) -> str | None:
        """Return the id of the job or batch that the same request created earlier.

        Raises IdempotencyConflict if another request has used the key.
        """
        return self.store.find_replay(key, request_hash, self.caller.owner) if key else None

    def check_options(self, options: SubmissionOptions) -> SubmissionOptions:
        """Return the options with the allowed priority, the key's pool and the webhook's URL.

        Raises BadSpec if the client asks for a higher priority than its key allows or for another
        pool, and BadWebhook.
        """
        changes: dict[str, Any] = {
            "priority": self._limit_priority(options),
            "pool": self._choose_pool(options),
        }
        if options.webhook is not None:
            changes["webhook"] = self.webhooks.parse_url(options.webhook).url
        return options.model_copy(update=changes)

    def _limit_priority(self, options: SubmissionOptions) -> Priority:
        highest, order = self.caller.priority, list(Priority)
        if order.index(options.priority) >= order.index(highest):
            return options.priority
        if "priority" in options.model_fields_set:
            raise errors.BadSpec(
                f"priority: this API key may ask for {highest} at most.",
                reason="not_allowed_for_key",
                parameter="priority",
            )
        return highest  # the client did not ask for the default

    def _choose_pool(self, options: SubmissionOptions) -> str | None:
        pool = self.caller.pool
        if pool is not None and options.pool not in (None, pool):
            raise errors.BadSpec(
                f"pool: the jobs of this API key run in the pool {pool}.",
                reason="not_allowed_for_key",
                parameter="pool",
            )
        return pool or options.pool

    def build_context(
        self, key: str | None, *, request_hash: str | None = None, retried_from: str | None = None
    ) -> SubmissionContext:
        """Return what the service adds to a submission: the caller and the settings."""
        return SubmissionContext(
            owner=self.caller.owner,
            result_retention_seconds=self.config.result_retention_days * 86_400,
            idempotency_key=key,
            request_hash=request_hash,
            retried_from=retried_from,
            root_path=root_path.get(),
            traceparent=tracing.traceparent(),
        )

    @property
    def limits(self) -> QueueLimits:
        """The maximum number of jobs in the queue, and of one caller."""
        return QueueLimits(
            queued=self.config.max_queued,
            per_owner=self.config.max_jobs_per_caller,
            pending_bytes=round(self.config.upload_quota_gb_per_caller * 1e9),
        )

    @property
    def form_quota(self) -> FormQuota:
        """The bytes of files that the caller may be sending at the same time."""
        return FormQuota(self.waiter.caller, self.config.upload_quota_gb_per_caller * 1e9)

    def check_model(self, spec: StyleSpec) -> None:
        """Raise BadSpec for a network that no worker has: its job would fail.

        A worker tells which ones it has with its heartbeats. Without one, nothing is known.
        """
        if spec.model == "auto":
            return
        workers = [info for info, _ in self.store.list_workers()]
        networks = {name for info in workers if info is not None for name in info.networks}
        if not workers or None in workers or spec.model in networks:
            return
        if spec.model in DOWNLOADABLE_MODELS:
            raise errors.BadSpec(
                f"model: no worker has {spec.model} yet; the operator can fetch it with "
                f"`impasto weights fetch {spec.model}`.",
                reason="network_unavailable",
                parameter="model",
            )
        raise errors.BadSpec(
            "model: no worker has a network of this name; GET /v1/models lists those there are.",
            reason="network_unavailable",
            parameter="model",
        )

    def check_limits(
        self, options: SubmissionOptions, pictures: Iterable[Picture], count: int = 1
    ) -> dict[str, int]:
        """Refuse `count` jobs that exceed the limits, before their pictures are stored.

        Returns the bytes of the pictures, by digest.

        A job that may reuse a result is not refused here: it may need no place in the queue.
        Raises QuotaExceeded, QueueFull.
        """
        picture_bytes = dict(measure_picture(picture, self.blobs) for picture in pictures)
        if not options.reuse:
            self.store.check_limits(self.caller.owner, self.limits, count, picture_bytes)
        return picture_bytes

    def check_reuse(
        self, options: SubmissionOptions, inputs: Iterable[JobInput]
    ) -> SubmissionOptions:
        """Return the options without `reuse` if a result that would be reused is damaged."""
        if options.reuse and any(map(self._has_damaged_result, inputs)):
            return options.model_copy(update={"reuse": False})
        return options

    def _has_damaged_result(self, job_input: JobInput) -> bool:
        digest = self.store.find_result(job_input, self.caller.owner)
        try:
            if digest is not None:
                self.blobs.check(digest)
        except errors.ImageNotFound:  # or damaged
            return True
        return False

    def create_job(
        self,
        job_input: JobInput,
        options: SubmissionOptions,
        context: SubmissionContext,
        response: Response,
    ) -> JobResource:
        """Create the job and wake a worker. The job's pictures must be stored already."""
        job_id, options = new_job_id(), self.check_reuse(options, [job_input])
        job = self.store.create(job_id, job_input, options, self.limits, context)
        replayed = job.id != job_id  # the same request has arrived twice at the same time
        if not replayed and not job.status.has_ended:
            self.notify()  # if the broker is unavailable, the reaper notifies the workers later
        return _respond(job, response, replayed=replayed)


def _respond(job: Job, response: Response, *, replayed: bool) -> JobResource:
    response.headers["Location"] = add_root_path(f"{JOBS}/{job.id}")
    response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    if replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return job_resource(job)
