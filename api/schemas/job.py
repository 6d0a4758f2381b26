"""A job as clients see it: with links. Knows no route but by its path."""

from pydantic import BaseModel

from core.jobs.models import Job

RETRY_AFTER_SECONDS = 1  # between two polls of a job that has not ended

JOBS = "/v1/jobs"


class JobResource(Job):
    """A job, and where to go from it. Follow the links; do not build addresses."""

    links: dict[str, str]


class JobPage(BaseModel):
    """Some jobs, newest first; `next` leads to older ones."""

    jobs: list[JobResource]
    next: str | None


def resource(job: Job) -> JobResource:
    """The job with its links."""
    path = f"{JOBS}/{job.id}"
    links = {"self": path, "events": f"{path}/events"}
    links |= {"retry": f"{path}/retry"} if job.status.has_ended else {"cancel": f"{path}/cancel"}
    if job.preview is not None:
        links["preview"] = f"{path}/preview"
    if job.outputs and not job.images_deleted:
        links["result"] = f"{path}/result"
    if job.frames:
        links |= {"frames": f"{path}/frames", "timelapse": f"{path}/timelapse"}
    return JobResource(**dict(job), links=links)
