"""Pictures by their digests, POST, HEAD and GET under /v1/images; and checking an upload, as jobs do, too."""

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
_FORM = multipart.FormLimits(files=1, fields=1, text_bytes=1000)
_FORM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["image"],
    "properties": {"image": {"type": "string", "format": "binary"}},
}

# Decoding children at a time: each may take decoder.UPLOAD_LIMITS.memory_bytes. Who waits for one waits in no thread, so that
# requests without pictures stay quick, and not for long.
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
_CHILDREN = CapacityLimiter(max(2, _CORES or 1))
WAIT_SECONDS = 10.0


class StoredImage(BaseModel):
    """An uploaded picture: name it by its digest in as many jobs as you like."""

    id: str
    width: int
    height: int
    size_bytes: int


async def inspect(file: Path, *, mask: bool = False) -> tuple[int, int]:
    """(width, height) of a picture that a child has decoded; a mask must not be black all over.

    Raises BadImage and its kind, Unavailable.
    """
    try:
        with fail_after(WAIT_SECONDS):
            await _CHILDREN.acquire()
    except TimeoutError:
        raise errors.Unavailable(
            "Too many pictures are waiting to be looked at; try again in a few seconds."
        ) from None
    try:
        return await to_thread.run_sync(partial(decoder.inspect_upload, file, mask=mask))
    finally:
        _CHILDREN.release()


def resolve_digest(digest: str, owner: str, store: Store, blobs: Blobs) -> None:
    """Make sure that the owner's upload named by its digest is here, and stays for a while. Raises ImageNotFound."""
    if _is_here(digest, owner, store, blobs):
        store.reserve(digest, owner=owner)
        if blobs.has(digest):
            return
    raise errors.ImageNotFound()


def _hold(digest: str, size_bytes: int, owner: str, store: Store, config: Configuration) -> None:
    """For as long as an upload stays; it counts as one. Raises QuotaExceeded."""
    keep_seconds, most_bytes = (
        config.upload_retention_hours * 3600,
        config.upload_quota_gb_per_caller * 1e9,
    )
    store.reserve(digest, keep_seconds, owner, size_bytes=size_bytes, most_bytes=most_bytes)


def _is_here(digest: str, owner: str, store: Store, blobs: Blobs) -> bool:
    """The store is asked first, so that another's digest takes no longer than none; it records no question."""
    return is_digest(digest) and store.is_owner(owner, digest) and blobs.has(digest)


@router.post(
    "",
    status_code=201,
    summary="Upload a picture once",
    max_body_size=BODY_BYTES,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {"multipart/form-data": {"schema": _FORM_SCHEMA}},
        }
    },
)
async def upload(
    *,
    request: Request,
    owner: Owner,
    store: Store,
    blobs: Blobs,
    config: Configuration,
    response: Response,
) -> StoredImage:
    """Send a JPEG, PNG or WebP file as the form field `image`; the answer names it by its digest."""
    async with multipart.opened(request, blobs, _FORM) as received:
        image = received.get("image")
        if not isinstance(image, UploadFile):
            raise errors.BadInput("Send the picture as a file in the form field image.")
        part = multipart.part_of(image)
        width, height = await inspect(part.path)

        def keep() -> str:
            _hold(part.digest, image.size or 0, owner, store, config)
            return blobs.commit(part)

        digest = await to_thread.run_sync(keep)
    response.headers["Location"] = f"/v1/images/{digest}"
    return StoredImage(id=digest, width=width, height=height, size_bytes=image.size or 0)


@router.head("/{digest}", response_class=Response, summary="Is this picture here?")
def look(
    *,
    digest: str,
    request: Request,
    owner: Owner,
    store: Store,
    blobs: Blobs,
    config: Configuration,
) -> Response:
    """200 if a job can name this digest, and it stays for the time of an upload; else 404."""
    if _is_here(digest, owner, store, blobs):
        _hold(digest, blobs.size_bytes(digest), owner, store, config)
    return fetch(digest=digest, request=request, owner=owner, store=store, blobs=blobs)


@router.get(
    "/{digest}",
    response_class=Response,
    responses={200: {"content": {f"image/{kind}": {} for kind in validation.FORMATS}}, 304: {}},
    summary="A picture that you sent or were given",
)
def fetch(*, digest: str, request: Request, owner: Owner, store: Store, blobs: Blobs) -> Response:
    """The file as it came. To ask for it does not make it stay."""
    if not _is_here(digest, owner, store, blobs):
        raise errors.ImageNotFound()
    tag = f'"{digest}"'
    if image_response.is_cached(request, tag):
        return image_response.not_modified(tag)
    file = blobs.open(digest)
    kind = validation.detect_format(file.read(12))
    file.seek(0)
    return image_response.image_response(file, kind, tag)
