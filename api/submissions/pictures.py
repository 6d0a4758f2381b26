"""The pictures of a submission: checked, decoded in a sandbox, stored.

Knows no route and no job.
"""

import os
from pathlib import Path

from anyio import to_thread
from cachetools import LRUCache

from api.fair_queue import FairQueue, Waiter
from api.schemas.submission import Picture
from core import errors
from core.images import decoder
from core.images.decoder import Inspection
from core.images.transparency import Background
from core.jobs.store import JobStore
from core.storage.blobs import Blobs, is_digest

# Decoders at the same time. Each is a process that may use decoder.UPLOAD_LIMITS.memory_bytes, or
# for a result to start from RESULT_LIMITS.memory_bytes.
_CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
decoders = FairQueue("pictures", max(2, _CORES or 1))

# What is known of the pictures that were accepted, some 500 bytes each. A digest names the same
# bytes for ever. The first key says how they were decoded: a job's photo is decoded by its upload,
# and need not be by each estimate and each job.
_Key = tuple[object, ...]
_inspections: LRUCache[_Key, Inspection] = LRUCache(20_000)


async def inspect_picture(
    picture: Picture,
    part: str | None,
    background: Background = "auto",
    *,
    blobs: Blobs,
    waiter: Waiter,
    **options: bool,
) -> Inspection:
    """Decode the picture in a child process and return what is known of it.

    A stored picture that was accepted before is not decoded again.

    part: its name in the request, for the message of a refusal; None if it is alone. options: those
    of `decoder.inspect_upload`. Raises BadImage and its subclasses, what `picture_path` raises, and
    what `FairQueue.turn` raises.
    """
    if isinstance(picture, str) and (known := _find_inspection(picture, background, options)):
        decoders.skip_turn()
        return known

    def inspect() -> tuple[str, Inspection]:
        found = decoder.inspect_upload(picture_path(picture, blobs), background, **options)
        return digest_of_picture(picture), found

    try:
        async with decoders.turn(waiter):
            digest, found = await to_thread.run_sync(inspect)
    except (errors.BadImage, errors.UploadTooLarge) as error:
        if part is None:
            raise
        raise error.about(part) from error
    _inspections[_key_of(digest, background, options, is_opaque=found.is_opaque)] = found
    return found


def _find_inspection(
    digest: str, background: Background, options: dict[str, bool]
) -> Inspection | None:
    for is_opaque in (True, False):
        key = _key_of(digest, background, options, is_opaque=is_opaque)
        if (known := _inspections.get(key)) is not None:
            return known
    return None


def _key_of(
    digest: str, background: Background, options: dict[str, bool], *, is_opaque: bool
) -> _Key:
    """Return what the inspection of a picture depends on. An opaque one covers its background."""
    covered = () if is_opaque else (background, options.get("mask", False))
    limits = tuple(options.get(name, False) for name in ("any_size", "refuse_black"))
    return (digest, *limits, *covered)


def check_digest(digest: str, owner: str, store: JobStore, blobs: Blobs) -> None:
    """Check that the owner has uploaded this picture, and reserve it.

    Raises ImageNotFound, ImageDamaged.
    """
    if not is_available(digest, owner, store, blobs):
        raise errors.ImageNotFound()
    store.reserve(digest, owner=owner)
    # The garbage collector may have deleted it before the reservation, or the disk damaged it.
    blobs.check(digest)


def is_available(digest: str, owner: str, store: JobStore, blobs: Blobs) -> bool:
    """Return whether the owner has this picture. Changes nothing.

    The store comes first, so that the answer for another client's digest takes no longer than the
    answer for an unknown one.
    """
    return is_digest(digest) and store.is_owner(owner, digest) and blobs.has(digest)


def store_picture(picture: Picture, store: JobStore, blobs: Blobs) -> str:
    """Store an uploaded picture and return its digest. A digest is reserved once more.

    The first reservation may be about to end: checking all pictures can take long.
    """
    if isinstance(picture, str):
        store.reserve(picture)
        return picture
    store.reserve(picture.digest)
    return blobs.commit(picture)


def digest_of_picture(picture: Picture) -> str:
    """Return the digest of an uploaded picture, or of one that was named by it."""
    return picture if isinstance(picture, str) else picture.digest


def measure_picture(picture: Picture, blobs: Blobs) -> tuple[str, int]:
    """Return the digest and the bytes of an uploaded picture, or of a digest."""
    if isinstance(picture, str):
        return picture, blobs.size_bytes(picture)
    return picture.digest, picture.path.stat().st_size


def picture_path(picture: Picture, blobs: Blobs) -> Path:
    """Return the file of an uploaded picture or of a digest, which `check_digest` has checked.

    It may read the whole file, so call it in a thread. Raises as `Blobs.get` does.
    """
    return blobs.path(picture) if isinstance(picture, str) else picture.path
