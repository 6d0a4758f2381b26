"""Pictures on their way out: as they are kept, or in a format and a size that they are not kept in.

Making one takes time and memory, so few are made at once, and the newest are kept for who asks again. Knows no jobs.
"""

import os
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import BinaryIO

from anyio import AsyncFile, CapacityLimiter, fail_after, to_thread, wrap_file
from fastapi import Request, Response
from fastapi.responses import FileResponse
from starlette.types import Receive, Scope, Send

from api.http import etag
from core import errors
from core.images import validation
from core.storage.blobs import Blobs

WAIT_SECONDS = 10.0
KEPT_BYTES = 64_000_000
MEMORY_BYTES = 1_000_000  # of an answer; more waits in a file for who reads it slowly

# Who waits for one waits in no thread. A result of 8192 px takes half a gigabyte while it is changed.
_MAKERS = CapacityLimiter(min(4, max(1, (os.cpu_count() or 1) // 2)))


class Shelf:
    """The bytes that were asked for last, as many as there may be. Safe for threads."""

    def __init__(self, most_bytes: int) -> None:
        self._most, self._taken = most_bytes, 0
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, tag: str) -> bytes | None:
        """None for what is not, or no longer, here."""
        with self._lock:
            if tag in self._kept:
                self._kept.move_to_end(tag)
            return self._kept.get(tag)

    def put(self, tag: str, data: bytes) -> None:
        """Keep it, in place of what nobody has asked for the longest; what is too large for the shelf is not kept."""
        with self._lock:
            self._taken += len(data) - len(self._kept.pop(tag, b""))
            self._kept[tag] = data
            while self._taken > self._most:
                self._taken -= len(self._kept.popitem(last=False)[1])


_shelf = Shelf(KEPT_BYTES)


async def render_cached(tag: str, make: Callable[[], bytes]) -> bytes:
    """What `make` makes, or has made for the same tag lately. Raises Unavailable, and what `make` raises."""
    if (kept := _shelf.get(tag)) is not None:
        return kept
    try:
        with fail_after(WAIT_SECONDS):
            await _MAKERS.acquire()
    except TimeoutError:
        raise errors.Unavailable(
            "Too many pictures are waiting to be made; try again in a few seconds."
        ) from None
    try:
        data = _shelf.get(tag)
        if data is None:  # else somebody has asked for the same a moment ago
            data = await to_thread.run_sync(make)
            _shelf.put(tag, data)
        return data
    finally:
        _MAKERS.release()


class PictureFile(FileResponse):
    """A picture as it is kept, read while it is sent: a slow reader holds no memory, and may ask for a part (Range)."""

    chunk_size = 256 * 1024

    def __init__(self, file: BinaryIO, kind: validation.Format, headers: dict[str, str]) -> None:
        """file: is closed when it is sent."""
        self._file = file
        super().__init__(
            "", media_type=f"image/{kind}", headers=headers, stat_result=os.fstat(file.fileno())
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        with self._file:
            await super().__call__(scope, receive, send)

    def set_stat_headers(self, stat_result: os.stat_result) -> None:
        """The length alone: when a file was last written tells that somebody else has sent the same."""
        self.headers.setdefault("Content-Length", str(stat_result.st_size))

    def _should_use_range(self, http_if_range: str) -> bool:
        return http_if_range == self.headers["ETag"]

    @asynccontextmanager
    async def _open_file(self) -> AsyncIterator[AsyncFile[bytes]]:
        yield wrap_file(self._file)


def blob_response(data: bytes, blobs: Blobs) -> bytes | BinaryIO:
    """What is large waits in a file, which is gone when it is sent; in memory where the disk has no room for it."""
    if len(data) <= MEMORY_BYTES:
        return data
    try:
        part = blobs.pending()
        part.write(data)
        part.seek(0)
    except errors.StorageFull:
        return data
    return part


def is_cached(request: Request, tag: str) -> bool:
    """Whether the client says that it has this very picture."""
    return etag.matches(etag.if_none_match(request), tag)


def not_modified(tag: str) -> Response:
    """304."""
    return Response(status_code=304, headers=_headers(tag))


def image_response(
    made: bytes | BinaryIO, kind: validation.Format, tag: str, name: str | None = None
) -> Response:
    """An answer with a picture, to be asked for again whether it is still the same. name: without its suffix."""
    headers = _headers(tag)
    if name is not None:
        headers["Content-Disposition"] = (
            f'inline; filename="{name}.{"jpg" if kind == "jpeg" else kind}"'
        )
    if isinstance(made, bytes):
        return Response(made, media_type=f"image/{kind}", headers=headers)
    return PictureFile(made, kind, headers)


def _headers(tag: str) -> dict[str, str]:
    return {"ETag": tag, "Cache-Control": "private, no-cache"}
