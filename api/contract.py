"""The OpenAPI document: FastAPI's, and what it cannot know of any route: how we refuse, and how an id looks."""

from collections.abc import Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api.problems import REFUSALS, STATUS
from core import errors

_IDS = {"job_id": "^job_[a-z2-7]{26}$", "batch_id": "^batch_[a-z2-7]{26}$", "digest": "^sha256:[0-9a-f]{64}$"}
_STOCK = ("HTTPValidationError", "ValidationError")

Json = dict[str, Any]


def describe(app: FastAPI) -> None:
    """Make `app.openapi()` tell the whole contract. Call it when all routes are there."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    for path, operations in document["paths"].items():
        for operation in operations.values():
            _amend(operation, refusable=path != "/livez")
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
    answers["4XX"] = _answer("Refused; `code` says why.")
    if refusable:
        seconds = {"schema": {"type": "integer"}, "description": "Seconds to wait."}
        answers["503"] = _answer("Not now; try again.") | {"headers": {"Retry-After": seconds}}
    for parameter in operation.get("parameters", []):
        parameter["schema"] = _sendable(parameter["schema"])
        if parameter["name"] in _IDS:
            parameter["schema"]["pattern"] = _IDS[parameter["name"]]


def _answer(words: str) -> Json:
    schema = {"$ref": "#/components/schemas/Problem"}
    return {"description": words, "content": {"application/problem+json": {"schema": schema}}}


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
        "code": {"type": "string", "enum": sorted({*_codes(errors.ImpastoError), *REFUSALS})},
        "detail": words,
    }
    return {"type": "object", "required": list(properties), "properties": properties}


def _codes(kind: type[errors.ImpastoError]) -> Iterator[str]:
    """Of the errors that can be an answer: those whose family has a status."""
    if any(family in STATUS for family in kind.__mro__ if family is not errors.ImpastoError) or kind in STATUS:
        yield kind.code
    for child in kind.__subclasses__():
        yield from _codes(child)
