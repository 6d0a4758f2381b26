"""Python client of the REST API (docs/api.md). Needs httpx2 and nothing of the service.

The distribution impasto-client contains this package alone (integrations/client/).
"""

from impasto import errors
from impasto.client import Client, Picture
from impasto.models import (
    Batch,
    Estimate,
    Form,
    Frame,
    Job,
    ModelInfo,
    Preset,
    Priority,
    Status,
    SystemInfo,
    WorkerState,
)

__all__ = [
    "Batch",
    "Client",
    "Estimate",
    "Form",
    "Frame",
    "Job",
    "ModelInfo",
    "Picture",
    "Preset",
    "Priority",
    "Status",
    "SystemInfo",
    "WorkerState",
    "errors",
]
