"""GET /v1/form: all that a form for a job needs, in one small answer.

The parameters and options are those of the OpenAPI document, which is forty times as large.
"""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel

from api.assets.files import StaticFile
from api.http.static_response import respond
from api.routes.presets import PresetResource, describe_presets
from api.routes.system import get_limits
from api.schemas.submission import limit_parameters, options_schema, parameters_schema
from api.settings import ApiSettings
from core.config import Settings
from core.jobs.service_info import ServiceLimits
from core.style.presets import FIELD

router = APIRouter(prefix="/v1/form", tags=["system"])


class Form(BaseModel):
    """Each parameter and each option by its name: a JSON schema with a title for people.

    `default_gatys` is the default with objective=gatys, `updatable` tells that a running job may
    change it. `webhook` is missing where the service sends none. The limits are those of GET
    /v1/system.
    """

    parameters: dict[str, dict[str, Any]]
    options: dict[str, dict[str, Any]]
    presets: list[PresetResource]
    limits: ServiceLimits


def describe_form(config: ApiSettings, shared: Settings) -> Form:
    """Return the form of a service with these settings."""
    job_limits = shared.job_limits
    parameters = limit_parameters(parameters_schema()["properties"], job_limits)
    parameters.pop(FIELD)  # `presets` says more
    options = options_schema()
    if not shared.webhooks.enabled:
        options.pop("webhook")
    return Form(
        parameters=parameters,
        options=options,
        presets=describe_presets(job_limits),
        limits=get_limits(config, job_limits),
    )


def encode_form(form: Form) -> bytes:
    """Return the body of the response, the same for all callers."""
    return form.model_dump_json().encode()


@router.get(
    "",
    summary="Parameters, presets and limits",
    response_model=Form,
    responses={304: {"description": "The client has this form."}},
)
async def get_form(request: Request) -> Response:
    """Return what a form for a job needs. It changes only when the service restarts."""
    form: StaticFile = request.app.state.form
    return respond(request, form, "private, no-cache")
