"""Errors to `application/problem+json` (RFC 9457), in one place.

Never an echo of the input, never a library's words.
"""

import errno
import logging
import math
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core import errors
from core.images.validation import FORMATS, MAX_SIDE_PX, MIN_SIDE_PX
from core.jobs.models import Status
from core.style.spec import MAX_SIZE_PX, MAX_STYLES

log = logging.getLogger(__name__)

_TOO_MANY_FILES = (
    errno.EMFILE,
    errno.ENFILE,
)  # in this process, on this machine: passes when others are closed

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
    errors.Unauthorized: 401,
    errors.RetryLater: 429,
    errors.Unavailable: 503,
}


class Problem(JSONResponse):
    """The one shape of every error's body: type, title, status, code, detail."""

    media_type = "application/problem+json"

    def __init__(
        self, status: int, code: str, detail: str, retry_seconds: float | None = None
    ) -> None:
        title = HTTPStatus(status).phrase
        headers = None if retry_seconds is None else {"Retry-After": str(math.ceil(retry_seconds))}
        content = {
            "type": "about:blank",
            "title": title,
            "status": status,
            "code": code,
            "detail": detail,
        }
        super().__init__(content, status, headers)


def problem(error: errors.ImpastoError) -> Problem:
    """The response for one of our own errors."""
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    retry_seconds = error.retry_seconds if isinstance(error, errors.RetryLater) else None
    return Problem(status, error.code, error.message, retry_seconds)


# What is refused before a route is asked: by the connection, the guard or the framework.
REFUSALS = {
    "bad_request": (400, "The request could not be read; see /docs for its form."),
    "host_not_allowed": (
        403,
        "This service is not called by that name; IMPASTO_API_ALLOWED_HOSTS lists more of its names.",
    ),
    "cross_origin_forbidden": (
        403,
        "Another site's page may not do this; IMPASTO_API_CORS_ORIGINS lists those that may.",
    ),
    "not_found": (404, "There is nothing here; see /docs for what there is."),
    "method_not_allowed": (405, "This address does not take that method; see /docs."),
    "request_timeout": (408, "The request came too slowly; send it again over a faster line."),
    "upload_too_large": (413, "The request is larger than is taken."),
    "uri_too_long": (414, "The address is longer than is taken."),
    "unsupported_encoding": (415, "Send the body as it is, without a Content-Encoding."),
    "range_not_satisfiable": (416, "The file has no such part."),
    "headers_too_large": (431, "The headers are more, or longer, than are taken."),
}
_FRAMEWORK = {status: code for code, (status, _) in REFUSALS.items() if status not in (403, 415)}


_PICTURE = (
    f"the digest of an upload, or its width and height from {MIN_SIDE_PX} to {MAX_SIDE_PX} px"
)

# What a value must be, by its name in the address, a header, or the top of a JSON body; "body" is the body itself.
_VALUES = {
    "limit": "limit must be a whole number from 1 to 100.",
    "cursor": "cursor must be one that a list gave as its next.",
    "status": f"status must be one of {', '.join(Status)}.",
    "format": f"format must be one of {', '.join(FORMATS)}.",
    "width": f"width must be a whole number from 16 to {MAX_SIZE_PX}.",
    "index": "index must be a whole number that the list of frames tells.",
    "after": "after must be an id that the stream gave.",
    "idempotency-key": "Idempotency-Key must be 1 to 255 characters without spaces.",
    "pinned": "pinned must be true or false.",
    "continue": "continue must be true or false.",
    "webhook": "webhook must be a URL.",
    "spec": "spec must be an object of parameters.",
    "content": f"content must be {_PICTURE}.",
    "styles": f"styles must be a list of 1 to {MAX_STYLES}, each {_PICTURE}.",
    "masks": f"masks must be a list of at most {MAX_STYLES}, each {_PICTURE}.",
    "init_image": f"init_image must be {_PICTURE}.",
    "image": "Send the picture as a file in the form field image.",
    "body": "Send a JSON object as the body; see /docs for its fields.",
}
_VALUES_OF_ROUTE = {
    ("/v1/jobs/{job_id}/timelapse", "format"): "format must be webp.",
    ("/v1/jobs/{job_id}", "body"): "Say in a JSON object what is to be different: spec, pinned.",
}
_UNREADABLE = {
    "json_invalid": "This is no JSON that can be read.",
    "extra_forbidden": "The JSON has a field that is not taken here; see /docs.",  # its name is the client's own word
}


def _wrong(error: dict[str, Any], route: str) -> str:
    """The sentence for what the framework found wrong."""
    place, *inner = error["loc"]
    name = inner[0] if inner else place
    words = (
        _UNREADABLE.get(error["type"]) or _VALUES_OF_ROUTE.get((route, name)) or _VALUES.get(name)
    )
    return words or "A value is not as it must be; see /docs."


def status_of(code: str) -> Problem:
    """The response for one of REFUSALS."""
    status, detail = REFUSALS[code]
    return Problem(status, code, detail)


class FrameworkErrors:
    """Makes problems of the framework's own words where it answers past the handlers: its limit on bodies, CORS."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        instead: Problem | None = None

        async def answer(message: Message) -> None:
            nonlocal instead
            if message["type"] == "http.response.start" and message["status"] in _FRAMEWORK:
                headers = MutableHeaders(scope=message)
                if headers.get("content-type", "").startswith("text/plain"):
                    instead = status_of(_FRAMEWORK[message["status"]])
                    headers["content-type"], headers["content-length"] = (
                        Problem.media_type,
                        str(len(instead.body)),
                    )
            if instead is not None and message["type"] == "http.response.body":
                message = {**message, "body": b"" if message.get("more_body") else instead.body}
            await send(message)

        await self._app(scope, receive, answer if scope["type"] == "http" else send)


def install(app: FastAPI) -> None:
    """Register the handlers."""

    async def ours(_: Request, error: Exception) -> Problem:
        assert isinstance(error, errors.ImpastoError)
        return problem(error)

    async def framework(request: Request, error: Exception) -> Problem:
        assert isinstance(error, HTTPException)
        answer = status_of(_FRAMEWORK.get(error.status_code, "bad_request"))
        answer.headers.update(error.headers or {})
        methods = request.app.openapi()["paths"].get(
            getattr(request.scope.get("route"), "path", None)
        )
        if (
            error.status_code == 405 and methods
        ):  # the framework names those of one route of the address only
            answer.headers["Allow"] = ", ".join(
                sorted(
                    {method.upper() for method in methods}
                    | ({"HEAD"} if "get" in methods else set())
                )
            )
        return answer

    async def invalid(request: Request, error: Exception) -> Problem:
        assert isinstance(error, RequestValidationError)
        route = getattr(request.scope.get("route"), "path", "")
        return Problem(422, errors.BadInput.code, _wrong(error.errors()[0], route))

    async def system(_: Request, error: Exception) -> Problem:
        assert isinstance(error, OSError)
        if error.errno not in _TOO_MANY_FILES:
            raise error
        log.warning("too many files are open")
        return problem(errors.Unavailable())

    app.add_exception_handler(errors.ImpastoError, ours)
    app.add_exception_handler(OSError, system)
    app.add_exception_handler(HTTPException, framework)
    app.add_exception_handler(RequestValidationError, invalid)
