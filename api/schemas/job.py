"""A job as clients see it: with links. Knows no route but its path."""

from pydantic import BaseModel

from api.http.root_path import add_root_path
from core.jobs.models import Job

RETRY_AFTER_SECONDS = 1  # between two polls of a job that has not ended

JOBS = "/v1/jobs"


class JobResource(Job):
    """A job, and links to what you can do with it. Follow the links; do not build URLs."""

    links: dict[str, str]


class JobPage(BaseModel):
    """A page of jobs, newest first. `next` is the link to older jobs, or null on the last page."""

    jobs: list[JobResource]
    next: str | None


def job_resource(job: Job) -> JobResource:
    """Return the job with the links that its state allows."""
    path = add_root_path(f"{JOBS}/{job.id}")
    links = {"self": path, "events": f"{path}/events"}
    if job.status.has_ended:
        links["retry"] = f"{path}/retry"
    else:
        links["cancel"] = f"{path}/cancel"
    if job.preview is not None:
        links["preview"] = f"{path}/preview"
    if job.outputs and not job.images_deleted:
        links["result"] = f"{path}/result"
    if job.frames:
        links |= {"frames": f"{path}/frames", "timelapse": f"{path}/timelapse"}
    return JobResource(**dict(job), links=links)
