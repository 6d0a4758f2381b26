"""What routes depend on, by name: the store, the blobs, the doorbell, the settings."""

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request

from api.settings import ApiSettings
from core import blobs, store, webhooks
from core.jobs import LOCAL


def _store(request: Request) -> store.JobStore:
    held: store.JobStore = request.app.state.store
    return held


def _blobs(request: Request) -> blobs.Blobs:
    held: blobs.Blobs = request.app.state.blobs
    return held


def _ring(request: Request) -> Callable[[], bool]:
    held: Callable[[], bool] = request.app.state.ring
    return held


def _owner() -> str:
    return LOCAL


def _webhooks(request: Request) -> webhooks.Policy:
    held: webhooks.Policy = request.app.state.webhooks
    return held


def _settings(request: Request) -> ApiSettings:
    held: ApiSettings = request.app.state.settings
    return held


Store = Annotated[store.JobStore, Depends(_store)]
Blobs = Annotated[blobs.Blobs, Depends(_blobs)]
Ring = Annotated[Callable[[], bool], Depends(_ring)]
Owner = Annotated[str, Depends(_owner)]
Webhooks = Annotated[webhooks.Policy, Depends(_webhooks)]
Config = Annotated[ApiSettings, Depends(_settings)]
