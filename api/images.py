"""Pictures coming in: POST /v1/images, HEAD /v1/images/{digest}; and keeping an upload, which jobs share."""

import time

from fastapi import APIRouter, Response, UploadFile
from pydantic import BaseModel

from api.deps import Blobs, Config, Store
from core import errors, images
from core.blobs import digest_of, is_digest

router = APIRouter(prefix="/v1/images", tags=["images"])

BODY_BYTES = images.MAX_BYTES + 100_000


class Kept(BaseModel):
    """An uploaded picture: name it by its digest in as many jobs as you like."""

    id: str
    width: int
    height: int
    size_bytes: int


def keep(data: bytes, store: Store, blobs: Blobs, keep_seconds: float) -> Kept:
    """Check the picture and store its bytes, safe from the janitor for `keep_seconds`.

    Raises BadImage and its kind, UploadTooLarge, StorageFull, StoreUnavailable.
    """
    width, height = images.inspect_in_child(data)
    digest = digest_of(data)
    hold(digest, store, keep_seconds)
    blobs.put(data)
    return Kept(id=digest, width=width, height=height, size_bytes=len(data))


def hold(digest: str, store: Store, keep_seconds: float) -> None:
    """Keep the blob from the janitor. Waits the moment that a deletion of the same bytes takes."""
    for _ in range(100):
        if store.hold(digest, keep_seconds):
            return
        time.sleep(0.02)
    raise errors.Unavailable()


@router.post("", status_code=201, summary="Upload a picture once", max_body_size=BODY_BYTES)
def upload(image: UploadFile, store: Store, blobs: Blobs, config: Config, response: Response) -> Kept:
    """Send a JPEG, PNG or WebP file as the form field `image`; the answer names it by its digest."""
    kept = keep(image.file.read(images.MAX_BYTES + 1), store, blobs, config.upload_keep_hours * 3600)
    response.headers["Location"] = f"/v1/images/{kept.id}"
    return kept


@router.head("/{digest}", summary="Is this picture here?")
def known(digest: str, store: Store, blobs: Blobs, config: Config) -> Response:
    """200 if a job can name this digest, and it stays for the time of an upload; else 404."""
    if not is_digest(digest):
        raise errors.ImageNotFound()
    hold(digest, store, config.upload_keep_hours * 3600)
    if not blobs.has(digest):
        raise errors.ImageNotFound()
    return Response()
