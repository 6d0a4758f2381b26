"""Jobs over HTTP: submit, list, get result and preview, cancel, retry, update, delete.

job_status.py has GET /v1/jobs/{job_id}.
"""

from contextlib import suppress
from itertools import islice
from typing import Annotated, Any, BinaryIO, Self

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator
from starlette.concurrency import run_in_threadpool

from api.dependencies import Blobs, Feed, Owner, Store
from api.http import image_response
from api.http.prefer import Wait, preference_applied
from api.job_feed import JobSnapshot
from api.routes.images import check_digest, inspect_picture
from api.schemas.job import JOBS, JobPage, JobResource, job_resource
from api.schemas.submission import (
    JobForm,
    JobSubmission,
    Picture,
    compute_request_hash,
    describe_body,
    parameters_schema,
)
from api.submissions import parser
from api.submissions.service import (
    IDEMPOTENCY_KEY_PATTERN,
    SubmissionService,
    picture_path,
    store_picture,
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
    parse_spec,
    result_size,
)

router = APIRouter(prefix=JOBS, tags=["jobs"])

_BODY_BYTES = 100_000


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
    """Send `content`, one or more `style`, any parameters, and optionally `mask` and `init_image`.

    Instead, you can send a result as `from`, together with what the new job changes.

    The answer comes at once and contains the job; poll its `self` link. To repeat a request safely
    after a lost answer, send an `Idempotency-Key`: within a day, the same key returns the same job.
    `Prefer: wait=N` (30 s at most) waits for the end of the job.
    """
    job = await _submit_or_replay(request, response, submissions, idempotency_key)
    if wait_seconds:
        # The job is accepted. An error while waiting must not hide that.
        with suppress(errors.RetryLater, errors.JobNotFound):
            owner = submissions.caller.owner
            snapshot = await feed.wait_for(_has_ended, job.id, owner, wait_seconds)
            response.headers.update(preference_applied(wait_seconds))
            return job_resource(snapshot.job)
    return job


def _has_ended(_: JobSnapshot, newest: JobSnapshot) -> bool:
    return newest.job.status.has_ended


async def _submit_or_replay(
    request: Request, response: Response, submissions: SubmissionService, key: str | None
) -> JobResource:
    async with parser.parse_submission(request, submissions.blobs) as sent:
        # Hashing reads the uploaded files, so it runs in a thread.
        request_hash = await run_in_threadpool(lambda: compute_request_hash(sent.request_content()))
        if job := await run_in_threadpool(submissions.replay_job, key, request_hash, response):
            return job
        options = submissions.check_options(sent.options)
        submission = await run_in_threadpool(_apply_provenance, sent, submissions)
        spec = await run_in_threadpool(_check_submission, submission, submissions)
        await run_in_threadpool(submissions.check_limits, options)
        content_size = await _inspect_pictures(submission, spec, submissions.blobs)
        result_size(*content_size, spec.size, seamless=spec.seamless)
        job_input = await run_in_threadpool(_store_pictures, submission, spec, submissions)
        return await run_in_threadpool(
            submissions.create_job,
            job_input,
            options,
            submissions.build_context(key, request_hash=request_hash),
            response,
        )


def _apply_provenance(submission: JobSubmission, submissions: SubmissionService) -> JobSubmission:
    """Complete the submission by the provenance record of the result that was sent as `from`.

    The record is untrusted input, so its values pass the same checks as the client's own.
    """
    if submission.source is None:
        return submission
    if isinstance(submission.source, str):
        check_digest(
            submission.source, submissions.caller.owner, submissions.store, submissions.blobs
        )
    with picture_path(submission.source, submissions.blobs).open("rb") as file:
        earlier = JobInput.from_provenance(codec.read_provenance(file))
    return submission.complete_from(earlier)


def _check_submission(submission: JobSubmission, submissions: SubmissionService) -> StyleSpec:
    """Return the spec for these pictures, and reserve the pictures that were named by digest.

    Raises BadSpec, ImageNotFound.
    """
    spec = parse_spec(submission.parameters).for_pictures(
        len(submission.styles),
        len(submission.masks),
        init_image=submission.init_image is not None,
    )
    owner, store, blobs = submissions.caller.owner, submissions.store, submissions.blobs
    try:
        for picture in submission.pictures():
            if isinstance(picture, str):
                check_digest(picture, owner, store, blobs)
    except errors.ImageNotFound:
        if submission.source is None:
            raise
        raise errors.ImageNotFound(
            "A picture that the record names is not available; send it beside from."
        ) from None
    return spec


def _store_pictures(
    submission: JobSubmission, spec: StyleSpec, submissions: SubmissionService
) -> JobInput:
    """Store all pictures on disk, before the job is created and the request is answered.

    Call this after all checks: a refused submission must leave nothing behind.
    """
    digests = iter(
        [
            store_picture(picture, submissions.store, submissions.blobs)
            for picture in submission.pictures()
        ]
    )
    return JobInput(
        content=next(digests),
        styles=list(islice(digests, len(submission.styles))),
        masks=list(islice(digests, len(submission.masks))),
        init_image=next(digests, None),
        spec=spec.model_dump(),
    )


async def _inspect_pictures(
    submission: JobSubmission, spec: StyleSpec, blobs: Blobs
) -> tuple[int, int]:
    """Decode all pictures. Returns the (width, height) of the photo. Raises BadImage.

    Only the mask of a style with a share must have a pixel that is not black. An initial picture
    that is named by digest may be a result, so the limits for uploads do not apply to it.
    """

    async def inspect(picture: Picture, **options: bool) -> tuple[int, int]:
        return await inspect_picture(picture_path(picture, blobs), **options)

    assert submission.content is not None, "the model requires it, or `from` has completed it"
    content_size = await inspect(submission.content)
    for style in submission.styles:
        await inspect(style)
    for mask, share in zip(submission.masks, spec.style_weights, strict=False):
        await inspect(mask, mask=share > 0)
    if submission.init_image is not None:
        await inspect(submission.init_image, any_size=isinstance(submission.init_image, str))
    return content_size


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
        next_page = f"{JOBS}?limit={limit}&cursor={next_cursor}{filters}"
    return JobPage(jobs=[job_resource(job) for job in jobs], next=next_page)


@router.get(
    "/{job_id}/result",
    response_class=Response,
    responses=image_responses(*FORMATS),
    summary="Get the result",
)
async def get_result(
    *,
    job_id: str,
    request: Request,
    owner: Owner,
    store: Store,
    blobs: Blobs,
    format: validation.Format = "png",
    width: Annotated[int | None, Query(ge=16, le=MAX_SIZE_PX)] = None,
) -> Response:
    """Return the picture as PNG, JPEG or WebP. The PNG contains a record of how it was made.

    If a job was canceled while it ran, its result is the state at that time. `width` in px makes
    the picture smaller, never larger.
    """
    output = await run_in_threadpool(lambda: _get_output(get_owned_job(job_id, owner, store)))
    new_width = width if width is not None and width < output.width else None
    suffix = "" if new_width is None else f"-{new_width}"
    tag = f'"{output.id}-{format}{suffix}"'
    if image_response.is_cached_by_client(request, tag):
        return image_response.not_modified(tag)
    try:
        if format == "png" and new_width is None:
            picture: bytes | BinaryIO = await run_in_threadpool(blobs.open, output.id)
        else:
            data = await image_response.render_cached(
                tag, lambda: codec.convert(blobs.get(output.id), format, new_width)
            )
            picture = await run_in_threadpool(image_response.spool_to_file, data, blobs)
    except errors.ImageNotFound:
        raise errors.ResultGone() from None
    return image_response.image_response(picture, format, tag, job_id)


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
        raise errors.NoResult("There is no preview yet.")
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
def retry_job(
    job_id: str,
    response: Response,
    submissions: Annotated[SubmissionService, Depends()],
    change: RetryRequest | None = None,
    idempotency_key: Annotated[str | None, Header(pattern=IDEMPOTENCY_KEY_PATTERN)] = None,
) -> JobResource:
    """Create a new job from one that has ended: its pictures and parameters, with your changes.

    With `continue`, the new job begins with the old result: for more `iterations`, other weights,
    or a larger `size`. It has the old priority, unless your key no longer allows it. It takes over
    neither the webhook nor the deadline.
    """
    change = change or RetryRequest()
    request_hash = compute_request_hash({"retry": job_id, **change.model_dump(exclude_unset=True)})
    if replay := submissions.replay_job(idempotency_key, request_hash, response):
        return replay
    old = get_owned_job(job_id, submissions.caller.owner, submissions.store)
    if not old.status.has_ended:
        raise errors.JobNotEnded()
    if old.images_deleted:
        raise errors.ResultGone("The job's pictures have been deleted; submit them again.")
    base = old.input
    if change.continue_from_result:
        base = _start_from_result(old, submissions.blobs)
    spec = parse_spec(apply_changes(base.spec, change.spec)).for_pictures(
        len(base.styles), len(base.masks), init_image=base.init_image is not None
    )
    job_input = base.model_copy(update={"spec": spec.model_dump()})
    # The lower of both: the caller's key may allow less than when the old job was submitted.
    priority = max(old.priority, submissions.caller.priority, key=list(Priority).index)
    options = submissions.check_options(
        SubmissionOptions(priority=priority, webhook=change.webhook)
    )
    context = submissions.build_context(
        idempotency_key, request_hash=request_hash, retried_from=job_id
    )
    return submissions.create_job(job_input, options, context, response)


def _start_from_result(old: Job, blobs: Blobs) -> JobInput:
    """Return the job's input with its result as `init_image`. Raises NoResult, ResultGone."""
    result = _get_output(old).id
    if not blobs.has(result):
        raise errors.ResultGone()
    return old.input.model_copy(
        update={"init_image": result, "spec": {**old.input.spec, "init": "picture"}}
    )


@router.patch(
    "/{job_id}", response_model=JobResource, summary="Update a job", max_body_size=_BODY_BYTES
)
async def update_job(
    job_id: str, owner: Owner, store: Store, blobs: Blobs, update: JobUpdate
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
            await inspect_picture(blobs.path(mask), mask=True)
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
    shares = zip(
        before.masks, before.spec["style_weights"], after.spec["style_weights"], strict=False
    )
    return [mask for mask, old, new in shares if new and not old]


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
