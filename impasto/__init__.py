"""Impasto from a Python program: a client of the REST API. Knows the contract (docs/api.md), no store, no tensors."""

from core import errors
from core.jobs.models import Batch, Frame, Job, Status
from core.jobs.service_info import Estimate, ModelInfo, SystemInfo
from core.style.presets import Preset
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
    "errors",
]
