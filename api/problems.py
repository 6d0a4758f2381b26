"""Errors to `application/problem+json` (RFC 9457), in one place.

Never an echo of the input, never a library's words.
"""

import logging
import math
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from core import errors
from core.images import FORMATS
from core.jobs import Status

# The nearest class in an error's family decides.
STATUS: dict[type[errors.ImpastoError], int] = {
    errors.ImpastoError: 500,
    errors.BadInput: 422,
    errors.BadRequest: 400,
    errors.UnsupportedImage: 415,
    errors.UploadTooLarge: 413,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.ResultGone: 410,
    errors.IdempotencyConflict: 422,
    errors.QuotaExceeded: 429,
    errors.Unavailable: 503,
}

log = logging.getLogger(__name__)


class Problem(JSONResponse):
    """The one shape of every error's body: type, title, status, code, detail."""

    media_type = "application/problem+json"

    def __init__(self, status: int, code: str, detail: str, retry_seconds: float | None = None) -> None:
        title = HTTPStatus(status).phrase
        headers = None if retry_seconds is None else {"Retry-After": str(math.ceil(retry_seconds))}
        content = {"type": "about:blank", "title": title, "status": status, "code": code, "detail": detail}
        super().__init__(content, status, headers)


def problem(error: errors.ImpastoError) -> Problem:
    """The response for one of our own errors."""
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    retry_seconds = error.retry_seconds if isinstance(error, errors.Unavailable | errors.QuotaExceeded) else None
    return Problem(status, error.code, error.message, retry_seconds)


# What the framework refuses before our code is asked.
_FRAMEWORK = {
    400: ("bad_request", "The request could not be read; see /docs for its form."),
    404: ("not_found", "There is nothing here; see /docs for what there is."),
    405: ("method_not_allowed", "This address does not take that method; see /docs."),
    413: ("upload_too_large", "The request is larger than is taken."),
}


_PARAMETERS = {
    "limit": "limit must be a whole number from 1 to 100.",
    "cursor": "cursor must be one that a list gave as its next.",
    "status": f"status must be one of {', '.join(Status)}.",
    "format": f"format must be one of {', '.join(FORMATS)}.",
    "idempotency-key": "Idempotency-Key must be 1 to 255 characters without spaces.",
    "pinned": "pinned must be true or false.",
    "webhook": "webhook must be a URL.",
    "image": "Send the picture as a file in the form field image.",
}


def reworded(response: Response) -> Response:
    """The framework's own words where its limit on the body answers past the handlers, as a problem."""
    if response.status_code == 413 and "json" not in response.headers.get("content-type", ""):
        return Problem(413, *_FRAMEWORK[413])
    return response


def install(app: FastAPI) -> None:
    """Register the handlers."""

    async def ours(_: Request, error: Exception) -> Problem:
        assert isinstance(error, errors.ImpastoError)
        return problem(error)

    async def framework(_: Request, error: Exception) -> Problem:
        assert isinstance(error, HTTPException)
        code, detail = _FRAMEWORK.get(error.status_code, ("refused", "The request is refused."))
        answer = Problem(error.status_code, code, detail)
        answer.headers.update(error.headers or {})
        return answer

    async def invalid(_: Request, error: Exception) -> Problem:
        assert isinstance(error, RequestValidationError)
        where: Any = error.errors()[0]["loc"][-1]
        return Problem(422, errors.BadInput.code, _PARAMETERS.get(where, "A value is not as it must be; see /docs."))

    async def unforeseen(request: Request, error: Exception) -> Problem:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return Problem(500, errors.ImpastoError.code, errors.ImpastoError().message)

    app.add_exception_handler(errors.ImpastoError, ours)
    app.add_exception_handler(HTTPException, framework)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, unforeseen)
