"""Responses that contain a picture: a stored blob, or a conversion of it to another format or size.

A conversion takes time and memory. Therefore few run at once, and the newest results are cached.
Knows no jobs.
"""

import base64
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import BinaryIO

from anyio import AsyncFile, to_thread, wrap_file
from cachetools import LRUCache
from fastapi import Request, Response
from fastapi.responses import FileResponse, RedirectResponse
from starlette.types import Receive, Scope, Send

from api.fair_queue import FairQueue, Waiter
from api.http import etag
from api.http.shared_response import ZERO_COPY, RawHeaders
from core import errors
from core.images import validation
from core.storage.blobs import Blobs

CACHE_BYTES = 64_000_000
MEMORY_BYTES = 1_000_000  # larger responses go to a temporary file, so slow clients hold no memory

# Converting a result of 8192 px takes half a gigabyte.
_conversions = FairQueue("conversions", min(4, max(1, (os.cpu_count() or 1) // 2)))


def create_cache(max_bytes: int) -> LRUCache[str, bytes]:
    """Return a cache of converted pictures by ETag, with a limit on the sum of their bytes."""
    return LRUCache(maxsize=max_bytes, getsizeof=len)


# Only `render_cached` uses the cache, and only from the event loop, so it needs no lock.
_cache = create_cache(CACHE_BYTES)


async def render_cached(tag: str, render: Callable[[], bytes], waiter: Waiter) -> bytes:
    """Return the cached bytes for `tag`, or call `render` in a thread and cache its result.

    Raises what `FairQueue.turn` raises, and whatever `render` raises.
    """
    if (cached := _cache.get(tag)) is not None:
        return cached
    async with _conversions.turn(waiter):
        data = _cache.get(tag)  # another request may have rendered it while this one waited
        if data is None:
            data = await to_thread.run_sync(render)
            if len(data) <= _cache.maxsize:  # LRUCache raises ValueError for a larger value
                _cache[tag] = data
        return data


class PictureFile(FileResponse):
    """Streams an open picture file, so that a slow client holds no memory. Supports Range."""

    chunk_size = 256 * 1024

    def __init__(
        self, file: BinaryIO, kind: validation.InputFormat, tag: str, name: str | None
    ) -> None:
        """file: the response closes it when it ends. The others: see `image_response`."""
        self._file, self.status = file, 200
        headers, found = _headers(tag, kind, name), os.fstat(file.fileno())
        super().__init__("", media_type=f"image/{kind}", headers=headers, stat_result=found)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response and close the file."""
        with self._file:
            has_range = any(name == b"range" for name, _ in scope["headers"])
            can_send_file = scope["method"] == "GET" and ZERO_COPY in scope.get("extensions", ())
            if has_range or not can_send_file:
                await super().__call__(scope, receive, send)
                return
            headers = self.raw_headers
            await send({"type": "http.response.start", "status": self.status, "headers": headers})
            size, descriptor = int(self.headers["Content-Length"]), self._file.fileno()
            await send({"type": ZERO_COPY, "file": descriptor, "count": size})

    async def send_to(
        self, scope: Scope, receive: Receive, send: Send, own_headers: RawHeaders
    ) -> None:
        """Send the response with further headers."""
        self.raw_headers.extend(own_headers)
        await self(scope, receive, send)

    def set_stat_headers(self, stat_result: os.stat_result) -> None:
        """Set Content-Length only. Last-Modified would reveal when another client uploaded it."""
        self.headers.setdefault("Content-Length", str(stat_result.st_size))

    def _should_use_range(self, http_if_range: str) -> bool:
        return http_if_range == self.headers["ETag"]

    @asynccontextmanager
    async def _open_file(self) -> AsyncIterator[AsyncFile[bytes]]:
        yield wrap_file(self._file)


def spool_to_file(data: bytes, blobs: Blobs) -> bytes | BinaryIO:
    """Write more than MEMORY_BYTES to a temporary file, which is deleted on close.

    Returns the bytes themselves if they are few, or if the disk is full.
    """
    if len(data) <= MEMORY_BYTES:
        return data
    try:
        file = blobs.pending()
        file.write(data)
        file.seek(0)
    except errors.StorageFull:
        return data
    return file


def is_cached_by_client(request: Request, tag: str) -> bool:
    """Return whether the client already has the picture with this tag."""
    return etag.matches(etag.if_none_match(request), tag)


def not_modified(tag: str) -> Response:
    """Return a 304 response."""
    return Response(status_code=304, headers=_headers(tag))


def redirect(link: str, digest: str, tag: str) -> Response:
    """Return a redirection to a stored picture. Repr-Digest lets the client verify what it gets."""
    encoded = base64.b64encode(bytes.fromhex(digest.removeprefix("sha256:"))).decode()
    headers = {"ETag": tag, "Cache-Control": "private, no-store"}
    headers["Repr-Digest"] = f"sha-256=:{encoded}:"
    return RedirectResponse(link, status_code=307, headers=headers)


def image_response(
    picture: bytes | BinaryIO, kind: validation.InputFormat, tag: str, name: str | None = None
) -> Response:
    """Return a 200 response with a picture, which the client must revalidate before each reuse.

    picture: bytes, or an open file, which the response closes. name: file name without suffix.
    """
    if isinstance(picture, bytes):
        headers = _headers(tag, kind, name)
        return Response(picture, media_type=f"image/{kind}", headers=headers)
    return PictureFile(picture, kind, tag, name)


def _headers(
    tag: str, kind: validation.InputFormat | None = None, name: str | None = None
) -> dict[str, str]:
    headers = {"ETag": tag, "Cache-Control": "private, no-cache"}
    if name is not None:
        suffix = "jpg" if kind == "jpeg" else kind
        headers["Content-Disposition"] = f'inline; filename="{name}.{suffix}"'
    return headers
