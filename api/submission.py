"""Reading what a client submits, multipart or JSON, into pictures and knobs. Decides nothing about jobs."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import IO, Any, NoReturn

from fastapi import Request
from starlette.datastructures import FormData

from core import errors, images
from core.spec import KNOBS, MAX_STYLES, StyleSpec

BODY_BYTES = (MAX_STYLES + 1) * (images.MAX_BYTES + 10_000) + 1_000_000
_JSON_BYTES = 100_000

Picture = IO[bytes] | str  # an uploaded file, or the digest of a picture sent before


@dataclass
class Submission:
    """Two or more pictures, and knobs as they came."""

    content: Picture
    styles: list[Picture]
    knobs: dict[str, Any] = field(default_factory=dict)


@asynccontextmanager
async def received(request: Request) -> AsyncIterator[Submission]:
    """The submission; its files are open inside, and gone afterwards. Raises BadRequest, BadSpec, UploadTooLarge."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        yield _from_json(await _body(request))
    elif kind == "multipart/form-data":
        limits = {"max_files": 2 * MAX_STYLES, "max_fields": 2 * len(KNOBS), "max_part_size": _JSON_BYTES}
        async with request.form(**limits) as form:
            yield _from_form(form)
    else:
        raise errors.BadRequest("Send multipart/form-data with the files content and style, or application/json.")


async def _body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _JSON_BYTES:
            raise errors.UploadTooLarge("The JSON is longer than is taken.")
    return body


def _from_json(body: bytes) -> Submission:
    data = _object(body)
    content, styles, knobs = data.pop("content", None), data.pop("styles", None), data.pop("spec", {})
    if data or not isinstance(content, str) or not isinstance(knobs, dict):
        raise errors.BadRequest("The JSON body must have content (a digest), styles (digests) and may have spec.")
    if not isinstance(styles, list) or not styles or not all(isinstance(style, str) for style in styles):
        raise errors.BadRequest("styles must be a list of one or more digests.")
    return Submission(content, styles, knobs)


def _from_form(form: FormData) -> Submission:
    contents: list[Picture] = []
    styles: list[Picture] = []
    knobs: dict[str, Any] = {}
    spec: dict[str, Any] = {}
    for name, value in form.multi_items():
        if name in ("content", "style"):
            (contents if name == "content" else styles).append(value if isinstance(value, str) else value.file)
        elif not isinstance(value, str):
            raise errors.BadRequest("Files are taken as content and style only.")
        elif name == "spec":
            spec = _object(value.encode("utf-8", "replace"))
        elif name in knobs:
            raise errors.BadRequest("A knob was sent twice.")
        elif value.strip() or name not in KNOBS:  # a form on a page sends its empty fields, too
            knobs[name] = value
    if len(contents) != 1 or not 1 <= len(styles) <= MAX_STYLES:
        raise errors.BadRequest(f"Send one file as content and 1 to {MAX_STYLES} as style.")
    return Submission(contents[0], styles, {**spec, **knobs})


def _object(text: bytes) -> dict[str, Any]:
    def refuse(_: str) -> NoReturn:
        raise errors.BadSpec("Numbers must be finite.")

    try:
        data = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise errors.BadRequest("This is no JSON that can be read.") from error
    if not isinstance(data, dict):
        raise errors.BadRequest("The JSON must be an object.")
    return data


def openapi_body() -> dict[str, Any]:
    """The request body's description for OpenAPI, made from StyleSpec."""
    spec = StyleSpec.model_json_schema()
    knobs = {
        name: {"type": "string", "description": knob["description"]}
        if "type" not in knob or knob["type"] in ("array", "object")
        else knob
        for name, knob in spec["properties"].items()
    }
    picture = {"type": "string", "format": "binary", "description": "JPEG, PNG or WebP, or the digest of an upload."}
    form = {"content": picture, "style": {"type": "array", "items": picture}, **knobs, "spec": {"type": "string"}}
    digests = {"content": {"type": "string"}, "styles": {"type": "array", "items": {"type": "string"}}, "spec": spec}
    return {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["content", "style"], "properties": form},
                "encoding": {"style": {"explode": True}},
            },
            "application/json": {
                "schema": {"type": "object", "required": ["content", "styles"], "properties": digests}
            },
        },
    }
