"""Parses multipart forms: text into memory, files to disk as they arrive, each within its limit.

Knows no field names. The files are pending blobs: an accepted file then only needs a rename, and
the upload notices a full disk at once.

Old and hand-written clients send files without `filename`, or with `filename*` alone, which RFC
7578 forbids. A part is a file if it has either of them, or if it begins as a picture does.
"""

import re
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

from anyio import CapacityLimiter, to_thread
from fastapi import Request
from python_multipart.multipart import parse_options_header
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from core import errors
from core.images import validation
from core.storage.blobs import Blobs, PendingBlob

# At most 4 threads write files, so that a slow disk leaves threads for the other requests.
_WRITERS = CapacityLimiter(4)

_CHUNK_BYTES = 16_384
_ENCODED_FILENAME = re.compile(rb";\s*filename\*\d*\*?\s*=", re.IGNORECASE)
# How Starlette's messages begin.
_TOO_MANY_FILES, _TOO_MANY_FIELDS = "Too many files", "Too many fields"
FORM = "multipart/form-data"
_CHARSETS = (b"utf-8", b"utf8", b"iso-8859-1", b"latin-1", b"latin1", b"us-ascii", b"ascii")
_SNIFFED_BYTES = 12  # by which a picture is told from text


@dataclass(frozen=True)
class FormLimits:
    """The maximum number of files and text fields of a form, and of bytes of all its text."""

    files: int
    fields: int
    text_bytes: int


@dataclass
class FormQuota:
    """The bytes that the unfinished forms of one caller may have on the disk of this process.

    A form is unfinished until its request ends, so it counts also while it waits for a decoder.
    """

    caller: str
    max_bytes: float
    _bytes: int = 0  # of one form

    def add(self, size_bytes: int) -> None:
        """Count bytes that have arrived. Raises QuotaExceeded."""
        if _bytes_of_forms[self.caller] + size_bytes > self.max_bytes:
            raise errors.QuotaExceeded(
                "The files that you are sending fill your quota of bytes; send fewer at once."
            )
        _bytes_of_forms[self.caller] += size_bytes
        self._bytes += size_bytes

    def release(self) -> None:
        """Forget the bytes of this form, which is finished."""
        _bytes_of_forms[self.caller] -= self._bytes
        if not _bytes_of_forms[self.caller]:
            del _bytes_of_forms[self.caller]


_bytes_of_forms: Counter[str] = Counter()  # by caller; only the event loop uses it


class _UploadedFile(UploadFile):
    """A file of the form, which is written to disk as it arrives."""

    def __init__(self, blob: PendingBlob, filename: str | None, quota: FormQuota) -> None:
        super().__init__(blob, size=0, filename=filename)
        self._quota = quota

    async def write(self, data: bytes) -> None:
        self._quota.add(len(data))
        self.size = (self.size or 0) + len(data)
        if self.size > validation.MAX_BYTES:
            raise errors.UploadTooLarge(
                f"A picture may have at most {validation.MAX_BYTES // 10**6} MB."
            )
        await to_thread.run_sync(self.file.write, data, limiter=_WRITERS)


class _FormParser(MultiPartParser):
    """Starlette's parser, but files go to disk: Starlette keeps their first megabyte in memory."""

    def __init__(
        self, request: Request, blobs: Blobs, limits: FormLimits, quota: FormQuota
    ) -> None:
        super().__init__(
            request.headers,
            _read_chunks(request),
            max_files=limits.files,
            max_fields=limits.fields,
        )
        self.max_part_size = self._text_left = limits.text_bytes
        self._blobs, self._quota = blobs, quota
        self._has_ended = False  # the last boundary has been read
        self._sniffed: object = None  # the part of which the beginning is known

    async def parse(self) -> FormData:
        """Parse the whole body. Raises BadRequest if it ends before the form does."""
        form = await super().parse()
        if not self._has_ended:
            for file in self._files_to_close_on_error:
                file.close()
            raise errors.BadRequest("The form is incomplete: its last boundary is missing.")
        return form

    def on_end(self) -> None:
        self._has_ended = True

    def on_headers_finished(self) -> None:
        super().on_headers_finished()
        part = self._current_part
        if part.file is not None:
            # Starlette has just created its own temporary file: replace it by a pending blob.
            self._files_to_close_on_error.pop().close()
            self._write_to_disk(part.file.filename)
        elif _ENCODED_FILENAME.search(part.content_disposition or b""):
            self._count_as_file()
            self._write_to_disk("file")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        part = self._current_part
        if part.file is None and part is not self._sniffed:
            self._sniff(data[start : min(end, start + validation.HEAD_BYTES)])
        if part.file is None:
            self._text_left -= end - start
            if self._text_left < 0:
                raise errors.UploadTooLarge("The form has too much text; send a picture as a file.")
        super().on_part_data(data, start, end)

    def _sniff(self, data: bytes) -> None:
        """Make the part a file if its first bytes are those of a picture. data: what follows."""
        part = self._current_part
        beginning = bytes(part.data) + data
        if len(beginning) < _SNIFFED_BYTES:
            return
        self._sniffed = part
        if validation.is_picture(beginning):
            self._count_as_file()
            self._write_to_disk("file")
            self._text_left += len(part.data)
            self._file_parts_to_write.append((part, bytes(part.data)))

    def _count_as_file(self) -> None:
        self._current_fields -= 1
        self._current_files += 1
        if self._current_files > self.max_files:
            raise MultiPartException(_TOO_MANY_FILES)

    def _write_to_disk(self, filename: str | None) -> None:
        blob = self._blobs.pending()
        self._files_to_close_on_error.append(blob)  # type: ignore[arg-type]
        self._current_part.file = _UploadedFile(blob, filename, self._quota)


async def _read_chunks(request: Request) -> AsyncGenerator[bytes, None]:
    """Yield the body in chunks of 16 KB, because the parser copies each chunk.

    Starlette's `request.stream()` still references a block while it awaits the next one. With many
    clients these blocks take most of the memory, so this function releases them first.
    """
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        more, block = message.get("more_body", False), message.get("body", b"")
        for start in range(0, len(block), _CHUNK_BYTES):
            yield block[start : start + _CHUNK_BYTES]
        del message, block


@asynccontextmanager
async def parse_form(
    request: Request, blobs: Blobs, limits: FormLimits, quota: FormQuota
) -> AsyncIterator[FormData]:
    """Parse the body as a form; yield an empty form for another content type.

    On exit, all files are deleted that were not committed. Raises BadRequest, UploadTooLarge,
    QuotaExceeded, StorageFull.
    """
    if get_media_type(request) != FORM:
        yield FormData()
        return
    _check_charset(request)
    try:
        async with _parse(request, blobs, limits, quota) as form:
            yield form
    finally:
        quota.release()


@asynccontextmanager
async def _parse(
    request: Request, blobs: Blobs, limits: FormLimits, quota: FormQuota
) -> AsyncIterator[FormData]:
    try:
        form = await _FormParser(request, blobs, limits, quota).parse()
    except MultiPartException as error:
        for beginning, limit, what in (
            (_TOO_MANY_FILES, limits.files, "files"),
            (_TOO_MANY_FIELDS, limits.fields, "text fields"),
        ):
            if error.message.startswith(beginning):
                raise errors.BadRequest(f"Send at most {limit} {what}.") from error
        raise errors.BadRequest() from error
    try:
        yield form
    finally:
        await form.close()


def get_media_type(request: Request) -> str:
    """Return the content type of the body, without its parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _check_charset(request: Request) -> None:
    """Raise BadRequest for a charset other than _CHARSETS.

    Starlette decodes the text with any codec of Python that the client names. Some of them fail in
    ways that it does not expect, or take long.
    """
    _, options = parse_options_header(request.headers["content-type"])
    if options.get(b"charset", b"utf-8").lower() not in _CHARSETS:
        raise errors.BadRequest("Send the text of the form as UTF-8.")


def is_unset(file: UploadFile) -> bool:
    """Return whether a page sent the field without a chosen file: neither a name nor content."""
    return not file.filename and not file.size


def get_pending_blob(file: UploadFile) -> PendingBlob:
    """Return the blob of a file of `parse_form`, flushed for other readers. Raises StorageFull."""
    blob = cast(PendingBlob, file.file)
    blob.flush()
    return blob
