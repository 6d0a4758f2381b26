"""Reading what a client submits, multipart or JSON, into pictures and knobs. Decides nothing about jobs."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, NoReturn

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData

from api import form
from core import errors, images
from core.blobs import Blobs, Part
from core.jobs import Priority
from core.spec import KNOBS, MAX_STYLES, StyleSpec

MAX_PICTURES = 2 + 2 * MAX_STYLES  # the photo, paintings, a mask for each, and one to begin with
BODY_BYTES = MAX_PICTURES * (images.MAX_BYTES + 10_000) + 1_000_000
_JSON_BYTES = 100_000

PICTURE_FIELDS = ("content", "style", "mask", "init_image")

Picture = Part | str  # an uploaded file, or the digest of a picture sent before


class Wishes(BaseModel):
    """How the job is to be taken, beside what it is to paint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    priority: Priority = Field(Priority.NORMAL, description="Which of the waiting jobs go first: high, normal or low.")
    deadline_seconds: float | None = Field(
        None,
        gt=0,
        le=30 * 86_400,
        allow_inf_nan=False,
        description="The job ends this long after it came, in any case.",
    )
    reuse: bool = Field(
        False,
        description="Answer with the result of an earlier job of yours, if pictures, knobs and network are the same.",
    )
    webhook: str | None = Field(None, description="A URL, https://…, that is told when the job has ended.")

    def priority_within(self, highest: Priority) -> Priority:
        """The one that is asked for, else normal, or what the caller may. Raises BadSpec above the highest."""
        order = list(Priority)
        if order.index(self.priority) >= order.index(highest):
            return self.priority
        if "priority" in self.model_fields_set:
            raise errors.BadSpec(f"priority: this API key may ask for {highest} at most.")
        return highest


WISHES = {
    "priority": f"priority must be one of {', '.join(Priority)}.",
    "deadline_seconds": "deadline_seconds must be a number above 0, and at most 2592000 (30 days).",
    "reuse": "reuse must be true or false.",
    "webhook": "webhook must be a URL.",
}


_FORM = form.Limits(files=MAX_PICTURES, fields=2 * len(KNOBS) + len(WISHES), text_bytes=_JSON_BYTES)


@dataclass
class Submission:
    """Two or more pictures, knobs as they came, and wishes."""

    content: Picture
    styles: list[Picture]
    masks: list[Picture] = field(default_factory=list)
    init_image: Picture | None = None
    knobs: dict[str, Any] = field(default_factory=dict)
    wishes: Wishes = field(default_factory=Wishes)

    def pictures(self) -> list[Picture]:
        """All of them, in the order of JobInput."""
        return [self.content, *self.styles, *self.masks, *([] if self.init_image is None else [self.init_image])]

    def sent(self) -> dict[str, Any]:
        """What the client has sent, without any default of ours; pictures by their digests. Raises StorageFull."""
        pictures = [picture if isinstance(picture, str) else picture.digest for picture in self.pictures()]
        counts = [len(self.styles), len(self.masks)]
        return {
            "pictures": pictures,
            "counts": counts,
            "knobs": self.knobs,
            "wishes": self.wishes.model_dump(exclude_unset=True),
        }


@asynccontextmanager
async def received(request: Request, blobs: Blobs) -> AsyncIterator[Submission]:
    """The submission; its files are open inside, and gone afterwards unless they were kept.

    Raises BadRequest, BadSpec, UploadTooLarge, StorageFull.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        yield _from_json(await _body(request))
    elif kind == "multipart/form-data":
        async with form.opened(request, blobs, _FORM) as received:
            yield _from_form(received)
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
    masks, init_image = data.pop("masks", []), data.pop("init_image", None)
    wishes = _wishes({name: data.pop(name) for name in WISHES if name in data})
    if data or not isinstance(content, str) or not isinstance(knobs, dict):
        raise errors.BadRequest(
            "The JSON body must have content (a digest) and styles (digests); "
            f"it may have masks, init_image, spec, {', '.join(WISHES)}."
        )
    if not _are_digests(styles) or not styles:
        raise errors.BadRequest("styles must be a list of one or more digests.")
    if not _are_digests(masks) or not isinstance(init_image, str | None):
        raise errors.BadRequest("masks must be a list of digests, init_image a digest.")
    return Submission(content, styles, masks, init_image, knobs, wishes)


def _wishes(values: dict[str, Any]) -> Wishes:
    try:
        return Wishes.model_validate(values)
    except ValidationError as error:
        raise errors.BadSpec(WISHES[str(error.errors()[0]["loc"][0])]) from error


def _are_digests(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MAX_STYLES and all(isinstance(item, str) for item in value)


def _from_form(data: FormData) -> Submission:
    pictures: dict[str, list[Picture]] = {name: [] for name in PICTURE_FIELDS}
    knobs: dict[str, Any] = {}
    spec: dict[str, Any] = {}
    wishes: dict[str, Any] = {}
    for name, value in data.multi_items():
        if name in pictures:
            if not isinstance(value, str):
                pictures[name].append(form.part_of(value))
            elif value.strip():
                pictures[name].append(value)
        elif not isinstance(value, str):
            raise errors.BadRequest(f"Files are taken as {', '.join(PICTURE_FIELDS)} only.")
        elif name == "spec":
            spec = _object(value.encode("utf-8", "replace"))
        elif name in knobs or name in wishes:
            raise errors.BadRequest("A knob was sent twice.")
        elif name in WISHES:
            wishes |= {name: value} if value.strip() else {}
        elif value.strip() or name not in KNOBS:  # a form on a page sends its empty fields, too
            knobs[name] = value
    contents, styles, masks, inits = pictures.values()
    if len(contents) != 1 or not 1 <= len(styles) <= MAX_STYLES or len(inits) > 1:
        raise errors.BadRequest(f"Send one file as content, 1 to {MAX_STYLES} as style, and at most one as init_image.")
    return Submission(contents[0], styles, masks, inits[0] if inits else None, {**spec, **knobs}, _wishes(wishes))


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
    many = {"type": "array", "items": picture}
    files = {"content": picture, "style": many, "mask": many, "init_image": picture}
    wishes = Wishes.model_json_schema()["properties"]
    wishes["priority"] = {**wishes["priority"], "type": "string", "enum": [*Priority]}
    wishes["priority"].pop("$ref", None)
    form = {**files, **knobs, "spec": {"type": "string"}, **wishes}
    digest = {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"}
    masks = {"type": "array", "items": digest, "maxItems": MAX_STYLES}
    styles = {**masks, "minItems": 1}
    digests = {"content": digest, "styles": styles, "masks": masks, "init_image": digest, "spec": spec, **wishes}
    return {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", "required": ["content", "style"], "properties": form},
                "encoding": {"style": {"explode": True}, "mask": {"explode": True}},
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["content", "styles"],
                    "properties": digests,
                    "additionalProperties": False,
                }
            },
        },
    }
