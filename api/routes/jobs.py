"""Jobs over HTTP: submit, list, result, preview, cancel, retry, change, delete. One job's status: job_status.py."""

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
from api.routes.images import inspect, resolve_digest
from api.schemas.job import JOBS, JobPage, JobResource, resource
from api.submissions import parser
from api.submissions.service import KEY, SubmissionService, file_of, kept
from core import errors
from core.images import codec, validation
from core.images.validation import FORMATS
from core.jobs.models import MAX_SPEC_UPDATES, Job, JobInput, Output, Priority, Status, is_job_id
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


def pictures(*formats: str) -> dict[int | str, dict[str, Any]]:
    """For the contract: 200 is a picture, 304 says that the client has it."""
    return {200: {"content": {f"image/{kind}": {} for kind in formats}}, 304: {}}


class Retry(BaseModel):
    """What is to be different."""

    model_config = ConfigDict(extra="forbid")

    spec: dict[str, Any] = Field(
        {},
        description="Parameters, as in a submission.",
        json_schema_extra=parser.parameters_schema(),
    )
    webhook: str | None = Field(None, description="A URL that is told when the new job has ended.")
    continue_from_result: StrictBool = Field(
        False,
        alias="continue",
        description="Begin with the result: for more iterations, or a larger size.",
    )


def _weights_schema() -> dict[str, Any]:
    """Of the parameters that may be spec_updates."""
    schema = StyleSpec.model_json_schema()
    return {
        "properties": {name: schema["properties"][name] for name in UPDATABLE},
        "additionalProperties": False,
    }


class Change(BaseModel):
    """What is to be different."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"minProperties": 1})

    pinned: StrictBool = Field(False, description="Whether to keep the job for good.")
    spec: dict[str, Any] = Field(
        {},
        description="Other weights for a job that waits or runs.",
        json_schema_extra=_weights_schema(),
    )

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError("Say what is to be different.")
        return self


@router.post(
    "",
    status_code=202,
    response_model=JobResource,
    summary="Paint a picture",
    max_body_size=parser.BODY_BYTES,
    openapi_extra={"requestBody": parser.openapi_body()},
)
async def submit(
    *,
    request: Request,
    response: Response,
    submissions: Annotated[SubmissionService, Depends()],
    feed: Feed,
    patience: Wait,
    idempotency_key: Annotated[str | None, Header(pattern=KEY)] = None,
) -> JobResource:
    """Send `content`, one or more `style`, and any parameter; `mask` and `init_image` are further pictures. Or send a result
    as `from`, and what is to be different.

    Answers at once with the job; poll its `self` link. The same `Idempotency-Key` again, within a day, gives the same
    job: send one, and a request may be repeated safely when its answer was lost. With `Prefer: wait=N` (30 s at most)
    the answer comes when the job has ended.
    """
    job = await _submitted(request, response, submissions, idempotency_key)
    if patience:
        with suppress(
            errors.RetryLater, errors.JobNotFound
        ):  # the job is taken; nothing may hide that
            snapshot = await feed.wait_for(_ended, job.id, submissions.caller.owner, patience)
            response.headers.update(preference_applied(patience))
            return resource(snapshot.job)
    return job


def _ended(_: JobSnapshot, newest: JobSnapshot) -> bool:
    return newest.job.status.has_ended


async def _submitted(
    request: Request, response: Response, submissions: SubmissionService, key: str | None
) -> JobResource:
    async with parser.parse_submission(request, submissions.blobs) as came:
        sent = await run_in_threadpool(lambda: parser.request_hash(came.sent()))
        if before := await run_in_threadpool(submissions.replayed, key, sent, response):
            return before
        wishes = submissions.agreed(came.wishes)
        submitted = await run_in_threadpool(_completed, came, submissions)
        spec = await run_in_threadpool(_resolved, submitted, submissions)
        seen = zip(submitted.pictures(), _must_select(submitted, spec), strict=False)
        sizes = [
            await inspect(file_of(picture, submissions.blobs), mask=mask) for picture, mask in seen
        ]
        result_size(*sizes[0], spec.size, seamless=spec.seamless)
        job_input = await run_in_threadpool(_stored, submitted, spec, submissions)
        return await run_in_threadpool(
            submissions.take, job_input, wishes, response, key=key, request=sent
        )


def _completed(submitted: parser.Submission, submissions: SubmissionService) -> parser.Submission:
    """With what the record of a result says, where nothing was sent. It is a stranger's word, and checked like one."""
    if submitted.source is None:
        return submitted
    if isinstance(submitted.source, str):
        resolve_digest(
            submitted.source, submissions.caller.owner, submissions.store, submissions.blobs
        )
    with file_of(submitted.source, submissions.blobs).open("rb") as file:
        return submitted.over(JobInput.from_provenance(codec.read_provenance(file)))


def _resolved(submitted: parser.Submission, submissions: SubmissionService) -> StyleSpec:
    """The parameters for these pictures; those named by digest are here, and stay."""
    spec = parse_spec(submitted.parameters)
    init = submitted.init_image is not None
    spec = spec.for_pictures(len(submitted.styles), len(submitted.masks), init_image=init)
    try:
        for digest in (picture for picture in submitted.pictures() if isinstance(picture, str)):
            resolve_digest(digest, submissions.caller.owner, submissions.store, submissions.blobs)
    except errors.ImageNotFound:
        if submitted.source is None:
            raise
        raise errors.ImageNotFound(
            "A picture that the record names is not here; send it beside from."
        ) from None
    return spec


def _stored(
    submitted: parser.Submission, spec: StyleSpec, submissions: SubmissionService
) -> JobInput:
    """All was checked before anything is stored; all is on disk, pictures and record, before the answer is given."""
    digests = iter(
        [kept(picture, submissions.store, submissions.blobs) for picture in submitted.pictures()]
    )
    return JobInput(
        content=next(digests),
        styles=list(islice(digests, len(submitted.styles))),
        masks=list(islice(digests, len(submitted.masks))),
        init_image=next(digests, None),
        spec=spec.model_dump(),
    )


def _must_select(submitted: parser.Submission, spec: StyleSpec) -> list[bool]:
    """For each picture, in their order: is it a mask that must not be black? Without a share, it may be."""
    before = 1 + len(submitted.styles)
    return (
        [False] * before
        + [share > 0 for share in spec.style_weights[: len(submitted.masks)]]
        + [False]
    )


@router.get("", summary="List jobs")
def listing(
    store: Store,
    owner: Owner,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    cursor: Annotated[int | None, Query(ge=1, le=2**53)] = None,
    status: Annotated[list[Status] | None, Query(description="Those in one of these.")] = None,
) -> JobPage:
    """Newest first; follow `next` for older ones. `status` may be said several times."""
    statuses = list(dict.fromkeys(status or []))
    jobs, before = store.list_page(limit=limit, before=cursor, statuses=statuses, owner=owner)
    following = None
    if before is not None:
        following = f"{JOBS}?limit={limit}&cursor={before}" + "".join(
            f"&status={one}" for one in statuses
        )
    return JobPage(jobs=[resource(job) for job in jobs], next=following)


@router.get(
    "/{job_id}/result", response_class=Response, responses=pictures(*FORMATS), summary="The picture"
)
async def result(
    *,
    job_id: str,
    request: Request,
    owner: Owner,
    store: Store,
    blobs: Blobs,
    format: validation.Format = "png",
    width: Annotated[int | None, Query(ge=16, le=MAX_SIZE_PX)] = None,
) -> Response:
    """The picture as PNG (with a record of how it was made), JPEG or WebP; of a canceled job, how far it got.

    `width` makes it smaller, in px; never larger.
    """
    output = await run_in_threadpool(lambda: _output(found(job_id, owner, store)))
    smaller = width if width is not None and width < output.width else None
    tag = f'"{output.id}-{format}{"" if smaller is None else f"-{smaller}"}"'
    if image_response.is_cached(request, tag):
        return image_response.not_modified(tag)
    try:
        if format == "png" and smaller is None:
            made: bytes | BinaryIO = await run_in_threadpool(blobs.open, output.id)
        else:
            data = await image_response.render_cached(
                tag, lambda: codec.convert(blobs.get(output.id), format, smaller)
            )
            made = await run_in_threadpool(image_response.blob_response, data, blobs)
    except errors.ImageNotFound:
        raise errors.ResultGone() from None
    return image_response.image_response(made, format, tag, job_id)


def _output(job: Job) -> Output:
    """The result of a job that has one."""
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
    responses=pictures("jpeg"),
    summary="The picture so far",
)
def preview(job_id: str, request: Request, owner: Owner, store: Store, blobs: Blobs) -> Response:
    """A small JPEG of the newest state, while there is one."""
    with suppress(
        errors.ImageNotFound
    ):  # a newer one has come, and this one has gone, between the two lines
        return _preview(found(job_id, owner, store), request, blobs)
    return _preview(found(job_id, owner, store), request, blobs)


def _preview(job: Job, request: Request, blobs: Blobs) -> Response:
    if job.preview is None:
        raise errors.NoResult("There is no preview yet.")
    tag = f'"{job.preview}"'
    if image_response.is_cached(request, tag):
        return image_response.not_modified(tag)
    return image_response.image_response(blobs.get(job.preview), "jpeg", tag, job.id)


@router.post("/{job_id}/cancel", response_model=JobResource, summary="Stop it")
def cancel(job_id: str, owner: Owner, store: Store) -> JobResource:
    """A waiting job is canceled at once, a running one within about a second; an ended one stays. Safe to repeat.

    What a running job has painted so far is its result. One that waits ends without a result; if a worker has begun it
    and given it back, its preview stays.
    """
    if not is_job_id(job_id):
        raise errors.JobNotFound()
    return resource(store.cancel(job_id, owner))


@router.post(
    "/{job_id}/retry",
    status_code=202,
    response_model=JobResource,
    summary="Once more",
    max_body_size=_BODY_BYTES,
)
def retry(
    job_id: str,
    response: Response,
    submissions: Annotated[SubmissionService, Depends()],
    change: Retry | None = None,
    idempotency_key: Annotated[str | None, Header(pattern=KEY)] = None,
) -> JobResource:
    """A new job with the pictures of one that has ended, its parameters, and what you change of them.

    `continue` begins with its result: more `iterations`, other weights, or a larger `size` of the same picture.
    Its priority is the old one's, as far as your key may still ask for it; webhook and deadline are not taken over.
    """
    change = change or Retry()
    sent = parser.request_hash({"retry": job_id, **change.model_dump(exclude_unset=True)})
    if before := submissions.replayed(idempotency_key, sent, response):
        return before
    old = found(job_id, submissions.caller.owner, submissions.store)
    if not old.status.has_ended:
        raise errors.JobNotEnded()
    if old.images_deleted:
        raise errors.ResultGone("The job's pictures are no longer kept; submit them again.")
    made_of = _continued(old, submissions.blobs) if change.continue_from_result else old.input
    spec = parse_spec(apply_changes(made_of.spec, change.spec))
    spec = spec.for_pictures(
        len(made_of.styles), len(made_of.masks), init_image=made_of.init_image is not None
    )
    job_input = made_of.model_copy(update={"spec": spec.model_dump()})
    priority = max(
        old.priority, submissions.caller.priority, key=list(Priority).index
    )  # the lower: who asks may do less by now
    wishes = submissions.agreed(parser.ClientOptions(priority=priority, webhook=change.webhook))
    return submissions.take(
        job_input, wishes, response, key=idempotency_key, request=sent, old=job_id
    )


def _continued(old: Job, blobs: Blobs) -> JobInput:
    """To begin with what the job has painted."""
    result = _output(old).id
    if not blobs.has(result):
        raise errors.ResultGone()
    return old.input.model_copy(
        update={"init_image": result, "spec": {**old.input.spec, "init": "picture"}}
    )


@router.patch(
    "/{job_id}", response_model=JobResource, summary="Steer it, keep it", max_body_size=_BODY_BYTES
)
async def change(
    job_id: str, owner: Owner, store: Store, blobs: Blobs, wanted: Change
) -> JobResource:
    """`spec`: other weights for a job that waits or runs; the next preview shows them. Safe to repeat.

    `pinned`: a pinned job and its pictures do not expire.
    """
    job = await run_in_threadpool(found, job_id, owner, store)
    if (
        "spec" in wanted.model_fields_set
        and not job.status.has_ended
        and job.spec_update_count < MAX_SPEC_UPDATES
    ):
        for mask in _woken(job.input, job.input.with_updates(wanted.spec)):
            await inspect(blobs.path(mask), mask=True)

    def take() -> Job:
        now = job
        if "spec" in wanted.model_fields_set:
            now = store.update_spec(
                job_id, lambda job_input: job_input.with_updates(wanted.spec), owner
            )
        return (
            store.set_pinned(job_id, owner, pinned=wanted.pinned)
            if "pinned" in wanted.model_fields_set
            else now
        )

    return resource(await run_in_threadpool(take))


def _woken(before: JobInput, after: JobInput) -> list[str]:
    """The masks of the paintings that get a share and had none: nobody has looked at these."""
    shares = zip(
        before.masks, before.spec["style_weights"], after.spec["style_weights"], strict=False
    )
    return [mask for mask, old, new in shares if new and not old]


@router.delete("/{job_id}", status_code=204, response_class=Response, summary="Forget it")
def delete(job_id: str, owner: Owner, store: Store) -> Response:
    """Stop it if it runs, and delete the record and every picture that no other job uses. Safe to repeat."""
    if not is_job_id(job_id):
        raise errors.JobNotFound()
    store.delete(job_id, owner)
    return Response(status_code=204)


def found(job_id: str, owner: str, store: JobStore) -> Job:
    """Raises JobNotFound; what is no id at all costs no question."""
    if not is_job_id(job_id):
        raise errors.JobNotFound()
    return store.get(job_id, owner)
