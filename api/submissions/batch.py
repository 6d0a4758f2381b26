"""A submission of a batch, from the request to the created jobs. Knows no route."""

import math
from collections.abc import Sequence

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from api.schemas.submission import BatchSubmission, compute_request_hash
from api.submissions import estimates, parser
from api.submissions.estimates import PictureSizes, Size
from api.submissions.pictures import (
    check_digest,
    digest_of_picture,
    inspect_picture,
    store_picture,
)
from api.submissions.service import SubmissionService
from core import errors
from core.jobs.models import (
    Batch,
    JobInput,
    SubmissionContext,
    SubmissionOptions,
    new_batch_id,
    number_parts,
)
from core.style.spec import StyleSpec, parse_spec, result_size


async def create_or_replay(
    request: Request, submissions: SubmissionService, key: str | None
) -> tuple[Batch, bool, list[str]]:
    """Return the batch, whether the same request has created it earlier, and warnings.

    key: the Idempotency-Key. Raises what the checks raise; then nothing is stored.
    """
    async with parser.parse_batch(request, submissions.blobs, submissions.form_quota) as submission:
        # Hashing reads the uploaded files, so it runs in a thread.
        request_hash = await run_in_threadpool(
            lambda: compute_request_hash(submission.request_content())
        )
        if replay := await run_in_threadpool(_find_replay, key, request_hash, submissions):
            return replay, True, []
        options = submissions.check_options(submission.options)
        spec = await run_in_threadpool(_check_submission, submission, submissions)
        count = len(submission.contents) * len(submission.styles)
        pictures = (*submission.contents, *submission.styles)
        picture_bytes = await run_in_threadpool(submissions.check_limits, options, pictures, count)
        sizes, by_digest, warnings = await _inspect_pictures(submission, spec, submissions)
        for size in sizes[: len(submission.contents)]:
            spec = submissions.job_limits.clip_defaults(spec, submission.parameters, *size)
        await _check_sizes(sizes, len(submission.contents), spec, submissions)
        context = submissions.build_context(key, request_hash=request_hash)
        found = {"picture_bytes": picture_bytes, "picture_warnings": by_digest}
        context = context.model_copy(update=found)
        batch, replayed = await run_in_threadpool(
            _create_batch, submission, spec, options, context, submissions, sizes=sizes
        )
        return batch, replayed, warnings


async def _inspect_pictures(
    submission: BatchSubmission, spec: StyleSpec, submissions: SubmissionService
) -> tuple[list[Size], dict[str, list[str]], list[str]]:
    """Decode all pictures. Returns their sizes, photos first, and warnings: by digest, and by part.

    Raises BadImage.
    """
    sizes: list[Size] = []
    by_digest: dict[str, list[str]] = {}
    warnings: list[str] = []
    contents = number_parts("content", len(submission.contents))
    parts = [*contents, *number_parts("style", len(submission.styles))]
    pictures = [*submission.contents, *submission.styles]
    for part, picture in zip(parts, pictures, strict=True):
        found = await inspect_picture(
            picture, part, spec.background, blobs=submissions.blobs, waiter=submissions.waiter
        )
        if found.warnings:
            by_digest[digest_of_picture(picture)] = [*found.warnings]
        warnings.extend(f"{part}: {warning}" for warning in found.warnings)
        sizes.append(found.size)
    return sizes, by_digest, warnings


async def _check_sizes(
    sizes: Sequence[Size], contents: int, spec: StyleSpec, submissions: SubmissionService
) -> None:
    """Check each photo's shape, and the job of the longest run. The first sizes are the photos'.

    Raises BadSpec.
    """
    results = [result_size(*size, spec.size, seamless=spec.seamless) for size in sizes[:contents]]
    for size in sizes[:contents]:
        submissions.job_limits.check_spec(spec, *size)
    largest = PictureSizes(max(results, key=math.prod), [max(sizes[contents:], key=math.prod)])
    await estimates.check_limits(submissions, spec, largest, 0)


def _find_replay(
    key: str | None, request_hash: str, submissions: SubmissionService
) -> Batch | None:
    batch_id = submissions.find_replay(key, request_hash)
    if batch_id is None:
        return None
    return submissions.store.get_batch(batch_id, submissions.caller.owner)


def _check_submission(submission: BatchSubmission, submissions: SubmissionService) -> StyleSpec:
    """Return the spec of each job, and reserve the pictures that were named by digest.

    Raises BadSpec, BadRequest, ImageNotFound.
    """
    spec = parse_spec(submission.parameters).for_pictures()
    submissions.check_model(spec)
    max_jobs = submissions.config.max_jobs_per_caller
    if len(submission.contents) * len(submission.styles) > max_jobs:
        raise errors.BadRequest(f"You may have {max_jobs} jobs; this batch has more.")
    for picture in (*submission.contents, *submission.styles):
        if isinstance(picture, str):
            check_digest(picture, submissions.caller.owner, submissions.store, submissions.blobs)
    return spec


def _create_batch(
    submission: BatchSubmission,
    spec: StyleSpec,
    options: SubmissionOptions,
    context: SubmissionContext,
    submissions: SubmissionService,
    *,
    sizes: Sequence[Size],
) -> tuple[Batch, bool]:
    """Store the pictures, create the jobs and wake the workers.

    sizes: of the pictures, the photos first. Also returns whether the same request has created the
    batch in the meantime.
    """
    store, blobs = submissions.store, submissions.blobs
    contents = [store_picture(picture, store, blobs) for picture in submission.contents]
    styles = [store_picture(picture, store, blobs) for picture in submission.styles]
    inputs = [
        JobInput(content=content, styles=[style], spec=spec.model_dump())
        for content in contents
        for style in styles
    ]
    sizes_by_digest = dict(zip(contents, sizes, strict=False))
    context = context.model_copy(update={"picture_sizes": sizes_by_digest})
    batch_id, options = new_batch_id(), submissions.check_reuse(options, inputs)
    batch = store.create_batch(batch_id, inputs, options, submissions.limits, context)
    if batch.id == batch_id and any(not job.status.has_ended for job in batch.jobs):
        # One idle worker starts at once; the reaper notifies the others within a second.
        submissions.notify()
    return batch, batch.id != batch_id
