"""Reading what a client submits, multipart or JSON, into pictures and parameters. Decides nothing about jobs."""

import hashlib
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, TypeVar

from fastapi import Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import FormData

from api.submissions import multipart
from core import errors
from core.images import validation
from core.jobs.models import JobInput, Priority
from core.storage.blobs import Blobs, PendingBlob
from core.style import presets
from core.style.spec import MAX_STYLES, PARAMETERS, StyleSpec, apply_changes

MAX_CONTENTS = 12  # of a batch, which has 96 jobs at most
# The photo, paintings, a mask for each, one to begin with, an earlier result; a batch has as many photos and paintings.
MAX_PICTURES = max(3 + 2 * MAX_STYLES, MAX_CONTENTS + MAX_STYLES)
BODY_BYTES = MAX_PICTURES * (validation.MAX_BYTES + 10_000) + 1_000_000
_JSON_BYTES = 100_000

PICTURE_FIELDS = ("content", "style", "mask", "init_image", "from")

T = TypeVar("T")

Picture = PendingBlob | str  # an uploaded file, or the digest of a picture sent before


class ClientOptions(BaseModel):
    """How the job is to be taken, beside what it is to paint."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    priority: Priority = Field(
        Priority.NORMAL, description="Which of the waiting jobs go first: high, normal or low."
    )
    deadline_seconds: float | None = Field(
        None,
        gt=0,
        le=30 * 86_400,
        allow_inf_nan=False,
        description="The job ends this long after it came, in any case.",
    )
    reuse: bool = Field(
        False,
        description="Answer with the result of an earlier job of yours, if pictures, parameters and network are the same.",
    )
    webhook: str | None = Field(
        None, description="A URL, https://…, that is told when the job has ended."
    )

    def priority_within(self, highest: Priority) -> Priority:
        """The one that is asked for, else normal, or what the caller may. Raises BadSpec above the highest."""
        order = list(Priority)
        if order.index(self.priority) >= order.index(highest):
            return self.priority
        if "priority" in self.model_fields_set:
            raise errors.BadSpec(f"priority: this API key may ask for {highest} at most.")
        return highest


CLIENT_OPTIONS = {
    "priority": f"priority must be one of {', '.join(Priority)}.",
    "deadline_seconds": "deadline_seconds must be a number above 0, and at most 2592000 (30 days).",
    "reuse": "reuse must be true or false.",
    "webhook": "webhook must be a URL.",
}


_FORM = multipart.FormLimits(
    files=MAX_PICTURES, fields=2 * len(PARAMETERS) + len(CLIENT_OPTIONS) + 1, text_bytes=_JSON_BYTES
)


@dataclass
class Submission:
    """Pictures, parameters as they came, and wishes."""

    content: Picture | None  # None: that of the source
    styles: list[Picture]
    masks: list[Picture] = field(default_factory=list)
    init_image: Picture | None = None
    source: Picture | None = None  # a result, whose record says what was not sent
    parameters: dict[str, Any] = field(default_factory=dict)
    wishes: ClientOptions = field(default_factory=ClientOptions)

    def pictures(self) -> list[Picture]:
        """All of them, in the order of JobInput."""
        every = [self.content, *self.styles, *self.masks, self.init_image]
        return [picture for picture in every if picture is not None]

    def over(self, before: JobInput) -> "Submission":
        """The earlier job's pictures and parameters, with what was sent in their place.

        New paintings come without the earlier ones' masks and shares. Raises BadSpec for a preset that there is not.
        """
        kept = {
            name: value
            for name, value in before.spec.items()
            if not (self.styles and name == "style_weights")
        }
        parameters = apply_changes(kept, self.parameters)
        first = before.init_image if parameters.get("init") == "picture" else None
        return replace(
            self,
            content=before.content if self.content is None else self.content,
            styles=self.styles or [*before.styles],
            masks=self.masks or ([] if self.styles else [*before.masks]),
            init_image=first if self.init_image is None else self.init_image,
            parameters=parameters,
        )

    def sent(self) -> dict[str, Any]:
        """What the client has sent, without any default of ours; pictures by their digests. Raises StorageFull."""
        every = [*self.pictures(), *([] if self.source is None else [self.source])]
        counts = [
            int(self.content is not None),
            len(self.styles),
            len(self.masks),
            int(self.source is not None),
        ]
        return {
            "pictures": _digests(every),
            "counts": counts,
            "parameters": self.parameters,
            "wishes": self.wishes.model_dump(exclude_unset=True),
        }


@dataclass
class BatchSubmission:
    """Photos, each to be painted in the style of each painting; the parameters and wishes of all."""

    contents: list[Picture]
    styles: list[Picture]
    parameters: dict[str, Any]
    wishes: ClientOptions

    def __post_init__(self) -> None:
        if not (1 <= len(self.contents) <= MAX_CONTENTS and 1 <= len(self.styles) <= MAX_STYLES):
            raise errors.BadRequest(
                f"A batch has 1 to {MAX_CONTENTS} photos and 1 to {MAX_STYLES} paintings."
            )

    def sent(self) -> dict[str, Any]:
        """As of a single submission. Raises StorageFull."""
        return {
            "batch": [_digests(self.contents), _digests(self.styles)],
            "parameters": self.parameters,
            "wishes": self.wishes.model_dump(exclude_unset=True),
        }


def _digests(pictures: list[Picture]) -> list[str]:
    return [picture if isinstance(picture, str) else picture.digest for picture in pictures]


def request_hash(sent: Mapping[str, Any]) -> str:
    """The same for the same request, and for no other."""
    return hashlib.sha256(json.dumps(sent, sort_keys=True).encode()).hexdigest()


@asynccontextmanager
async def parse_submission(request: Request, blobs: Blobs) -> AsyncIterator[Submission]:
    """The submission; its files are open inside, and gone afterwards unless they were kept.

    Raises BadRequest, BadSpec, UploadTooLarge, StorageFull.
    """
    async with _sent(request, blobs, _from_json, _from_form) as submitted:
        yield submitted


@asynccontextmanager
async def parse_batch(request: Request, blobs: Blobs) -> AsyncIterator[BatchSubmission]:
    """The same for a batch."""
    async with _sent(request, blobs, _batch_from_json, _batch_from_form) as submitted:
        yield submitted


@asynccontextmanager
async def _sent(
    request: Request,
    blobs: Blobs,
    from_json: Callable[[bytes], T],
    from_form: Callable[[FormData], T],
) -> AsyncIterator[T]:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        yield from_json(await _body(request))
    elif kind == "multipart/form-data":
        async with multipart.opened(request, blobs, _FORM) as parse_submission:
            yield from_form(parse_submission)
    else:
        raise errors.BadRequest(
            "Send multipart/form-data with the files content and style, or application/json."
        )


async def _body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _JSON_BYTES:
            raise errors.UploadTooLarge("The JSON is longer than is taken.")
    return body


def _from_json(body: bytes) -> Submission:
    data = _object(body)
    content, styles, parameters = (
        data.pop("content", None),
        data.pop("styles", None),
        data.pop("spec", {}),
    )
    masks, init_image, source = (
        data.pop("masks", []),
        data.pop("init_image", None),
        data.pop("from", None),
    )
    if isinstance(source, str):
        content, styles = content or None, [] if styles is None else styles
    wishes = _wishes({name: data.pop(name) for name in CLIENT_OPTIONS if name in data})
    if (
        data
        or not isinstance(content, str if source is None else str | None)
        or not isinstance(parameters, dict)
    ):
        raise errors.BadRequest(
            "The JSON body must have content (a digest) and styles (digests), or from (the digest of a result); "
            f"it may have masks, init_image, spec, {', '.join(CLIENT_OPTIONS)}."
        )
    if not _are_digests(styles) or not (styles or source):
        raise errors.BadRequest("styles must be a list of one or more digests.")
    if (
        not _are_digests(masks)
        or not isinstance(init_image, str | None)
        or not isinstance(source, str | None)
    ):
        raise errors.BadRequest("masks must be a list of digests, init_image and from a digest.")
    return Submission(content, styles, masks, init_image, source, parameters, wishes)


def _batch_from_json(body: bytes) -> BatchSubmission:
    data = _object(body)
    contents, styles, parameters = (
        data.pop("contents", None),
        data.pop("styles", None),
        data.pop("spec", {}),
    )
    wishes = _wishes({name: data.pop(name) for name in CLIENT_OPTIONS if name in data})
    if data or not (
        _are_digests(contents, MAX_CONTENTS)
        and _are_digests(styles)
        and isinstance(parameters, dict)
    ):
        raise errors.BadRequest(
            f"The JSON body must have contents and styles (lists of digests, {MAX_CONTENTS} and {MAX_STYLES} at most); "
            f"it may have spec, {', '.join(CLIENT_OPTIONS)}."
        )
    return BatchSubmission(contents, styles, parameters, wishes)


def _wishes(values: dict[str, Any]) -> ClientOptions:
    try:
        return ClientOptions.model_validate(values)
    except ValidationError as error:
        raise errors.BadSpec(CLIENT_OPTIONS[str(error.errors()[0]["loc"][0])]) from error


def _are_digests(value: Any, most: int = MAX_STYLES) -> bool:
    return (
        isinstance(value, list)
        and len(value) <= most
        and all(isinstance(item, str) for item in value)
    )


def _from_form(data: FormData) -> Submission:
    pictures, parameters, wishes = _fields(data)
    contents, styles, masks, inits, sources = pictures.values()
    least = 0 if sources else 1
    if not (
        least <= len(contents) <= 1
        and least <= len(styles) <= MAX_STYLES
        and len(inits) <= 1 >= len(sources)
    ):
        raise errors.BadRequest(
            f"Send one file as content, 1 to {MAX_STYLES} as style, and at most one as init_image; or a result as from."
        )
    content, init_image, source = (
        found[0] if found else None for found in (contents, inits, sources)
    )
    return Submission(content, styles, masks, init_image, source, parameters, wishes)


def _batch_from_form(data: FormData) -> BatchSubmission:
    pictures, parameters, wishes = _fields(data)
    contents, styles, *others = pictures.values()
    if any(others):
        raise errors.BadRequest("The pictures of a batch are content and style.")
    return BatchSubmission(contents, styles, parameters, wishes)


def _fields(data: FormData) -> tuple[dict[str, list[Picture]], dict[str, Any], ClientOptions]:
    """Pictures by the name of their field, parameters, wishes."""
    pictures: dict[str, list[Picture]] = {name: [] for name in PICTURE_FIELDS}
    parameters: dict[str, Any] = {}
    spec: dict[str, Any] = {}
    wishes: dict[str, Any] = {}
    for name, value in data.multi_items():
        if name in pictures:
            if not isinstance(value, str):
                pictures[name].append(multipart.part_of(value))
            elif value.strip():
                pictures[name].append(value)
        elif not isinstance(value, str):
            raise errors.BadRequest(f"Files are taken as {', '.join(PICTURE_FIELDS)} only.")
        elif name == "spec":
            spec = _object(value.encode("utf-8", "replace"))
        elif name in parameters or name in wishes:
            raise errors.BadRequest("A parameter was sent twice.")
        elif name in CLIENT_OPTIONS:
            wishes |= {name: value} if value.strip() else {}
        elif value.strip() or name not in (
            *PARAMETERS,
            presets.FIELD,
        ):  # a form on a page sends its empty fields, too
            parameters[name] = value
    return pictures, {**spec, **parameters}, _wishes(wishes)


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


def parameters_schema() -> dict[str, Any]:
    """For OpenAPI: every parameter, and the preset."""
    spec = StyleSpec.model_json_schema()
    words = "Parameters that go together (GET /v1/presets); those that are sent beside it win."
    spec["properties"][presets.FIELD] = {
        "type": "string",
        "enum": [*presets.PRESETS],
        "description": words,
    }
    return spec


def openapi_body() -> dict[str, Any]:
    """The request body's description for OpenAPI, made from StyleSpec."""
    words = "A PNG that was painted here, or its digest: it runs again, but for what else is sent."
    masks = {"type": "array", "items": _DIGEST, "maxItems": MAX_STYLES}
    files = {"content": _FILE, "style": _many(_FILE), "mask": _many(_FILE), "init_image": _FILE}
    digests = {
        "content": _DIGEST,
        "styles": {**masks, "minItems": 1},
        "masks": masks,
        "init_image": _DIGEST,
    }
    return _openapi(
        {**files, "from": {**_FILE, "description": words}},
        {**digests, "from": {**_DIGEST, "description": words}},
        {"anyOf": [{"required": ["content", "style"]}, {"required": ["from"]}]},
        {"anyOf": [{"required": ["content", "styles"]}, {"required": ["from"]}]},
    )


def openapi_batch() -> dict[str, Any]:
    """The same for a batch."""
    digests = {
        "contents": {"type": "array", "items": _DIGEST, "minItems": 1, "maxItems": MAX_CONTENTS},
        "styles": {"type": "array", "items": _DIGEST, "minItems": 1, "maxItems": MAX_STYLES},
    }
    files = {"content": _many(_FILE), "style": _many(_FILE)}
    return _openapi(files, digests, {"required": [*files]}, {"required": [*digests]})


_FILE = {
    "type": "string",
    "format": "binary",
    "description": "JPEG, PNG or WebP, or the digest of an upload.",
}
_DIGEST = {"type": "string", "pattern": "^sha256:[0-9a-f]{64}$"}


def _many(item: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": item}


def _openapi(
    files: dict[str, Any],
    digests: dict[str, Any],
    needs_files: dict[str, Any],
    needs_digests: dict[str, Any],
) -> dict[str, Any]:
    spec = parameters_schema()
    parameters = {
        name: {"type": "string", "description": parameter["description"]}
        if "type" not in parameter or parameter["type"] in ("array", "object")
        else parameter
        for name, parameter in spec["properties"].items()
    }
    wishes = ClientOptions.model_json_schema()["properties"]
    wishes["priority"] = {**wishes["priority"], "type": "string", "enum": [*Priority]}
    wishes["priority"].pop("$ref", None)
    fields = {**files, **parameters, "spec": {"type": "string"}, **wishes}
    members = {**digests, "spec": spec, **wishes}
    lists = {name: {"explode": True} for name, file in files.items() if file["type"] == "array"}
    return {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {"type": "object", **needs_files, "properties": fields},
                "encoding": lists,
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    **needs_digests,
                    "properties": members,
                    "additionalProperties": False,
                }
            },
        },
    }
