"""The bodies of POST /v1/jobs and POST /v1/batches, and their part of the OpenAPI document.

JSON and form share one model per route. The model of the form is a subclass with other field names.
Knows no request: api/submissions/parser.py reads the body.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Self, get_origin

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
    field_validator,
    model_validator,
)

from core import errors
from core.jobs.models import JobInput, SubmissionOptions
from core.storage.blobs import PendingBlob, is_digest
from core.style import presets
from core.style.limits import JobLimits
from core.style.schedule import ITERATIONS
from core.style.spec import MAX_STYLES, StyleSpec, apply_changes

MAX_CONTENTS = 12  # photos of a batch, which has thus at most 12 * 8 = 96 jobs

Picture = PendingBlob | str  # an uploaded file, or the digest of an earlier upload

_DIGEST_SCHEMA: dict[str, Any] = {
    "type": "string",
    "pattern": "^sha256:[0-9a-f]{64}$",
    "description": "The digest of an upload.",
}
_FILE_SCHEMA: dict[str, Any] = {
    "type": "string",
    "format": "binary",
    "description": "A JPEG, PNG, WebP, HEIC, AVIF, TIFF or GIF file, or the digest of an upload.",
}
NOT_READ = "A URL, a data URI and a file name are not read."
# What clients send instead: a URL, a data URI, a file name, or base64.
_SEND_DIGEST = (
    "send the digest of an upload (POST /v1/images answers with it), or send the file in a form. "
    f"{NOT_READ}"
)
_SEND_FILE = (
    "send the file itself (with curl: -F content=@photo.jpg), or the digest of an upload. "
    f"{NOT_READ}"
)


def check_digest_form(part: str, text: str) -> None:
    """Raise BadRequest if the text, sent as this part, is no digest."""
    if not is_digest(text):
        raise errors.BadRequest(f"{part}: {_SEND_DIGEST}")


def _require_digest(sentence: str) -> AfterValidator:
    """Return a validator that refuses a text that is no digest with this sentence."""

    def validate(value: Picture | None) -> Picture | None:
        if isinstance(value, str) and not is_digest(value):
            raise ValueError(sentence)
        return value

    return AfterValidator(validate)


_IS_DIGEST, _IS_FILE = _require_digest(_SEND_DIGEST), _require_digest(_SEND_FILE)
Digest = Annotated[Picture, _IS_DIGEST, WithJsonSchema(_DIGEST_SCHEMA)]
OptionalDigest = Annotated[Picture | None, _IS_DIGEST, WithJsonSchema(_DIGEST_SCHEMA)]
File = Annotated[Picture, _IS_FILE, WithJsonSchema(_FILE_SCHEMA)]
OptionalFile = Annotated[Picture | None, _IS_FILE, WithJsonSchema(_FILE_SCHEMA)]
SpecText = Annotated[
    dict[str, Any],
    WithJsonSchema({"type": "string", "description": "Parameters as a JSON object."}),
]

_FROM_DESCRIPTION = (
    "A PNG result of this service, or its digest: "
    "the job runs again, with the changes that you send."
)


def parameters_schema() -> dict[str, Any]:
    """Return the JSON schema of the parameters, including `preset`."""
    schema = StyleSpec.model_json_schema()
    for name in ("title", "description"):  # the fields that use the schema have their own
        schema.pop(name, None)
    schema["properties"][presets.FIELD] = {
        "type": "string",
        "enum": [*presets.PRESETS],
        "description": "A named set of parameters (GET /v1/presets). Your parameters override it.",
    }
    return schema


def limit_parameters(properties: Mapping[str, Any], limits: JobLimits) -> dict[str, Any]:
    """Return the parameters' schemas with the default and the maxima that the operator allows.

    `iterations` of `quality` has those of each value, which count for the limit.
    """
    return {
        **properties,
        "size": {
            **properties["size"],
            "default": limits.default_size_px,
            "maximum": limits.size_px,
        },
        "quality": {**properties["quality"], "iterations": ITERATIONS},
        "iterations": {**properties["iterations"], "maximum": limits.iterations},
    }


def options_schema() -> dict[str, Any]:
    """Return the JSON schema of each option of a submission."""
    return _inline_fields(SubmissionOptions.model_json_schema())


def _add_parameter_fields(schema: dict[str, Any]) -> None:
    """Add every parameter to the schema of a form, as a field of its own."""
    for name, parameter in parameters_schema()["properties"].items():
        field = parameter
        # A form field is text: relu1_1=1,relu2_1=0.5 or JSON for an object, 0.7,0.3 for a list.
        if parameter.get("type") in ("array", "object", None):
            field = {"type": "string", "description": parameter["description"]}
        schema["properties"][name] = field
    schema.pop("additionalProperties", None)


def _require_pictures_or_result(schema: dict[str, Any], *pictures: str) -> list[dict[str, Any]]:
    """Return the two forms of a job. With their own properties, so that generators see a union."""
    fields = schema["properties"]
    return [
        {
            "required": [*pictures],
            "properties": {**{name: fields[name] for name in pictures}, "from": False},
        },
        {"required": ["from"], "properties": {"from": fields["from"]}},
    ]


def _describe_job(schema: dict[str, Any]) -> None:
    schema["oneOf"] = _require_pictures_or_result(schema, "content", "styles")


def _describe_job_form(schema: dict[str, Any]) -> None:
    _add_parameter_fields(schema)
    schema["oneOf"] = _require_pictures_or_result(schema, "content", "style")


class _Submission(SubmissionOptions):
    """The fields that jobs and batches have in common."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    # The sentence that refuses a field, by its name on the wire. It never contains the input.
    rules: ClassVar[dict[str, str]] = {
        "priority": "priority must be one of high, normal, low.",
        "deadline_seconds": "deadline_seconds must be a number above 0, "
        "and at most 2592000 (30 days).",
        "reuse": "reuse must be true or false.",
        "webhook": "webhook must be a URL.",
        "pool": "pool must be the label of workers, such as team=a.",
        "spec": "spec must be an object of parameters.",
        "content": "content must be one picture: a file, or the digest of an upload.",
        "init_image": "init_image must be one picture: a file, or the digest of an upload.",
        "from": "from must be one result: a file, or its digest.",
        "contents": f"contents must be a list of 1 to {MAX_CONTENTS} digests.",
        "styles": f"styles must be a list of 1 to {MAX_STYLES} digests.",
        "style": f"style: send 1 to {MAX_STYLES} pictures, each a file or a digest.",
        "masks": f"masks must be a list of at most {MAX_STYLES} digests.",
        "style_masks": f"style_masks must be a list of at most {MAX_STYLES} digests.",
        "style_mask": f"style_mask: send at most {MAX_STYLES} pictures, each a file or a digest.",
        "mask": f"mask: send at most {MAX_STYLES} pictures, each a file or a digest.",
    }

    parameters: dict[str, Any] = Field(
        {}, alias="spec", description="Parameters.", json_schema_extra=parameters_schema()
    )

    @property
    def options(self) -> SubmissionOptions:
        """The options alone. Those that the client has not sent stay unset."""
        names = {*SubmissionOptions.model_fields}
        return SubmissionOptions.model_validate(self.model_dump(include=names, exclude_unset=True))

    @classmethod
    def field_names(cls) -> list[str]:
        """Return the names of the fields on the wire."""
        return [field.alias or name for name, field in cls.model_fields.items()]

    @classmethod
    def list_field_names(cls) -> set[str]:
        """Return the names of the fields that hold several pictures."""
        return {
            field.alias or name
            for name, field in cls.model_fields.items()
            if get_origin(field.annotation) is list
        }


class JobSubmission(_Submission):
    """A job: pictures as digests, parameters as `spec`, and options."""

    model_config = ConfigDict(json_schema_extra=_describe_job)

    incomplete: ClassVar[str] = (
        f"Send content (a digest) and styles (a list of 1 to {MAX_STYLES} digests), "
        "or from (the digest of a result)."
    )

    content: OptionalDigest = None
    styles: list[Digest] = Field([], max_length=MAX_STYLES, json_schema_extra={"minItems": 1})
    masks: list[Digest] = Field([], max_length=MAX_STYLES)
    style_masks: list[Digest] = Field([], max_length=MAX_STYLES)
    init_image: OptionalDigest = None
    source: OptionalDigest = Field(None, alias="from", description=_FROM_DESCRIPTION)

    @field_validator("content", mode="before")
    @classmethod
    def _treat_empty_as_unset(cls, value: Any) -> Any:
        return None if value == "" else value

    @field_validator("styles", mode="before")
    @classmethod
    def _treat_null_as_empty(cls, value: Any) -> Any:
        return [] if value is None else value

    @model_validator(mode="after")
    def _require_pictures(self) -> Self:
        if self.source is None and (self.content is None or not self.styles):
            raise ValueError(self.incomplete)
        return self

    def pictures(self) -> list[Picture]:
        """Return all pictures in the order of JobInput: content, styles, masks, and so on."""
        pictures = [
            self.content,
            *self.styles,
            *self.masks,
            *self.style_masks,
            self.init_image,
        ]
        return [picture for picture in pictures if picture is not None]

    def complete_from(self, earlier: JobInput) -> Self:
        """Return the submission with an earlier job's pictures and parameters where none were sent.

        New styles come without the earlier masks and shares, which belong to the earlier styles.
        Raises BadSpec for an unknown preset.
        """
        spec = dict(earlier.spec)
        if self.styles:
            spec.pop("style_weights", None)
        parameters = apply_changes(spec, self.parameters)
        changes: dict[str, Any] = {"parameters": parameters}
        if self.content is None:
            changes["content"] = earlier.content
        if not self.styles:
            changes["styles"] = earlier.styles
        if not self.styles and not self.masks:
            changes["masks"] = earlier.masks
        if not self.styles and not self.style_masks:
            changes["style_masks"] = earlier.style_masks
        if self.init_image is None and parameters.get("init") == "picture":
            changes["init_image"] = earlier.init_image
        return self.model_copy(update=changes)

    @classmethod
    def for_input(cls, job_input: JobInput, parameters: dict[str, Any]) -> Self:
        """Return a submission of an earlier job's pictures with these parameters.

        Without the initial picture if the parameters do not begin with one.
        """
        begins_with_picture = parameters.get("init") == "picture"
        return cls(
            content=job_input.content,
            styles=list(job_input.styles),
            masks=list(job_input.masks),
            style_masks=list(job_input.style_masks),
            init_image=job_input.init_image if begins_with_picture else None,
            spec=parameters,
        )

    def request_content(self) -> dict[str, Any]:
        """Return what the client has sent, for the request hash: no defaults, pictures as digests.

        Raises StorageFull.
        """
        sources = [] if self.source is None else [self.source]
        return {
            "pictures": _digests([*self.pictures(), *sources]),
            "counts": [
                int(self.content is not None),
                len(self.styles),
                len(self.masks),
                len(self.style_masks),
                len(sources),
            ],
            "parameters": self.parameters,
            "options": self.options.model_dump(exclude_unset=True),
        }


class JobForm(JobSubmission):
    """A job as a form: pictures as files or digests, each parameter as a field, and options."""

    model_config = ConfigDict(json_schema_extra=_describe_job_form)

    incomplete = f"Send one file as content and 1 to {MAX_STYLES} as style, or a result as from."

    content: OptionalFile = None
    styles: list[File] = Field([], alias="style", max_length=MAX_STYLES)
    masks: list[File] = Field([], alias="mask", max_length=MAX_STYLES)
    style_masks: list[File] = Field([], alias="style_mask", max_length=MAX_STYLES)
    init_image: OptionalFile = None
    source: OptionalFile = Field(None, alias="from", description=_FROM_DESCRIPTION)
    parameters: SpecText = Field({}, alias="spec")


class BatchSubmission(_Submission):
    """A batch: a job for each pair of a content and a style, with common parameters and options."""

    contents: list[Digest] = Field(min_length=1, max_length=MAX_CONTENTS)
    styles: list[Digest] = Field(min_length=1, max_length=MAX_STYLES)

    def request_content(self) -> dict[str, Any]:
        """Return what the client has sent, for the request hash. Raises StorageFull."""
        return {
            "batch": [_digests(self.contents), _digests(self.styles)],
            "parameters": self.parameters,
            "options": self.options.model_dump(exclude_unset=True),
        }


class BatchForm(BatchSubmission):
    """A batch as a form: pictures as files or digests, each parameter as a field, and options."""

    model_config = ConfigDict(json_schema_extra=_add_parameter_fields)

    rules = BatchSubmission.rules | {
        "content": f"content: send 1 to {MAX_CONTENTS} pictures, each a file or a digest."
    }

    contents: list[File] = Field(alias="content", min_length=1, max_length=MAX_CONTENTS)
    styles: list[File] = Field(alias="style", min_length=1, max_length=MAX_STYLES)
    parameters: SpecText = Field({}, alias="spec")


def _digests(pictures: Iterable[Picture]) -> list[str]:
    return [picture if isinstance(picture, str) else picture.digest for picture in pictures]


def compute_request_hash(content: Mapping[str, Any]) -> str:
    """Return a hash that two requests share only if their contents are equal."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def describe_body(json_model: type[_Submission], form_model: type[_Submission]) -> dict[str, Any]:
    """Return the OpenAPI request body of a route that accepts JSON and a form."""
    # In a form, a list is a field that is sent several times.
    encoding = {name: {"explode": True} for name in sorted(form_model.list_field_names())}
    return {
        "required": True,
        "content": {
            "multipart/form-data": {"schema": _describe_model(form_model), "encoding": encoding},
            "application/json": {"schema": _describe_model(json_model)},
        },
    }


def _describe_model(model: type[_Submission]) -> dict[str, Any]:
    """Return the schema of the model without references, titles and empty defaults."""
    schema = model.model_json_schema()
    fields = _inline_fields(schema)
    schema.pop("$defs", None)
    schema.pop("title")
    for field in fields.values():
        field.pop("title", None)
    return schema | {"properties": fields}


def _inline_fields(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the properties of a schema without references and empty defaults."""
    definitions, fields = schema.get("$defs", {}), {}
    for name, field in schema["properties"].items():
        definition = definitions.get(field.get("$ref", "").rpartition("/")[2], {})
        fields[name] = definition | field
        fields[name].pop("$ref", None)
        if fields[name].get("default") in (None, [], {}):
            fields[name].pop("default", None)
    return fields
