"""Pictures by their digests: POST, HEAD and GET under /v1/images."""

from typing import Annotated, Any, TypedDict

from anyio import to_thread
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from api.dependencies import Blobs, Configuration, CurrentWaiter, Owner, Store
from api.http import image_response
from api.http.root_path import add_root_path
from api.schemas.submission import NOT_READ
from api.submissions import multipart
from api.submissions.pictures import inspect_picture, is_available
from core import errors
from core.images import codec, decoder, validation
from core.style.spec import MAX_SIZE_PX

router = APIRouter(prefix="/v1/images", tags=["images"])

BODY_BYTES = validation.MAX_BYTES + 100_000
# Text is refused with what to send instead, such as for a data URI.
_FORM_LIMITS = multipart.FormLimits(files=2, fields=2, text_bytes=100_000)
_SEND_IMAGE = "Send the picture as a file in the form field image: with curl, -F image=@photo.jpg."
_FORM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["image"],
    "properties": {"image": {"type": "string", "format": "binary"}},
}


class StoredImage(BaseModel):
    """An uploaded picture. Use its id, the digest, in any number of jobs."""

    id: str
    width: int
    height: int
    size_bytes: int
    warnings: list[str] = []  # sentences about a doubtful file


class _Quota(TypedDict):
    """The limits of a caller's uploads."""

    max_bytes: float
    max_uploads: int


def _reserve_upload(
    digest: str, size_bytes: int, owner: str, store: Store, config: Configuration
) -> None:
    """Reserve the picture for the retention time of uploads and count it. Raises QuotaExceeded."""
    keep_seconds = config.upload_retention_hours * 3600
    store.reserve(digest, keep_seconds, owner, size_bytes=size_bytes, **_quota(config))


def _quota(config: Configuration) -> _Quota:
    return {
        "max_bytes": config.upload_quota_gb_per_caller * 1e9,
        "max_uploads": config.max_uploads_per_caller,
    }


@router.post(
    "",
    status_code=201,
    summary="Upload a picture",
    max_body_size=BODY_BYTES,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": _FORM_SCHEMA}},
        }
    },
)
async def upload_image(
    *,
    request: Request,
    owner: Owner,
    waiter: CurrentWaiter,
    store: Store,
    blobs: Blobs,
    config: Configuration,
    response: Response,
) -> StoredImage:
    """Send a picture (JPEG, PNG, WebP, HEIC, AVIF, TIFF, GIF) as the form field `image`.

    The answer contains its digest, which you can use in any number of submissions.
    """
    quota = multipart.FormQuota(waiter.caller, config.upload_quota_gb_per_caller * 1e9)
    async with multipart.parse_form(request, blobs, _FORM_LIMITS, quota) as form:
        images = form.getlist("image")
        if len(images) > 1:
            raise errors.BadRequest("image was sent twice; send one file.")
        image = images[0] if images else None
        if isinstance(image, str) and image.strip():
            raise errors.BadRequest(f"{_SEND_IMAGE} {NOT_READ}")
        if not isinstance(image, UploadFile) or multipart.is_unset(image):
            raise errors.BadRequest(_SEND_IMAGE)
        blob = multipart.get_pending_blob(image)
        # It may be a mask, or a picture for a job that names another background.
        found = await inspect_picture(blob, None, mask=True, blobs=blobs, waiter=waiter)

        def commit() -> str:
            size_bytes = image.size or 0
            store.check_upload(blob.digest, owner, size_bytes=size_bytes, **_quota(config))
            store.reserve(blob.digest)
            digest = blobs.commit(blob)
            # Counted last: a file that the disk does not take must not fill the quota.
            _reserve_upload(digest, size_bytes, owner, store, config)
            return digest

        digest = await to_thread.run_sync(commit)
    response.headers["Location"] = add_root_path(f"{router.prefix}/{digest}")
    return StoredImage(
        id=digest,
        width=found.size[0],
        height=found.size[1],
        size_bytes=image.size or 0,
        warnings=list(found.warnings),
    )


@router.head(
    "/{digest}", response_class=Response, summary="Check a picture and extend its retention"
)
def check_image(
    *,
    digest: str,
    request: Request,
    owner: Owner,
    store: Store,
    blobs: Blobs,
    config: Configuration,
) -> Response:
    """Return 200 if your jobs can use this digest, and restart its retention; otherwise 404."""
    if not is_available(digest, owner, store, blobs):
        raise errors.ImageNotFound()
    _reserve_upload(digest, blobs.size_bytes(digest), owner, store, config)
    tag = f'"{digest}"'
    if image_response.is_cached_by_client(request, tag):
        return image_response.not_modified(tag)
    return _send_file(digest, blobs, tag)


@router.get(
    "/{digest}",
    response_class=Response,
    responses={
        200: {"content": {f"image/{kind}": {} for kind in validation.INPUT_FORMATS}},
        304: {},
    },
    summary="Get a picture",
)
async def get_image(
    *,
    digest: str,
    request: Request,
    owner: Owner,
    waiter: CurrentWaiter,
    store: Store,
    blobs: Blobs,
    width: Annotated[int | None, Query(ge=16, le=MAX_SIZE_PX)] = None,
) -> Response:
    """Return a picture that you uploaded, or a result of your jobs, byte for byte.

    With `width`, return a WebP that is at most so many px wide, upright and in sRGB. This request
    does not extend the picture's retention.
    """
    if not await run_in_threadpool(is_available, digest, owner, store, blobs):
        raise errors.ImageNotFound()
    tag = f'"{digest}"' if width is None else f'"{digest}-webp-{width}"'
    if image_response.is_cached_by_client(request, tag):
        return image_response.not_modified(tag)
    if width is None:
        return await run_in_threadpool(_send_file, digest, blobs, tag)

    def shrink() -> bytes:
        return codec.encode(decoder.shrink_stored(blobs.get(digest), width), "webp", quality=80)

    copy = await image_response.render_cached(tag, shrink, waiter)
    picture = await run_in_threadpool(image_response.spool_to_file, copy, blobs)
    return image_response.image_response(picture, "webp", tag)


def _send_file(digest: str, blobs: Blobs, tag: str) -> Response:
    file = blobs.open(digest)
    kind = validation.detect_format(file.read(validation.HEAD_BYTES))
    file.seek(0)
    return image_response.image_response(file, kind, tag)
