"""Pictures coming in: POST /v1/images, HEAD /v1/images/{digest}; and checking an upload, as jobs do, too."""

from dataclasses import dataclass
from typing import IO

from fastapi import APIRouter, Response, UploadFile
from pydantic import BaseModel

from api.deps import Blobs, Config, Owner, Store
from core import errors, images
from core.blobs import digest_of
from core.store import HOLD_SECONDS

router = APIRouter(prefix="/v1/images", tags=["images"])

BODY_BYTES = images.MAX_BYTES + 100_000


class Kept(BaseModel):
    """An uploaded picture: name it by its digest in as many jobs as you like."""

    id: str
    width: int
    height: int
    size_bytes: int


@dataclass(frozen=True)
class Checked:
    """A picture that may be kept; nothing is stored yet."""

    digest: str
    width: int
    height: int
    data: bytes


def checked(file: IO[bytes], *, mask: bool = False) -> Checked:
    """Read an upload and decode it in a child; a mask must not be black all over.

    Raises BadImage and its kind, UploadTooLarge, Unavailable.
    """
    data = file.read(images.MAX_BYTES + 1)
    width, height = images.inspect_in_child(data, mask=mask)
    return Checked(digest_of(data), width, height, data)


def known(digest: str, owner: str, store: Store, blobs: Blobs, keep_seconds: float = HOLD_SECONDS) -> None:
    """Make sure that the owner's upload named by its digest is here, and stays for a while. Raises ImageNotFound."""
    # The store is asked first, so that another's digest takes no longer than none; it makes no record of a question.
    if store.owns(owner, digest) and blobs.has(digest):
        store.hold(digest, keep_seconds, owner)
        if blobs.has(digest):
            return
    raise errors.ImageNotFound()


@router.post("", status_code=201, summary="Upload a picture once", max_body_size=BODY_BYTES)
def upload(*, image: UploadFile, owner: Owner, store: Store, blobs: Blobs, config: Config, response: Response) -> Kept:
    """Send a JPEG, PNG or WebP file as the form field `image`; the answer names it by its digest."""
    picture = checked(image.file)
    store.hold(picture.digest, config.upload_keep_hours * 3600, owner)
    blobs.put(picture.data)
    response.headers["Location"] = f"/v1/images/{picture.digest}"
    return Kept(id=picture.digest, width=picture.width, height=picture.height, size_bytes=len(picture.data))


@router.head("/{digest}", summary="Is this picture here?")
def look(digest: str, owner: Owner, store: Store, blobs: Blobs, config: Config) -> Response:
    """200 if a job can name this digest, and it stays for the time of an upload; else 404."""
    known(digest, owner, store, blobs, config.upload_keep_hours * 3600)
    return Response()
