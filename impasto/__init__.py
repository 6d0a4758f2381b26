"""Impasto from a Python program: a client of the REST API. Knows the contract (docs/api.md), no store, no tensors."""

from core import errors
from core.jobs import Batch, Job, Status
from core.presets import Preset
from impasto.client import Client, Picture

__all__ = ["Batch", "Client", "Job", "Picture", "Preset", "Status", "errors"]
