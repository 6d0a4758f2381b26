"""GET /v1/presets: the names of parameters that go together (core/style/presets.py), for a page or program to offer."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel

from core.style.presets import PRESETS

router = APIRouter(prefix="/v1/presets", tags=["presets"])


class PresetResource(BaseModel):
    """A name for the field `preset`, one sentence, and the parameters that it sets."""

    name: str
    description: str
    spec: dict[str, Any]


class PresetList(BaseModel):
    """All of them."""

    presets: list[PresetResource]


@router.get("", summary="Parameters that go together")
async def listing() -> PresetList:
    """Send a name as `preset`, beside parameters of your own, which win."""
    told = (
        PresetResource(name=name, description=preset.description, spec=dict(preset.parameters))
        for name, preset in PRESETS.items()
    )
    return PresetList(presets=list(told))
