"""GET /v1/presets: the named sets of parameters in core/style/presets.py."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from api.dependencies import JobLimits
from core.style.presets import PRESETS

router = APIRouter(prefix="/v1/presets", tags=["presets"])


class PresetResource(BaseModel):
    """A value for the field `preset`, its description, and the parameters that it sets."""

    name: str
    description: str
    spec: dict[str, Any]


class PresetList(BaseModel):
    """All presets."""

    presets: list[PresetResource]


def describe_presets(limits: JobLimits) -> list[PresetResource]:
    """Return all presets, with values that the operator's limits allow."""
    return [
        PresetResource(
            name=name, description=preset.description, spec=limits.clip_values(preset.parameters)
        )
        for name, preset in PRESETS.items()
    ]


@router.get("", summary="List the presets")
async def list_presets(limits: JobLimits) -> PresetList:
    """Send a preset's name as `preset` in a submission. Your own parameters override the preset."""
    return PresetList(presets=describe_presets(limits))
