"""The OpenAPI document: FastAPI's, and what it cannot know of any route: how we refuse, ids, and an example of each."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api import examples
from api.problems import REFUSALS, STATUS, problem, refusal
from core import errors

_IDS = {"job_id": "^job_[a-z2-7]{26}$", "batch_id": "^batch_[a-z2-7]{26}$", "digest": "^sha256:[0-9a-f]{64}$"}
_STOCK = ("HTTPValidationError", "ValidationError")

Json = dict[str, Any]

_KNOWN: Json = {
    "name": "if-none-match",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "ETags of what you have: 304 if it is still the same.",
}


def describe(app: FastAPI) -> None:
    """Make `app.openapi()` tell the whole contract. Call it when all routes are there."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _amend(operation, refusable=path != "/livez")
            _exemplify(operation, examples.BODIES.get(f"{method.upper()} {path}", {}))
    document["components"]["responses"] = {"Refused": _refused(range(400, 500)), "Later": _later()}
    schemas = document["components"]["schemas"]
    for name in _STOCK:
        schemas.pop(name, None)
    schemas["Problem"] = _problem()
    for schema in schemas.values():
        for field in schema.get("properties", {}).values():
            if field.pop("contentMediaType", None):
                field["format"] = "binary"  # as the other forms say it, and most programs expect a file
    setattr(app, "openapi", lambda: document)  # noqa: B010 - FastAPI's own way; mypy takes an assignment for an error


def _amend(operation: Json, *, refusable: bool) -> None:
    answers = operation["responses"]
    answers.pop("422", None)
    answers["4XX"] = {"$ref": "#/components/responses/Refused"}
    if refusable:
        answers["503"] = {"$ref": "#/components/responses/Later"}
    if "304" in answers:
        operation.setdefault("parameters", []).append(_KNOWN)
    for parameter in operation.get("parameters", []):
        parameter["schema"] = _sendable(parameter["schema"])
        if parameter["name"] in _IDS:
            parameter["schema"]["pattern"] = _IDS[parameter["name"]]


def _exemplify(operation: Json, bodies: Json) -> None:
    """An example for each body, each answer in JSON, each id in an address."""
    for kind, media in operation.get("requestBody", {}).get("content", {}).items():
        if kind in bodies:
            media["example"] = bodies[kind]
    for answer in operation["responses"].values():
        media = answer.get("content", {}).get("application/json", {})
        name = media.get("schema", {}).get("$ref", "").rpartition("/")[2]
        if name in examples.ANSWERS:
            media["example"] = examples.ANSWERS[name]
    for parameter in operation.get("parameters", []):
        if parameter["name"] in examples.PARAMETERS:
            parameter["example"] = examples.PARAMETERS[parameter["name"]]


def _refused(statuses: Iterable[int]) -> Json:
    """A problem, with an example for each code of these statuses."""
    every = [problem(kind()) for kind in _kinds(errors.ImpastoError)] + [refusal(code) for code in REFUSALS]
    told = {body["code"]: body for body in (json.loads(bytes(answer.body)) for answer in every)}
    cases = {code: {"value": body} for code, body in sorted(told.items()) if body["status"] in statuses}
    media = {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": cases}
    return {"description": "Refused; `code` says why.", "content": {"application/problem+json": media}}


def _later() -> Json:
    seconds = {"schema": {"type": "integer"}, "description": "Seconds to wait."}
    return _refused([503]) | {"description": "Not now; try again.", "headers": {"Retry-After": seconds}}


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
        "code": {"type": "string", "enum": sorted({*(kind.code for kind in _kinds(errors.ImpastoError)), *REFUSALS})},
        "detail": words,
    }
    return {"type": "object", "required": list(properties), "properties": properties}


def _kinds(kind: type[errors.ImpastoError]) -> Iterator[type[errors.ImpastoError]]:
    """Of the errors that can be an answer: those whose family has a status."""
    if any(family in STATUS for family in kind.__mro__ if family is not errors.ImpastoError) or kind in STATUS:
        yield kind
    for child in kind.__subclasses__():
        yield from _kinds(child)
