"""Converts every error to `application/problem+json` (RFC 9457).

A response never echoes the input and never contains a library's message.
"""

import errno
import logging
import math
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.error_page import error_page
from core import errors
from core.images.validation import FORMATS, MAX_SIDE_PX, MIN_SIDE_PX
from core.jobs.models import Priority, Status
from core.jobs.operations import MAX_HOURS
from core.style.spec import MAX_SIZE_PX, MAX_STYLES

log = logging.getLogger(__name__)

# The limit of open files of this process and of this machine: temporary, so it becomes a 503.
_TOO_MANY_FILES = (errno.EMFILE, errno.ENFILE)

# The nearest class in an error's method resolution order decides.
STATUS: dict[type[errors.ImpastoError], int] = {
    errors.ImpastoError: 500,
    errors.BadInput: 422,
    errors.BadRequest: 400,
    errors.UnsupportedImage: 415,
    errors.UploadTooLarge: 413,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.ResultGone: 410,
    errors.ImageDamaged: 410,
    errors.IdempotencyConflict: 422,
    errors.Unauthorized: 401,
    errors.AdminRequired: 403,
    errors.RetryLater: 429,
    errors.Unavailable: 503,
}


class Problem(JSONResponse):
    """An error response. Its body has type, title, status, code, detail, and further members."""

    media_type = "application/problem+json"

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        retry_seconds: float | None = None,
        **members: Any,
    ) -> None:
        title = HTTPStatus(status).phrase
        headers = None if retry_seconds is None else {"Retry-After": str(math.ceil(retry_seconds))}
        content = {
            "type": "about:blank",
            "title": title,
            "status": status,
            "code": code,
            "detail": detail,
            **members,
        }
        super().__init__(content, status, headers)


def problem(error: errors.ImpastoError, **members: Any) -> Problem:
    """Return the response for one of our own errors. members: further ones of the body."""
    status = next(STATUS[kind] for kind in type(error).__mro__ if kind in STATUS)
    retry_seconds = error.retry_seconds if isinstance(error, errors.RetryLater) else None
    if error.reason:
        members["reason"] = error.reason
    if error.parameter:
        members["parameter"] = error.parameter
    return Problem(status, error.code, error.message, retry_seconds, **members)


# Refusals by the server protocol, the middleware or the framework: no route runs.
REFUSALS = {
    "bad_request": (400, "The request is malformed; see /docs for its form."),
    "host_not_allowed": (
        403,
        "The Host header names another host; IMPASTO_API_ALLOWED_HOSTS lists further names.",
    ),
    "cross_origin_forbidden": (
        403,
        "A page of another origin may not do this; IMPASTO_API_CORS_ORIGINS lists allowed origins.",
    ),
    "not_found": (404, "There is no such path; see /docs for all paths."),
    "method_not_allowed": (405, "This path does not support that method; see /docs."),
    "request_timeout": (
        408,
        "The request arrived too slowly; send it again over a faster connection.",
    ),
    "upload_too_large": (413, "The request body is too large; GET /v1/system names the limits."),
    "uri_too_long": (414, "The URL is too long."),
    "unsupported_encoding": (415, "Send the body without a Content-Encoding."),
    "range_not_satisfiable": (416, "The file has no such byte range."),
    "headers_too_large": (431, "The request has too many headers, or too long ones."),
}
_FRAMEWORK = {status: code for code, (status, _) in REFUSALS.items() if status not in (403, 415)}


_PICTURE = (
    f"the digest of an upload, or its width and height from {MIN_SIDE_PX} to {MAX_SIDE_PX} px"
)

# The rule for each value, by its name in the URL, a header or the top level of a JSON body.
# "body" is the body itself.
_RULES = {
    "to": "to must be first or last.",
    "count": f"count must be a whole number from 1 to {MAX_HOURS}.",
    "offset": "offset must be a whole number from 0 to 1000000.",
    "name": "A key's name must be 1 to 100 printable characters.",
    "priority": f"priority must be one of {', '.join(Priority)}.",
    "admin": "admin must be true or false.",
    "pool": "A pool is the label of workers, such as team=a.",
    "id": "id must be the id of a worker, or * for all.",
    "release": "release must be true or false.",
    "log": "log must be operator or callers.",
    "exclude": "exclude must be functions, store, store_settings, pictures or worker.",
    "limit": "limit must be a whole number from 1 to 100.",
    "cursor": "cursor must be from the next link of a list.",
    "status": f"status must be one of {', '.join(Status)}.",
    "format": f"format must be one of {', '.join(FORMATS)}.",
    "width": f"width must be a whole number from 16 to {MAX_SIZE_PX}.",
    "index": "index must be a whole number from the list of frames.",
    "after": "after must be an event id of the stream.",
    "idempotency-key": "Idempotency-Key must be 1 to 255 visible ASCII characters, without spaces.",
    "pinned": "pinned must be true or false.",
    "continue": "continue must be true or false.",
    "webhook": "webhook must be a URL.",
    "spec": "spec must be an object of parameters.",
    "content": f"content must be {_PICTURE}.",
    "styles": f"styles must be a list of 1 to {MAX_STYLES}, each {_PICTURE}.",
    "style_masks": f"style_masks must be a list of at most {MAX_STYLES}, each {_PICTURE}.",
    "masks": f"masks must be a list of at most {MAX_STYLES}, each {_PICTURE}.",
    "init_image": f"init_image must be {_PICTURE}.",
    "body": "Send a JSON object as the body; see /docs for its fields.",
}
_RULES_OF_ROUTE = {
    ("/v1/jobs/{job_id}/timelapse", "format"): "format must be webp.",
    ("/v1/jobs/{job_id}", "body"): "Send a JSON object with spec, pinned, or both.",
}
_RULES_OF_TYPE = {
    "json_invalid": "The body is not valid JSON.",
    # The message must not name the field: the name is the client's input.
    "extra_forbidden": "The JSON has an unknown field; see /docs.",
}


def _describe_invalid(error: dict[str, Any], route: str) -> str:
    """Return one sentence for a validation error of the framework."""
    place, *inner = error["loc"]
    name = inner[0] if inner else place
    rule = (
        _RULES_OF_TYPE.get(error["type"]) or _RULES_OF_ROUTE.get((route, name)) or _RULES.get(name)
    )
    return rule or "A value is invalid; see /docs."


def refusal(code: str) -> Problem:
    """Return the response for one of REFUSALS."""
    status, detail = REFUSALS[code]
    return Problem(status, code, detail)


class FrameworkErrors:
    """Replaces plain-text errors that the framework sends without the exception handlers.

    These come from its limit on body sizes and from its CORS middleware.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        replacement: Problem | None = None

        async def answer(message: Message) -> None:
            nonlocal replacement
            if message["type"] == "http.response.start" and message["status"] in _FRAMEWORK:
                headers = MutableHeaders(scope=message)
                if headers.get("content-type", "").startswith("text/plain"):
                    replacement = refusal(_FRAMEWORK[message["status"]])
                    headers["content-type"], headers["content-length"] = (
                        Problem.media_type,
                        str(len(replacement.body)),
                    )
            if replacement is not None and message["type"] == "http.response.body":
                # The body goes out in one piece, with the last message.
                body = b"" if message.get("more_body") else replacement.body
                message = {**message, "body": body}
            await send(message)

        await self._app(scope, receive, answer if scope["type"] == "http" else send)


def install(app: FastAPI) -> None:
    """Register the exception handlers."""
    app.add_exception_handler(errors.ImpastoError, _handle_own_error)
    app.add_exception_handler(OSError, _handle_os_error)
    app.add_exception_handler(HTTPException, _handle_framework_error)
    app.add_exception_handler(RequestValidationError, _handle_validation_error)


async def _handle_own_error(_: Request, error: Exception) -> Problem:
    assert isinstance(error, errors.ImpastoError)
    return problem(error)


async def _handle_os_error(_: Request, error: Exception) -> Problem:
    assert isinstance(error, OSError)
    if error.errno not in _TOO_MANY_FILES:
        raise error
    log.warning("too many files are open")
    return problem(errors.Unavailable())


async def _handle_framework_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 404 and (page := error_page(request.scope, 404)):
        return page
    response = refusal(_FRAMEWORK.get(error.status_code, "bad_request"))
    response.headers.update(error.headers or {})
    if error.status_code == 405 and (allowed := _allowed_methods(request)):
        response.headers["Allow"] = ", ".join(sorted(allowed))
    return response


def _allowed_methods(request: Request) -> set[str]:
    """Return the methods of the request's path; the framework names those of one route only."""
    path = getattr(request.scope.get("route"), "path", None)
    methods = {method.upper() for method in request.app.openapi()["paths"].get(path, ())}
    if "GET" in methods:
        methods.add("HEAD")
    return methods


async def _handle_validation_error(request: Request, error: Exception) -> Problem:
    assert isinstance(error, RequestValidationError)
    route = getattr(request.scope.get("route"), "path", "")
    return Problem(422, errors.BadInput.code, _describe_invalid(error.errors()[0], route))
