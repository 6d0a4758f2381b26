"""Reads the body of a submission, JSON or form, into a model of api/schemas/submission.py."""

import difflib
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, NoReturn, TypeVar

from fastapi import Request
from pydantic import ValidationError
from starlette.datastructures import FormData

from api.schemas.submission import (
    MAX_CONTENTS,
    BatchForm,
    BatchSubmission,
    JobForm,
    JobSubmission,
    Picture,
)
from api.submissions import multipart
from api.submissions.multipart import FormQuota
from core import errors
from core.images import validation
from core.jobs.models import SubmissionOptions
from core.storage.blobs import Blobs
from core.style import presets
from core.style.spec import MAX_STYLES, PARAMETERS

# A job has a content, styles, two masks for each, an init_image and an earlier result.
# A batch has contents and styles.
MAX_PICTURES = max(3 + 3 * MAX_STYLES, MAX_CONTENTS + MAX_STYLES)
BODY_BYTES = MAX_PICTURES * (validation.MAX_BYTES + 10_000) + 1_000_000
_JSON_BYTES = 100_000

PICTURE_FIELDS = ("content", "style", "mask", "style_mask", "init_image", "from")
OPTION_FIELDS = tuple(SubmissionOptions.model_fields)
TEXT_FIELDS = (*OPTION_FIELDS, presets.FIELD, *PARAMETERS)

# Twice the number of parameters, because pictures may be text fields with digests, too.
_FORM_LIMITS = multipart.FormLimits(
    files=MAX_PICTURES,
    fields=2 * len(PARAMETERS) + len(OPTION_FIELDS) + 1,
    text_bytes=_JSON_BYTES,
)

Model = TypeVar("Model", JobSubmission, BatchSubmission)


def parse_submission(
    request: Request, blobs: Blobs, quota: FormQuota
) -> AbstractAsyncContextManager[JobSubmission]:
    """Parse the body of POST /v1/jobs.

    The uploaded files are open inside the context. On exit, they are deleted unless committed.
    Raises BadRequest, BadSpec, UploadTooLarge, QuotaExceeded, StorageFull.
    """
    return _parse_body(request, blobs, quota, JobSubmission, JobForm)


def parse_batch(
    request: Request, blobs: Blobs, quota: FormQuota
) -> AbstractAsyncContextManager[BatchSubmission]:
    """Parse the body of POST /v1/batches, as `parse_submission` does for jobs."""
    return _parse_body(request, blobs, quota, BatchSubmission, BatchForm)


@asynccontextmanager
async def _parse_body(
    request: Request,
    blobs: Blobs,
    quota: FormQuota,
    json_model: type[Model],
    form_model: type[Model],
) -> AsyncIterator[Model]:
    kind = multipart.get_media_type(request)
    if kind == "application/json":
        yield _validate(json_model, _load_object(await _read_json(request)))
    elif kind == multipart.FORM:
        async with multipart.parse_form(request, blobs, _FORM_LIMITS, quota) as form:
            yield _validate(form_model, _collect_fields(form, form_model))
    else:
        raise errors.BadRequest(
            "Send multipart/form-data with the files content and style, or application/json."
        )


async def _read_json(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _JSON_BYTES:
            raise errors.UploadTooLarge(f"The JSON may have at most {_JSON_BYTES} bytes.")
    return body


def _load_object(text: bytes) -> dict[str, Any]:
    """Raises BadRequest, and BadSpec for NaN and infinity, which Python's parser accepts."""

    def refuse(_: str) -> NoReturn:
        raise errors.BadSpec("Numbers must be finite.")

    try:
        data = json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise errors.BadRequest("The JSON is not valid.") from error
    if not isinstance(data, dict):
        raise errors.BadRequest("The JSON must be an object.")
    return data


def _collect_fields(form: FormData, model: type[Model]) -> dict[str, Any]:
    """Return the form as input of the model: pictures by field, options, and one `spec`.

    A single parameter overrides the same one in the field `spec`. Raises BadRequest, BadSpec.
    """
    pictures: defaultdict[str, list[Picture]] = defaultdict(list)
    spec: dict[str, Any] | None = None
    texts: dict[str, str] = {}
    for name, value in form.multi_items():
        if not isinstance(value, str):
            if name not in PICTURE_FIELDS:
                raise errors.BadRequest(
                    f"Send files only as {', '.join(PICTURE_FIELDS)}."
                    f"{_suggest_field(name, PICTURE_FIELDS)}"
                )
            if not multipart.is_unset(value):
                pictures[name].append(multipart.get_pending_blob(value))
        elif name in PICTURE_FIELDS:
            if value.strip():
                pictures[name].append(value)
        elif name in texts or (name == "spec" and spec is not None):
            raise errors.BadRequest(f"{name} was sent twice; send it once.")
        elif name == "spec":
            spec = _load_object(value.encode("utf-8", "replace"))
        elif name not in TEXT_FIELDS:
            raise errors.BadSpec(_describe_unknown(name, [*PICTURE_FIELDS, "spec", *TEXT_FIELDS]))
        elif value.strip():  # the form of a page sends empty fields, too
            texts[name] = value
    options = {name: texts.pop(name) for name in OPTION_FIELDS if name in texts}
    lists = model.list_field_names()
    # The model refuses a list for a field that holds one picture.
    fields = {
        name: sent[0] if len(sent) == 1 and name not in lists else sent
        for name, sent in pictures.items()
    }
    return {**fields, **options, "spec": {**(spec or {}), **texts}}


def _validate(model: type[Model], fields: dict[str, Any]) -> Model:
    """Raises BadSpec for an option and BadRequest for the rest, without an echo of the input."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
    # A key that is no valid Unicode has no location.
    name = str(first["loc"][0]) if first["loc"] else ""
    if first["type"] == "value_error":  # our own validator, with a complete sentence
        sentence = str(first["ctx"]["error"])
        raise errors.BadRequest(f"{name}: {sentence}" if name else sentence)
    if name in OPTION_FIELDS:
        raise errors.BadSpec(model.rules[name], parameter=name)
    if name in model.rules and first["type"] != "extra_forbidden":
        raise errors.BadRequest(model.rules[name])
    raise errors.BadRequest(_describe_unknown(name, model.field_names()))


def _describe_unknown(name: str, fields: Sequence[str]) -> str:
    suggestion = _suggest_field(name, fields)
    return f"There is no such field; the fields are {', '.join(fields)}.{suggestion}"


def _suggest_field(name: str, fields: Sequence[str]) -> str:
    """Return a sentence with the field whose name is the most like this one, or nothing."""
    # A client chooses the name, and comparing takes long for a long one.
    similar = difflib.get_close_matches(name[:40], fields, n=1, cutoff=0.7)
    return f" Did you mean {similar[0]}?" if similar else ""
