"""The OpenAPI document: what FastAPI generates, plus what every route has in common.

The common part is the errors, the response headers, the patterns of ids and the examples.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from api.http.problems import REFUSALS, STATUS, problem, refusal
from api.openapi import examples
from api.schemas.submission import limit_parameters
from core import errors

_IDS = {
    "job_id": "^job_[a-z2-7]{26}$",
    "batch_id": "^batch_[a-z2-7]{26}$",
    "digest": "^sha256:[0-9a-f]{64}$",
    "key_id": "^key_[a-z2-7]{16}$",
}
# Parameters and fields of bodies whose route does not describe them: they mean the same everywhere.
_MEANINGS = {
    "job_id": "The id of the job.",
    "batch_id": "The id of the batch.",
    "digest": "`sha256:` and the hexadecimal SHA-256 of the file.",
    "key_id": "The id of the API key, not the key.",
    "index": "The index of the frame, from the list of frames.",
    "limit": "How many to list at most.",
    "cursor": "From the `next` link of a list.",
    "offset": "How many to leave out at the beginning.",
    "count": "How many hours, until now.",
    "format": "The format of the answer.",
    "width": "Shrinks the picture to this width in px; never enlarges it.",
    "after": "As the header Last-Event-ID, for clients that cannot set headers.",
    "last-event-id": "The id of the last event that was received: the stream continues after it.",
    "idempotency-key": "Your name of the request: sent again within a day, it does nothing new.",
    "before": "Only entries before this id.",
    "log": "Only this log: of the operator, or of callers.",
    "actor": "Only what this key has done.",
    "action": "Only actions that begin so, such as `job.` or `key.create`.",
    "target": "Only what was done to this job, batch, worker or key.",
    "outcome": "Only entries with this outcome.",
    "content": "The photo.",
    "contents": "The photos.",
    "image": "The picture.",
    "style": "The paintings, one to eight.",
    "styles": "The paintings, one to eight.",
    "mask": "For each painting: white where its style applies, black where not.",
    "masks": "For each painting: white where its style applies, black where not.",
    "style_mask": "For each painting: white where it counts, black where not.",
    "style_masks": "For each painting: white where it counts, black where not.",
    "init_image": "The picture to start from, with init=picture.",
    "to": "The first or the last place of the queue.",
    "id": "The id of a worker, or * for all.",
    "release": "Hand the running job back with a checkpoint, instead of finishing it.",
    "name": "The name of the key, for people.",
    "priority": "The highest priority that the jobs of the key may have.",
    "admin": "Whether the key may operate the service.",
    "pool": "The label of the workers that run all jobs of the key.",
}
# Schemas of FastAPI's own 422 response, which this API replaces by Problem.
_FASTAPI_ERROR_SCHEMAS = ("HTTPValidationError", "ValidationError")

_REFUSED = "Refused; `code` names the reason."
_TEMPORARY = "Temporarily unavailable; try again later."

Json = dict[str, Any]

_HEADERS: Json = {
    name: {"schema": {"type": kind}, "description": description}
    for name, kind, description in (
        (
            "X-Request-Id",
            "string",
            "Identifies this request in the logs; the value that you sent, if you sent one.",
        ),
        ("ETag", "string", "The version of the representation; send it back as If-None-Match."),
        ("Location", "string", "The path of the new resource."),
        ("Retry-After", "integer", "Seconds to wait before the next request."),
        (
            "Idempotent-Replayed",
            "string",
            "true: this is the response to an earlier request with the same Idempotency-Key.",
        ),
        (
            "Preference-Applied",
            "string",
            "wait=N: the service waited for a change, N seconds at most.",
        ),
        ("WWW-Authenticate", "string", "Bearer: the request needs an API key."),
        ("Allow", "string", "The methods that this path supports."),
    )
}

_IF_NONE_MATCH: Json = {
    "name": "if-none-match",
    "in": "header",
    "required": False,
    "schema": {"type": "string"},
    "description": "ETags that you have; the answer is 304 if one of them is current.",
}


def describe(app: FastAPI) -> None:
    """Make `app.openapi()` return the complete document. Call this after adding all routes."""
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes
    )
    _require_sent_fields(document)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            _describe_binary_responses(operation)
            _add_errors_and_headers(operation, can_fail=path != "/livez")
            _add_examples(operation, f"{method.upper()} {path}")
    document["components"]["responses"] = {
        "Refused": _error_response(range(400, 500)),
        "Unavailable": _error_response([503]),
    }
    document["components"]["headers"] = _HEADERS
    schemas = document["components"]["schemas"]
    for name in _FASTAPI_ERROR_SCHEMAS:
        schemas.pop(name, None)
    schemas["Problem"] = _problem_schema()
    for schema in schemas.values():
        for field in schema.get("properties", {}).values():
            if field.pop("contentMediaType", None):
                # Most generators of clients know a file only by this older notation.
                field["format"] = "binary"
    for properties in _walk_parameters(document):
        properties.update(limit_parameters(properties, app.state.job_limits))
    # FastAPI documents this override; mypy reports a plain assignment as an error.
    setattr(app, "openapi", lambda: document)  # noqa: B010


def _describe_binary_responses(operation: Json) -> None:
    """Add the schemas that FastAPI leaves out, without which a generated client has no type."""
    for response in operation["responses"].values():
        for kind, media in response.get("content", {}).items():
            if kind.startswith("image/"):
                media["schema"] = {"type": "string", "format": "binary"}
            elif kind == "text/plain":  # a stream of events has no schema before OpenAPI 3.2
                media["schema"] = {"type": "string"}


def _require_sent_fields(document: Json) -> None:
    """Mark each field of a response as required, also one with a default: it is always sent."""
    bodies = [
        operation.get("requestBody", {})
        for operations in document["paths"].values()
        for operation in operations.values()
    ]
    schemas = document["components"]["schemas"]
    received = _find_schemas(bodies, schemas)
    sent = [media["schema"] for body in bodies for media in body.get("content", {}).values()]
    for schema in [*sent, *(schemas[name] for name in received)]:
        for name, field in schema.get("properties", {}).items():
            if name in _MEANINGS and not field.get("description"):
                field["description"] = _MEANINGS[name]
    for name in schemas.keys() - received:
        if properties := schemas[name].get("properties"):
            schemas[name]["required"] = list(properties)


def _find_schemas(node: Any, schemas: Json) -> set[str]:
    """Return the names of the schemas that the node refers to, also indirectly."""
    text, found = json.dumps(node), set[str]()
    for name, schema in schemas.items():
        if f'"#/components/schemas/{name}"' in text:
            found |= {name} | _find_schemas(schema, {k: v for k, v in schemas.items() if k != name})
    return found


def _walk_parameters(node: Any) -> Iterator[Json]:
    """Yield the properties of each schema that has the parameters of a job."""
    children: Iterable[Any] = node if isinstance(node, list) else ()
    if isinstance(node, dict):
        properties = node.get("properties")
        if isinstance(properties, dict) and {"size", "iterations", "preset"} <= properties.keys():
            yield properties
        children = node.values()
    for child in children:
        yield from _walk_parameters(child)


def _add_errors_and_headers(operation: Json, *, can_fail: bool) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    responses["4XX"] = {"$ref": "#/components/responses/Refused"}
    if can_fail:
        responses["503"] = {"$ref": "#/components/responses/Unavailable"}
    if "304" in responses:
        operation.setdefault("parameters", []).append(_IF_NONE_MATCH)
    for status, response in responses.items():
        if "$ref" not in response:
            response["headers"] = _headers(operation, status)
    for parameter in operation.get("parameters", []):
        parameter["schema"] = _without_null(parameter["schema"])
        if parameter["name"] in _MEANINGS:
            parameter.setdefault("description", _MEANINGS[parameter["name"]])
        if parameter["name"] in _IDS:
            parameter["schema"]["pattern"] = _IDS[parameter["name"]]


def _headers(operation: Json, status: str) -> Json:
    """Return the headers that a response may have, beside the general ones of HTTP."""
    names = ["X-Request-Id"]
    can_wait = any(parameter["name"] == "prefer" for parameter in operation.get("parameters", []))
    if "304" in operation["responses"] and status in ("200", "304"):
        names += ["ETag", *(["Retry-After"] if can_wait else [])]
    if status in ("201", "202"):
        names += ["Location"]
    if status == "202":
        names += ["Retry-After", "Idempotent-Replayed"]
    if can_wait:
        names += ["Preference-Applied"]
    return _header_refs(*names)


def _header_refs(*names: str) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _add_examples(operation: Json, name: str) -> None:
    """Add an example for each body, JSON response, event stream and id in a path."""
    bodies = examples.BODIES.get(name, {})
    for kind, media in operation.get("requestBody", {}).get("content", {}).items():
        if kind in bodies:
            media["example"] = bodies[kind]
    for status, response in operation["responses"].items():
        content = response.get("content", {})
        media = content.get("application/json", {})
        schema = media.get("schema", {}).get("$ref", "").rpartition("/")[2]
        example = examples.RESPONSES_OF_OPERATION.get(
            f"{name} {status}", examples.RESPONSES.get(schema)
        )
        if example is not None:
            media["example"] = example
        if "text/event-stream" in content:
            content["text/event-stream"]["example"] = examples.STREAM
    for parameter in operation.get("parameters", []):
        if parameter["name"] in examples.PARAMETERS:
            parameter["example"] = examples.PARAMETERS[parameter["name"]]


def _error_response(statuses: Iterable[int]) -> Json:
    """Return the response of these statuses, with one example for each error code."""
    responses = [problem(kind()) for kind in _walk_errors(errors.ImpastoError)]
    responses += [refusal(code) for code in REFUSALS]
    bodies = [json.loads(bytes(response.body)) for response in responses]
    cases = {
        body["code"]: {"value": body}
        for body in sorted(bodies, key=lambda body: str(body["code"]))
        if body["status"] in statuses
    }
    media = {"schema": {"$ref": "#/components/schemas/Problem"}, "examples": cases}
    own = {401: "WWW-Authenticate", 405: "Allow", 429: "Retry-After", 503: "Retry-After"}
    names = dict.fromkeys(name for status, name in own.items() if status in statuses)
    temporary = list(statuses) == [503]
    return {
        "description": _TEMPORARY if temporary else _REFUSED,
        "headers": _header_refs("X-Request-Id", *names),
        "content": {"application/problem+json": media},
    }


def _without_null(schema: Json) -> Json:
    """Remove `null` from an optional parameter: a URL can omit the parameter, but not send null."""
    kinds = [kind for kind in schema.get("anyOf", []) if kind.get("type") != "null"]
    return {**kinds[0], "title": schema.get("title", "")} if len(kinds) == 1 else schema


def _problem_schema() -> Json:
    text = {"type": "string"}
    codes = {*(kind.code for kind in _walk_errors(errors.ImpastoError)), *REFUSALS}
    properties = {
        "type": text,
        "title": text,
        "status": {"type": "integer", "minimum": 400, "maximum": 599},
        "code": {"type": "string", "enum": sorted(codes)},
        "detail": text,
    }
    optional = {
        "reason": {"type": "string", "description": "The cause, where a code has several."},
        "parameter": {"type": "string", "description": "The parameter or option to correct."},
    }
    return {
        "type": "object",
        "required": list(properties),
        "properties": properties | optional,
    }


def _walk_errors(kind: type[errors.ImpastoError]) -> Iterator[type[errors.ImpastoError]]:
    """Yield the error classes that can become a response: those with a status other than 500."""
    has_status = any(base in STATUS for base in kind.__mro__ if base is not errors.ImpastoError)
    if has_status or kind in STATUS:
        yield kind
    for child in kind.__subclasses__():
        yield from _walk_errors(child)
