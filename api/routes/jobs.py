"""Jobs over HTTP: submit, list, get result and preview, cancel, retry, update, delete.

job_status.py has GET /v1/jobs/{job_id}.
"""

from contextlib import suppress
from typing import Annotated, Any, BinaryIO, Self

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator
from starlette.concurrency import run_in_threadpool

from api.dependencies import Blobs, Configuration, CurrentWaiter, Feed, Owner, Store
from api.http import image_response
from api.http.prefer import Wait, preference_applied
from api.http.root_path import add_root_path
from api.job_feed import JobSnapshot
from api.schemas.job import JOBS, JobPage, JobResource, job_resource
from api.schemas.submission import (
    JobForm,
    JobSubmission,
    compute_request_hash,
    describe_body,
    parameters_schema,
)
from api.submissions import parser
from api.submissions.job import create_checked, create_or_replay
from api.submissions.pictures import inspect_picture
from api.submissions.service import (
    IDEMPOTENCY_KEY_PATTERN,
    SubmissionService,
)
from core import errors
from core.images import codec, validation
from core.images.validation import FORMATS
from core.jobs.models import (
    MAX_SPEC_UPDATES,
    Job,
    JobInput,
    Output,
    Priority,
    Status,
    SubmissionOptions,
    is_job_id,
)
from core.jobs.store import JobStore
from core.style.spec import (
    MAX_SIZE_PX,
    UPDATABLE,
    StyleSpec,
    apply_changes,
)

router = APIRouter(prefix=JOBS, tags=["jobs"])

_BODY_BYTES = 100_000
# Browsers send the first only to HTTPS and to this machine, the second always.
_BROWSER_HEADERS = {"sec-fetch-site", "accept-language"}
LINK_SECONDS = 300.0  # how long the link to a result is valid


def image_responses(*formats: str) -> dict[int | str, dict[str, Any]]:
    """Describe, for OpenAPI, a route that answers with a picture, or with 304 if it is known."""
    return {200: {"content": {f"image/{kind}": {} for kind in formats}}, 304: {}}


class RetryRequest(BaseModel):
    """What the new job changes."""

    model_config = ConfigDict(extra="forbid")

    spec: dict[str, Any] = Field(
        {},
        description="Parameters to change, as in a submission.",
        json_schema_extra=parameters_schema(),
    )
    webhook: str | None = Field(
        None, description="A URL that receives a POST request when the new job ends."
    )
    continue_from_result: StrictBool = Field(
        False,
        alias="continue",
        description="Begin with the old job's result, for more iterations or a larger size.",
    )


def _updatable_schema() -> dict[str, Any]:
    """Return the schema of the parameters that can change while a job is queued or running."""
    schema = StyleSpec.model_json_schema()
    return {
        "properties": {name: schema["properties"][name] for name in UPDATABLE},
        "additionalProperties": False,
    }


class JobUpdate(BaseModel):
    """What to change of the job. Send at least one field."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"minProperties": 1})

    pinned: StrictBool = Field(
        False, description="Whether the job and its pictures are kept without a time limit."
    )
    spec: dict[str, Any] = Field(
        {},
        description="New weights for a queued or running job.",
        json_schema_extra=_updatable_schema(),
    )

    @model_validator(mode="after")
    def _require_a_field(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("Send spec, pinned, or both.")
        return self


@router.post(
    "",
    status_code=202,
    response_model=JobResource,
    summary="Submit a job",
    max_body_size=parser.BODY_BYTES,
    openapi_extra={"requestBody": describe_body(JobSubmission, JobForm)},
)
async def submit_job(
    *,
    request: Request,
    response: Response,
    submissions: Annotated[SubmissionService, Depends()],
    feed: Feed,
    wait_seconds: Wait,
    idempotency_key: Annotated[str | None, Header(pattern=IDEMPOTENCY_KEY_PATTERN)] = None,
) -> JobResource:
    """Send `content`, one or more `style`, any parameters, and optionally masks and `init_image`.

    Instead, you can send a result as `from`, together with what the new job changes.

    The answer comes at once and contains the job; poll its `self` link. To repeat a request safely
    after a lost answer, send an `Idempotency-Key`: within a day, the same key returns the same job.
    `Prefer: wait=N` (30 s at most) waits for the end of the job.
    """
    job = await create_or_replay(request, response, submissions, idempotency_key)
    if wait_seconds:
        request.state.submission.end()  # it waits for a worker now, which is no load here
        # The job is accepted. An error while waiting must not hide that.
        with suppress(errors.RetryLater, errors.JobNotFound):
            owner = submissions.caller.owner
            snapshot = await feed.wait_for(_has_ended, job.id, owner, wait_seconds)
            response.headers.update(preference_applied(wait_seconds))
            return job_resource(snapshot.job)
    return job


def _has_ended(_: JobSnapshot, newest: JobSnapshot) -> bool:
    return newest.job.status.has_ended


@router.get("", summary="List your jobs")
def list_jobs(
    store: Store,
    owner: Owner,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[int | None, Query(ge=1, le=2**53)] = None,
    status: Annotated[
        list[Status] | None, Query(description="Only jobs with one of these statuses.")
    ] = None,
) -> JobPage:
    """Return your jobs, newest first. Follow `next` to older jobs. `status` may be repeated."""
    statuses = list(dict.fromkeys(status or []))
    jobs, next_cursor = store.list_page(limit=limit, before=cursor, statuses=statuses, owner=owner)
    next_page = None
    if next_cursor is not None:
        filters = "".join(f"&status={one}" for one in statuses)
        next_page = add_root_path(f"{JOBS}?limit={limit}&cursor={next_cursor}{filters}")
    return JobPage(jobs=[job_resource(job) for job in jobs], next=next_page)


@router.get(
    "/{job_id}/result",
    response_class=Response,
    responses={**image_responses(*FORMATS), 307: {"description": "The link to the PNG"}},
    summary="Get the result",
)
async def get_result(
    *,
    job_id: str,
    request: Request,
    owner: Owner,
    waiter: CurrentWaiter,
    feed: Feed,
    blobs: Blobs,
    config: Configuration,
    format: validation.Format = "png",
    width: Annotated[int | None, Query(ge=16, le=MAX_SIZE_PX)] = None,
) -> Response:
    """Return the picture as PNG, JPEG or WebP. The PNG contains a record of how it was made.

    If a job was canceled while it ran, its result is the state at that time. `width` in px makes
    the picture smaller, never larger. If the service is set up so, a program (not a page in a
    browser) gets a redirection to a link that is valid for five minutes, for the PNG in full size.
    """
    if not is_job_id(job_id):
        raise errors.JobNotFound()
    output = _get_output((await feed.get(job_id, owner)).job)
    new_width = width if width is not None and width < output.width else None
    suffix = "" if new_width is None else f"-{new_width}"
    tag = f'"{output.id}-{format}{suffix}"'
    if image_response.is_cached_by_client(request, tag):
        return image_response.not_modified(tag)
    try:
        if format == "png" and new_width is None:
            if config.result_links and _BROWSER_HEADERS.isdisjoint(request.headers):
                link = await run_in_threadpool(blobs.sign, output.id, LINK_SECONDS)
                return image_response.redirect(link, output.id, tag)
            picture: bytes | BinaryIO | None = blobs.open_verified(output.id)
            if picture is None:
                picture = await run_in_threadpool(blobs.open, output.id)
        else:
            data = await image_response.render_cached(
                tag, lambda: codec.convert(blobs.get(output.id), format, new_width), waiter
            )
            picture = await run_in_threadpool(image_response.spool_to_file, data, blobs)
    except errors.ImageNotFound as error:
        raise _result_gone(error) from None
    return image_response.image_response(picture, format, tag, job_id)


RESULT_ROUTE = router.routes[-1]


def open_stored_result(job: Job, blobs: Blobs) -> image_response.PictureFile | None:
    """Return the response of `get_result` without parameters; None if the file must be hashed.

    Raises what `_get_output` and Blobs.open raise.
    """
    output = _get_output(job)
    file = blobs.open_verified(output.id)
    if file is None:
        return None
    return image_response.PictureFile(file, "png", f'"{output.id}-png"', job.id)


def _result_gone(error: errors.ImageNotFound) -> errors.ImpastoError:
    """Return what to raise for a result that cannot be read."""
    if isinstance(error, errors.ImageDamaged):
        return errors.ImageDamaged("The stored result is damaged; retry the job.")
    return errors.ResultGone()


def _get_output(job: Job) -> Output:
    """Raises JobNotEnded, NoResult, ResultGone."""
    if not job.status.has_ended:
        raise errors.JobNotEnded()
    if not job.outputs:
        raise errors.NoResult()
    if job.images_deleted:
        raise errors.ResultGone()
    return job.outputs[0]


@router.get(
    "/{job_id}/preview",
    response_class=Response,
    responses=image_responses("jpeg"),
    summary="Get the preview",
)
def get_preview(
    job_id: str, request: Request, owner: Owner, store: Store, blobs: Blobs
) -> Response:
    """Return a small JPEG of the newest state of the run."""
    # A newer preview may replace this one between reading the job and opening the file: retry once.
    with suppress(errors.ImageNotFound):
        return _respond_with_preview(get_owned_job(job_id, owner, store), request, blobs)
    return _respond_with_preview(get_owned_job(job_id, owner, store), request, blobs)


def _respond_with_preview(job: Job, request: Request, blobs: Blobs) -> Response:
    if job.preview is None:
        raise errors.NoResult("There is no preview.")
    tag = f'"{job.preview}"'
    if image_response.is_cached_by_client(request, tag):
        return image_response.not_modified(tag)
    return image_response.image_response(blobs.get(job.preview), "jpeg", tag, job.id)


@router.post("/{job_id}/cancel", response_model=JobResource, summary="Cancel a job")
def cancel_job(job_id: str, owner: Owner, store: Store) -> JobResource:
    """Cancel a queued job at once, and a running one within about a second. Safe to repeat.

    An ended job does not change. A running job keeps what it has computed so far as its result. A
    queued job ends without a result. If a worker had run it before, its preview remains.
    """
    if not is_job_id(job_id):
        raise errors.JobNotFound()
    return job_resource(store.cancel(job_id, owner))


@router.post(
    "/{job_id}/retry",
    status_code=202,
    response_model=JobResource,
    summary="Retry a job",
    max_body_size=_BODY_BYTES,
)
async def retry_job(
    job_id: str,
    response: Response,
    submissions: Annotated[SubmissionService, Depends()],
    change: RetryRequest | None = None,
    idempotency_key: Annotated[str | None, Header(pattern=IDEMPOTENCY_KEY_PATTERN)] = None,
) -> JobResource:
    """Create a new job from one that has ended: its pictures and parameters, with your changes.

    With `continue`, the new job begins with the old result: for more `iterations`, other weights,
    or a larger `size`. It has the old pool and priority, unless your key no longer allows them. It
    takes over neither the webhook nor the deadline.
    """
    change = change or RetryRequest()
    request_hash = compute_request_hash({"retry": job_id, **change.model_dump(exclude_unset=True)})
    if replay := await run_in_threadpool(
        submissions.replay_job, idempotency_key, request_hash, response
    ):
        return replay
    submission, options = await run_in_threadpool(_prepare_retry, job_id, change, submissions)
    context = submissions.build_context(
        idempotency_key, request_hash=request_hash, retried_from=job_id
    )
    return await create_checked(
        submission, options, context, response, submissions, chosen=change.spec
    )


def _prepare_retry(
    job_id: str, change: RetryRequest, submissions: SubmissionService
) -> tuple[JobSubmission, SubmissionOptions]:
    """Return what a client would submit to run the job again with these changes.

    Raises JobNotFound, JobNotEnded, NoResult, ResultGone, BadSpec.
    """
    old = get_owned_job(job_id, submissions.caller.owner, submissions.store)
    if not old.status.has_ended:
        raise errors.JobNotEnded()
    if old.images_deleted:
        raise errors.ResultGone("The job's pictures have been deleted; submit them again.")
    base = old.input
    if change.continue_from_result:
        base = _start_from_result(old, submissions.blobs)
    submission = JobSubmission.for_input(base, apply_changes(base.spec, change.spec))
    begins_with_picture = submission.parameters.get("init") == "picture"
    if change.continue_from_result and not begins_with_picture:
        raise errors.BadSpec("continue begins with the result: send init only without it.")
    if begins_with_picture and submission.init_image is None:
        raise errors.BadSpec("init=picture: a retry can only begin with the result; send continue.")
    # The lower of both: the caller's key may allow less than when the old job was submitted.
    priority = max(old.priority, submissions.caller.priority, key=list(Priority).index)
    pool = submissions.caller.pool or old.pool
    options = SubmissionOptions(priority=priority, webhook=change.webhook, pool=pool)
    return submission, submissions.check_options(options)


def _start_from_result(old: Job, blobs: Blobs) -> JobInput:
    """Return the job's input with its result as `init_image`.

    Raises NoResult, ResultGone, ImageDamaged.
    """
    result = _get_output(old).id
    try:
        blobs.check(result)
    except errors.ImageNotFound as error:
        raise _result_gone(error) from None
    return old.input.model_copy(
        update={"init_image": result, "spec": {**old.input.spec, "init": "picture"}}
    )


@router.patch(
    "/{job_id}", response_model=JobResource, summary="Update a job", max_body_size=_BODY_BYTES
)
async def update_job(
    *,
    job_id: str,
    owner: Owner,
    waiter: CurrentWaiter,
    store: Store,
    blobs: Blobs,
    update: JobUpdate,
) -> JobResource:
    """Change the weights of a queued or running job (`spec`), or pin a job (`pinned`).

    The next preview shows the new weights. A pinned job and its pictures do not expire. Safe to
    repeat.
    """
    job = await run_in_threadpool(get_owned_job, job_id, owner, store)
    if (
        "spec" in update.model_fields_set
        and not job.status.has_ended
        and job.spec_update_count < MAX_SPEC_UPDATES
    ):
        for mask in _newly_used_masks(job.input, job.input.with_updates(update.spec)):
            await inspect_picture(
                mask, "mask", mask=True, refuse_black=True, blobs=blobs, waiter=waiter
            )
    return job_resource(await run_in_threadpool(_update_job, job, owner, store, update))


def _update_job(job: Job, owner: str, store: JobStore, update: JobUpdate) -> Job:
    if "spec" in update.model_fields_set:
        job = store.update_spec(
            job.id, lambda job_input: job_input.with_updates(update.spec), owner
        )
    if "pinned" in update.model_fields_set:
        job = store.set_pinned(job.id, owner, pinned=update.pinned)
    return job


def _newly_used_masks(before: JobInput, after: JobInput) -> list[str]:
    """Return the masks of styles whose share was 0 and no longer is. They are not yet checked."""
    shares = [*zip(before.spec["style_weights"], after.spec["style_weights"], strict=True)]
    return [
        mask
        for masks in (before.masks, before.style_masks)
        for mask, (old, new) in zip(masks, shares, strict=False)
        if new and not old
    ]


@router.delete("/{job_id}", status_code=204, response_class=Response, summary="Delete a job")
def delete_job(job_id: str, owner: Owner, store: Store) -> Response:
    """Cancel the job if it runs, and delete its record and every picture that no other job uses.

    Safe to repeat.
    """
    if not is_job_id(job_id):
        raise errors.JobNotFound()
    store.delete(job_id, owner)
    return Response(status_code=204)


def get_owned_job(job_id: str, owner: str, store: JobStore) -> Job:
    """Return the owner's job. Raises JobNotFound, without a query if the id has the wrong form."""
    if not is_job_id(job_id):
        raise errors.JobNotFound()
    return store.get(job_id, owner)
