"""Taking jobs: for whom, on what terms, and how many. Stores what was sent and creates the job; knows no route."""

from dataclasses import dataclass
from pathlib import Path

from fastapi import Response

from api.dependencies import Blobs, Configuration, CurrentCaller, Notify, Store, Webhooks
from api.schemas.job import JOBS, RETRY_AFTER_SECONDS, JobResource, resource
from api.submissions import parser
from core.jobs.models import Job, JobInput, QueueLimits, SubmissionOptions, new_job_id
from core.jobs.store import JobStore

KEY = r"^[!-~]{1,255}$"  # of an Idempotency-Key


@dataclass
class SubmissionService:
    """Takes jobs: for whom, on what terms, into which queue."""

    caller: CurrentCaller
    store: Store
    blobs: Blobs
    ring: Notify
    config: Configuration
    webhooks: Webhooks

    def replayed(self, key: str | None, request: str, response: Response) -> JobResource | None:
        """The job that the same request made when it came first, whatever has become of its pictures since."""
        found = self.before(key, request)
        return (
            None
            if found is None
            else _told(self.store.get(found, self.caller.owner), response, replayed=True)
        )

    def before(self, key: str | None, request: str) -> str | None:
        """The id of what the same request made when it came first: a job or a batch. Raises IdempotencyConflict."""
        return self.store.find_replay(key, request, self.caller.owner) if key else None

    def agreed(self, wishes: parser.ClientOptions) -> parser.ClientOptions:
        """The wishes, with the webhook's URL written in the one way. Raises BadWebhook."""
        if wishes.webhook is None:
            return wishes
        return wishes.model_copy(update={"webhook": self.webhooks.parse_url(wishes.webhook).url})

    def terms(
        self,
        wishes: parser.ClientOptions,
        key: str | None,
        *,
        request: str | None = None,
        old: str | None = None,
    ) -> SubmissionOptions:
        """What is agreed. Raises BadSpec where the wishes are above what the caller may."""
        return SubmissionOptions(
            owner=self.caller.owner,
            priority=wishes.priority_within(self.caller.priority),
            deadline_seconds=wishes.deadline_seconds,
            reuse=wishes.reuse,
            webhook=wishes.webhook,
            keep_seconds=self.config.result_retention_days * 86_400,
            idempotency_key=key,
            request=request,
            retried_from=old,
        )

    @property
    def limits(self) -> QueueLimits:
        """How many jobs are taken."""
        return QueueLimits(queued=self.config.max_queued, per_owner=self.config.max_jobs_per_caller)

    def take(
        self,
        job_input: JobInput,
        wishes: parser.ClientOptions,
        response: Response,
        *,
        key: str | None = None,
        request: str | None = None,
        old: str | None = None,
    ) -> JobResource:
        """Create the job and ring for it. Its pictures are stored."""
        job_id = new_job_id()
        job = self.store.create(
            job_id, job_input, self.terms(wishes, key, request=request, old=old), self.limits
        )
        replayed = job.id != job_id  # the same request came twice at once
        if (
            not replayed and not job.status.has_ended
        ):  # if it runs already, by the bell of another, that one has none now
            self.ring()  # if nobody hears it, the reaper rings again
        return _told(job, response, replayed=replayed)


def _told(job: Job, response: Response, *, replayed: bool) -> JobResource:
    response.headers["Location"] = f"{JOBS}/{job.id}"
    response.headers["Retry-After"] = str(RETRY_AFTER_SECONDS)
    if replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return resource(job)


def kept(picture: parser.Picture, store: JobStore, blobs: Blobs) -> str:
    """Its digest. One that was named by it is held by now."""
    if isinstance(picture, str):
        store.reserve(picture)  # again: to look at them all may have taken long
        return picture
    store.reserve(picture.digest)
    return blobs.commit(picture)


def file_of(picture: parser.Picture, blobs: Blobs) -> Path:
    """Where it lies."""
    return blobs.path(picture) if isinstance(picture, str) else picture.path
