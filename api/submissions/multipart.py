"""Multipart forms: text in memory, within a limit; files to disk while they are read, each within its limit.

Knows no fields. The files lie among the blobs' parts: where one ends up in any case, and where a full disk is felt.
"""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

from anyio import CapacityLimiter, to_thread
from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from core import errors
from core.images import validation
from core.storage.blobs import Blobs, PendingBlob

_WRITERS = CapacityLimiter(
    4
)  # a disk that is slow must not take the threads that other requests need

_PIECE_BYTES = 16_384


@dataclass(frozen=True)
class FormLimits:
    """What one form may hold."""

    files: int
    fields: int
    text_bytes: int


class _File(UploadFile):
    """A file of the form, written as it comes."""

    async def write(self, data: bytes) -> None:
        self.size = (self.size or 0) + len(data)
        if self.size > validation.MAX_BYTES:
            raise errors.UploadTooLarge(
                f"A picture may have at most {validation.MAX_BYTES // 10**6} MB."
            )
        await to_thread.run_sync(self.file.write, data, limiter=_WRITERS)


class _Parser(MultiPartParser):
    """Starlette's, with its files elsewhere: it would hold the first megabyte of each in memory."""

    def __init__(self, request: Request, blobs: Blobs, limits: FormLimits) -> None:
        super().__init__(
            request.headers, _pieces(request), max_files=limits.files, max_fields=limits.fields
        )
        self.max_part_size = self._text_left = limits.text_bytes
        self._blobs = blobs

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        if self._current_part.file is not None:
            self._files_to_close_on_error.pop().close()
            part = self._blobs.pending()
            self._files_to_close_on_error.append(part)  # type: ignore[arg-type]
            self._current_part.file = _File(part, size=0)

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._current_part.file is None:
            self._text_left -= end - start
            if self._text_left < 0:
                raise errors.UploadTooLarge("The form has more text than is taken.")
        super().on_part_data(data, start, end)


async def _pieces(request: Request) -> AsyncGenerator[bytes, None]:
    """The body in small pieces, for the parser copies what it is given; and no block is held while the next is awaited,

    as Starlette does: with many clients at once it is the blocks that take the memory.
    """
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        more, block = message.get("more_body", False), message.get("body", b"")
        for start in range(0, len(block), _PIECE_BYTES):
            yield block[start : start + _PIECE_BYTES]
        del message, block


@asynccontextmanager
async def opened(request: Request, blobs: Blobs, limits: FormLimits) -> AsyncIterator[FormData]:
    """The form, empty if the body is none; its files are gone afterwards, unless they were kept.

    Raises BadRequest, UploadTooLarge, StorageFull.
    """
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        yield FormData()
        return
    try:
        form = await _Parser(request, blobs, limits).parse()
    except (MultiPartException, ClientDisconnect) as error:
        raise errors.BadRequest() from error
    try:
        yield form
    finally:
        await form.close()


def part_of(file: UploadFile) -> PendingBlob:
    """What a file of such a form was written to, for others to read. Raises StorageFull."""
    part = cast(PendingBlob, file.file)
    part.flush()
    return part
