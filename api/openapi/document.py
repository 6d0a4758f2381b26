"""The OpenAPI document: FastAPI's, and what it cannot know of any route: how we refuse, ids, and an example of each."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api.http.problems import REFUSALS, STATUS, problem, status_of
from api.openapi import examples
from core import errors

_IDS = {
    "job_id": "^job_[a-z2-7]{26}$",
    "batch_id": "^batch_[a-z2-7]{26}$",
    "digest": "^sha256:[0-9a-f]{64}$",
}
_STOCK = ("HTTPValidationError", "ValidationError")

Json = dict[str, Any]

_HEADERS: Json = {
    name: {"schema": {"type": kind}, "description": words}
    for name, kind, words in (
        ("X-Request-Id", "string", "Name it when you report something; your own, if you sent one."),
        ("ETag", "string", "Send it back as If-None-Match."),
        ("Location", "string", "Where the new thing is."),
        ("Retry-After", "integer", "Seconds to wait before you ask again."),
        (
            "Idempotent-Replayed",
            "string",
            "true: an earlier request with this Idempotency-Key is answered again.",
        ),
        (
            "Preference-Applied",
            "string",
            "wait=N: the answer came with the news, or after so long.",
        ),
        ("WWW-Authenticate", "string", "Bearer, where an API key is asked for."),
        ("Allow", "string", "The methods that this address takes."),
    )
}

_KNOWN: Json = {
    "name": "if-none-match",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "ETags of what you have: 304 if it is still the same.",
}


def describe(app: FastAPI) -> None:
    """Make `app.openapi()` tell the whole contract. Call it when all routes are there."""
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _amend(operation, refusable=path != "/livez")
            _exemplify(operation, f"{method.upper()} {path}")
    document["components"]["responses"] = {
        "Refused": _refused(range(400, 500)),
        "Later": _refused([503]),
    }
    document["components"]["headers"] = _HEADERS
    schemas = document["components"]["schemas"]
    for name in _STOCK:
        schemas.pop(name, None)
    schemas["Problem"] = _problem()
    for schema in schemas.values():
        for field in schema.get("properties", {}).values():
            if field.pop("contentMediaType", None):
                field["format"] = (
                    "binary"  # as the other forms say it, and most programs expect a file
                )
    setattr(app, "openapi", lambda: document)  # noqa: B010 - FastAPI's own way; mypy takes an assignment for an error


def _amend(operation: Json, *, refusable: bool) -> None:
    answers = operation["responses"]
    answers.pop("422", None)
    answers["4XX"] = {"$ref": "#/components/responses/Refused"}
    if refusable:
        answers["503"] = {"$ref": "#/components/responses/Later"}
    if "304" in answers:
        operation.setdefault("parameters", []).append(_KNOWN)
    for status, answer in answers.items():
        if "$ref" not in answer:
            answer["headers"] = _headers(operation, status)
    for parameter in operation.get("parameters", []):
        parameter["schema"] = _sendable(parameter["schema"])
        if parameter["name"] in _IDS:
            parameter["schema"]["pattern"] = _IDS[parameter["name"]]


def _headers(operation: Json, status: str) -> Json:
    """Those that an answer may have beside what every HTTP answer has."""
    names = ["X-Request-Id"]
    waits = any(parameter["name"] == "prefer" for parameter in operation.get("parameters", []))
    if "304" in operation["responses"] and status in ("200", "304"):
        names += ["ETag", *(["Retry-After"] if waits else [])]
    if status in ("201", "202"):
        names += ["Location"]
    if status == "202":
        names += ["Retry-After", "Idempotent-Replayed"]
    if waits:
        names += ["Preference-Applied"]
    return _named(*names)


def _named(*names: str) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _exemplify(operation: Json, name: str) -> None:
    """An example for each body, each answer in JSON, each stream, each id in an address."""
    bodies = examples.BODIES.get(name, {})
    for kind, media in operation.get("requestBody", {}).get("content", {}).items():
        if kind in bodies:
            media["example"] = bodies[kind]
    for status, answer in operation["responses"].items():
        content = answer.get("content", {})
        media = content.get("application/json", {})
        schema = media.get("schema", {}).get("$ref", "").rpartition("/")[2]
        example = examples.ANSWERS_OF.get(f"{name} {status}", examples.ANSWERS.get(schema))
        if example is not None:
            media["example"] = example
        if "text/event-stream" in content:
            content["text/event-stream"]["example"] = examples.STREAM
    for parameter in operation.get("parameters", []):
        if parameter["name"] in examples.PARAMETERS:
            parameter["example"] = examples.PARAMETERS[parameter["name"]]


def _refused(statuses: Iterable[int]) -> Json:
    """A problem, with an example for each code of these statuses."""
    every = [problem(kind()) for kind in _kinds(errors.ImpastoError)] + [
        status_of(code) for code in REFUSALS
    ]
    told = {body["code"]: body for body in (json.loads(bytes(answer.body)) for answer in every)}
    cases = {
        code: {"value": body} for code, body in sorted(told.items()) if body["status"] in statuses
    }
    media = {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": cases}
    own = {401: "WWW-Authenticate", 405: "Allow", 429: "Retry-After", 503: "Retry-After"}
    headers = _named(
        "X-Request-Id", *dict.fromkeys(name for status, name in own.items() if status in statuses)
    )
    words = "Not now; try again." if list(statuses) == [503] else "Refused; `code` says why."
    return {
        "description": words,
        "headers": headers,
        "content": {"application/problem+json": media},
    }


def _sendable(schema: Json) -> Json:
    """A parameter that may be left out is not one that may be null: an address cannot say null."""
    kinds = [kind for kind in schema.get("anyOf", []) if kind.get("type") != "null"]
    return {**kinds[0], "title": schema.get("title", "")} if len(kinds) == 1 else schema


def _problem() -> Json:
    words = {"type": "string"}
    properties = {
        "type": words,
        "title": words,
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "code": {
            "type": "string",
            "enum": sorted({*(kind.code for kind in _kinds(errors.ImpastoError)), *REFUSALS}),
        },
        "detail": words,
    }
    return {"type": "object", "required": list(properties), "properties": properties}


def _kinds(kind: type[errors.ImpastoError]) -> Iterator[type[errors.ImpastoError]]:
    """Of the errors that can be an answer: those whose family has a status."""
    if (
        any(family in STATUS for family in kind.__mro__ if family is not errors.ImpastoError)
        or kind in STATUS
    ):
        yield kind
    for child in kind.__subclasses__():
        yield from _kinds(child)
