"""Python client of the REST API (docs/api.md). Imports no store, no Celery and no torch."""

from core.jobs.models import Batch, Frame, Job, Status
from core.jobs.service_info import Estimate, ModelInfo, SystemInfo, WorkerState
from core.style.presets import Preset
from impasto import errors
from impasto.client import Client, Picture

__all__ = [
    "Batch",
    "Client",
    "Estimate",
    "Frame",
    "Job",
    "ModelInfo",
    "Picture",
    "Preset",
    "Status",
    "SystemInfo",
    "WorkerState",
    "errors",
]
