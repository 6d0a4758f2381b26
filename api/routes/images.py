"""Pictures by their digests: POST, HEAD and GET under /v1/images. Submissions share the checks."""

import os
from functools import partial
from pathlib import Path
from typing import Any

from anyio import CapacityLimiter, fail_after, to_thread
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from starlette.datastructures import UploadFile

from api.dependencies import Blobs, Configuration, Owner, Store
from api.http import image_response
from api.submissions import multipart
from core import errors
from core.images import decoder, validation
from core.storage.blobs import is_digest

router = APIRouter(prefix="/v1/images", tags=["images"])

BODY_BYTES = validation.MAX_BYTES + 100_000
_FORM_LIMITS = multipart.FormLimits(files=1, fields=1, text_bytes=1000)
_FORM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["image"],
    "properties": {"image": {"type": "string", "format": "binary"}},
}

# Decoders at the same time. Each is a process that may use decoder.UPLOAD_LIMITS.memory_bytes.
# A request that waits for a slot occupies no thread, so that requests without pictures stay fast.
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
_decoder_slots = CapacityLimiter(max(2, _CORES or 1))
WAIT_SECONDS = 10.0


class StoredImage(BaseModel):
    """An uploaded picture. Use its id, the digest, in any number of jobs."""

    id: str
    width: int
    height: int
    size_bytes: int


async def inspect_picture(
    file: Path, *, mask: bool = False, any_size: bool = False
) -> tuple[int, int]:
    """Decode the picture in a child process and return (width, height) in px.

    mask: also refuse a picture that is entirely black. any_size: it may be a result, which may be
    larger than an upload. Raises BadImage and its subclasses, and Unavailable if no decoder becomes
    free within WAIT_SECONDS.
    """
    try:
        with fail_after(WAIT_SECONDS):
            await _decoder_slots.acquire()
    except TimeoutError:
        raise errors.Unavailable(
            "Too many pictures are waiting for inspection; try again in a few seconds."
        ) from None
    try:
        inspect = partial(decoder.inspect_upload, file, mask=mask, any_size=any_size)
        return await to_thread.run_sync(inspect)
    finally:
        _decoder_slots.release()


def check_digest(digest: str, owner: str, store: Store, blobs: Blobs) -> None:
    """Check that the owner has uploaded this picture, and reserve it. Raises ImageNotFound."""
    if _is_available(digest, owner, store, blobs):
        store.reserve(digest, owner=owner)
        if blobs.has(digest):  # the garbage collector may have deleted it before the reservation
            return
    raise errors.ImageNotFound()


def _reserve_upload(
    digest: str, size_bytes: int, owner: str, store: Store, config: Configuration
) -> None:
    """Reserve the picture for the retention time of uploads and count it. Raises QuotaExceeded."""
    store.reserve(
        digest,
        config.upload_retention_hours * 3600,
        owner,
        size_bytes=size_bytes,
        max_bytes=config.upload_quota_gb_per_caller * 1e9,
    )


def _is_available(digest: str, owner: str, store: Store, blobs: Blobs) -> bool:
    """Return whether the owner has this picture. Changes nothing.

    The store comes first, so that the answer for another client's digest takes no longer than the
    answer for an unknown one.
    """
    return is_digest(digest) and store.is_owner(owner, digest) and blobs.has(digest)


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
    store: Store,
    blobs: Blobs,
    config: Configuration,
    response: Response,
) -> StoredImage:
    """Send a JPEG, PNG or WebP file as the form field `image`.

    The answer contains its digest, which you can use in any number of submissions.
    """
    async with multipart.parse_form(request, blobs, _FORM_LIMITS) as form:
        image = form.get("image")
        if not isinstance(image, UploadFile):
            raise errors.BadInput("Send the picture as a file in the form field image.")
        blob = multipart.get_pending_blob(image)
        width, height = await inspect_picture(blob.path)

        def commit() -> str:
            _reserve_upload(blob.digest, image.size or 0, owner, store, config)
            return blobs.commit(blob)

        digest = await to_thread.run_sync(commit)
    response.headers["Location"] = f"/v1/images/{digest}"
    return StoredImage(id=digest, width=width, height=height, size_bytes=image.size or 0)


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
    if _is_available(digest, owner, store, blobs):
        _reserve_upload(digest, blobs.size_bytes(digest), owner, store, config)
    return get_image(digest=digest, request=request, owner=owner, store=store, blobs=blobs)


@router.get(
    "/{digest}",
    response_class=Response,
    responses={200: {"content": {f"image/{kind}": {} for kind in validation.FORMATS}}, 304: {}},
    summary="Get a picture",
)
def get_image(
    *, digest: str, request: Request, owner: Owner, store: Store, blobs: Blobs
) -> Response:
    """Return a picture that you uploaded, or a result of your jobs, byte for byte.

    This request does not extend the picture's retention.
    """
    if not _is_available(digest, owner, store, blobs):
        raise errors.ImageNotFound()
    tag = f'"{digest}"'
    if image_response.is_cached_by_client(request, tag):
        return image_response.not_modified(tag)
    file = blobs.open(digest)
    kind = validation.detect_format(file.read(12))
    file.seek(0)
    return image_response.image_response(file, kind, tag)
