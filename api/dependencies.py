"""What routes depend on, by name: the caller, the store, the blobs, the doorbell, the settings.

Each is a coroutine, because FastAPI would send a plain function to a thread, once for each request.
"""

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request

from api.job_feed import JobFeed
from api.middleware import auth
from api.middleware.auth import Caller
from api.settings import ApiSettings
from core.jobs import store
from core.storage import blobs
from core.webhooks import policy


async def _store(request: Request) -> store.JobStore:
    held: store.JobStore = request.app.state.store
    return held


async def _feed(request: Request) -> JobFeed:
    held: JobFeed = request.app.state.job_feed
    return held


async def _blobs(request: Request) -> blobs.Blobs:
    held: blobs.Blobs = request.app.state.blobs
    return held


async def _ring(request: Request) -> Callable[[], bool]:
    held: Callable[[], bool] = request.app.state.notify
    return held


async def _caller(request: Request) -> Caller:
    """As api/middleware/auth.py found out. Where it was not asked, this fails: nobody gets in by an oversight."""
    found: Caller = request.state.caller
    return found


CurrentCaller = Annotated[Caller, Depends(_caller)]


async def _owner(caller: CurrentCaller) -> str:
    return caller.owner


async def _admits(request: Request) -> auth.Admits:
    held: auth.Admits = request.state.admits
    return held


async def _webhooks(request: Request) -> policy.WebhookPolicy:
    held: policy.WebhookPolicy = request.app.state.webhooks
    return held


async def _settings(request: Request) -> ApiSettings:
    held: ApiSettings = request.app.state.settings
    return held


Store = Annotated[store.JobStore, Depends(_store)]
Feed = Annotated[JobFeed, Depends(_feed)]
Blobs = Annotated[blobs.Blobs, Depends(_blobs)]
Notify = Annotated[Callable[[], bool], Depends(_ring)]
Owner = Annotated[str, Depends(_owner)]
IsAdmitted = Annotated[auth.Admits, Depends(_admits)]
Webhooks = Annotated[policy.WebhookPolicy, Depends(_webhooks)]
Configuration = Annotated[ApiSettings, Depends(_settings)]
