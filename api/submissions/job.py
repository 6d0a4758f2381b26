"""A submission of one job, from the request to the created job. Knows no route."""

from collections.abc import Collection
from itertools import islice

from fastapi import Request, Response
from starlette.concurrency import run_in_threadpool

from api.schemas.job import JobResource
from api.schemas.submission import JobSubmission, Picture, compute_request_hash
from api.submissions import estimates, parser
from api.submissions.estimates import PictureSizes, Size
from api.submissions.pictures import (
    check_digest,
    digest_of_picture,
    inspect_picture,
    picture_path,
    store_picture,
)
from api.submissions.service import SubmissionService
from core import errors
from core.images import codec
from core.jobs.models import (
    JobInput,
    SubmissionContext,
    SubmissionOptions,
    background_of,
    number_parts,
)
from core.style.spec import StyleSpec, parse_spec


async def create_or_replay(
    request: Request, response: Response, submissions: SubmissionService, key: str | None
) -> JobResource:
    """Create the job that the request describes, or return the one that it created before.

    key: the Idempotency-Key. Raises what the checks raise; then nothing is stored.
    """
    async with parser.parse_submission(request, submissions.blobs, submissions.form_quota) as sent:
        # Hashing reads the uploaded files, so it runs in a thread.
        request_hash = await run_in_threadpool(lambda: compute_request_hash(sent.request_content()))
        if job := await run_in_threadpool(submissions.replay_job, key, request_hash, response):
            return job
        options = submissions.check_options(sent.options)
        submission = await run_in_threadpool(_apply_provenance, sent, submissions)
        context = submissions.build_context(key, request_hash=request_hash)
        return await create_checked(submission, options, context, response, submissions)


async def create_checked(
    submission: JobSubmission,
    options: SubmissionOptions,
    context: SubmissionContext,
    response: Response,
    submissions: SubmissionService,
    *,
    chosen: Collection[str] | None = None,
) -> JobResource:
    """Create a job after all checks of its parameters and pictures; a retry passes the same ones.

    chosen: the names of the parameters that the caller set; None: all of the submission.
    Raises what the checks raise; then nothing is stored.
    """
    spec = await run_in_threadpool(_check_submission, submission, submissions)
    pictures = submission.pictures()
    picture_bytes = await run_in_threadpool(submissions.check_limits, options, pictures)
    context = context.model_copy(update={"picture_bytes": picture_bytes})
    sizes, warnings = await _inspect_pictures(submission, spec, submissions)
    chosen = submission.parameters if chosen is None else chosen
    spec = submissions.job_limits.clip_defaults(spec, chosen, *sizes.content)
    await estimates.check_limits(submissions, spec, sizes, len(submission.masks))
    job_input = await run_in_threadpool(_store_pictures, submission, spec, submissions)
    found = {"picture_sizes": _sizes_by_digest(job_input, sizes), "picture_warnings": warnings}
    context = context.model_copy(update=found)
    return await run_in_threadpool(submissions.create_job, job_input, options, context, response)


def _sizes_by_digest(job_input: JobInput, sizes: PictureSizes) -> dict[str, Size]:
    found = {job_input.content: sizes.content}
    if job_input.init_image is not None and sizes.init is not None:
        found[job_input.init_image] = sizes.init
    return found


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
        len(submission.style_masks),
        init_image=submission.init_image is not None,
    )
    submissions.check_model(spec)
    owner, store, blobs = submissions.caller.owner, submissions.store, submissions.blobs
    try:
        for picture in submission.pictures():
            if isinstance(picture, str):
                check_digest(picture, owner, store, blobs)
    except errors.ImageNotFound as error:
        if submission.source is None:
            raise
        if isinstance(error, errors.ImageDamaged):
            raise errors.ImageDamaged(
                "A picture that the record names is damaged; send it beside from."
            ) from None
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
        style_masks=list(islice(digests, len(submission.style_masks))),
        init_image=next(digests, None),
        spec=spec.model_dump(),
    )


async def _inspect_pictures(
    submission: JobSubmission, spec: StyleSpec, submissions: SubmissionService
) -> tuple[PictureSizes, dict[str, list[str]]]:
    """Decode all pictures. Returns their sizes, and warnings by digest. Raises BadImage.

    Only the masks of a style with a share must have a pixel that is not black. An initial picture
    that is named by digest may be a result, so the limits for uploads do not apply to it.
    """
    warnings: dict[str, list[str]] = {}

    async def inspect(part: str, picture: Picture, **options: bool) -> tuple[int, int]:
        background = background_of(part, spec.background, spec.transparency)
        blobs, waiter = submissions.blobs, submissions.waiter
        found = await inspect_picture(
            picture, part, background, blobs=blobs, waiter=waiter, **options
        )
        if found.warnings:
            warnings[digest_of_picture(picture)] = [*found.warnings]
        return found.size

    assert submission.content is not None, "the model requires it, or `from` has completed it"
    content_size = await inspect("content", submission.content)
    style_sizes = [
        await inspect(part, style) for part, style in _name_pictures("style", submission.styles)
    ]
    for field, masks in (("mask", submission.masks), ("style_mask", submission.style_masks)):
        named = _name_pictures(field, masks)
        for (part, mask), share in zip(named, spec.style_weights, strict=False):
            await inspect(part, mask, mask=True, refuse_black=share > 0)
    init_size = None
    if (init_image := submission.init_image) is not None:
        any_size = isinstance(init_image, str)
        init_size = await inspect("init_image", init_image, any_size=any_size)
    return PictureSizes(content_size, style_sizes, init_size), warnings


def _name_pictures(field: str, pictures: list[Picture]) -> list[tuple[str, Picture]]:
    return list(zip(number_parts(field, len(pictures)), pictures, strict=True))
