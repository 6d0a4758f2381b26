"""The dependencies of the routes: the caller, the store, the blobs, the notification, the settings.

Each is a coroutine, because FastAPI runs a plain function in a thread, once per request.
"""

from collections.abc import Callable
from typing import Annotated

from fastapi import Depends, Request

from api.fair_queue import Waiter
from api.job_feed import JobFeed
from api.middleware import auth
from api.middleware.auth import Caller
from api.settings import ApiSettings
from core.jobs import store
from core.storage import blobs
from core.style import limits
from core.webhooks import policy


async def _get_store(request: Request) -> store.JobStore:
    result: store.JobStore = request.app.state.store
    return result


async def _get_feed(request: Request) -> JobFeed:
    result: JobFeed = request.app.state.job_feed
    return result


async def _get_blobs(request: Request) -> blobs.Blobs:
    result: blobs.Blobs = request.app.state.blobs
    return result


async def _get_notify(request: Request) -> Callable[[], bool]:
    result: Callable[[], bool] = request.app.state.notify
    return result


async def _caller(request: Request) -> Caller:
    """The caller that api/middleware/auth.py has identified.

    Where that middleware did not run, the attribute is missing and this fails. A route that is left
    out by mistake is therefore closed, not open.
    """
    result: Caller = request.state.caller
    return result


CurrentCaller = Annotated[Caller, Depends(_caller)]


async def _get_waiter(request: Request, caller: CurrentCaller) -> Waiter:
    return Waiter(caller.queue_name, request.receive)


CurrentWaiter = Annotated[Waiter, Depends(_get_waiter)]


async def _get_owner(caller: CurrentCaller) -> str:
    return caller.owner


async def _get_access_check(request: Request) -> auth.AccessCheck:
    result: auth.AccessCheck = request.state.has_access
    return result


async def _get_webhooks(request: Request) -> policy.WebhookPolicy:
    result: policy.WebhookPolicy = request.app.state.webhooks
    return result


async def _get_job_limits(request: Request) -> limits.JobLimits:
    result: limits.JobLimits = request.app.state.job_limits
    return result


async def _get_settings(request: Request) -> ApiSettings:
    result: ApiSettings = request.app.state.settings
    return result


Store = Annotated[store.JobStore, Depends(_get_store)]
Feed = Annotated[JobFeed, Depends(_get_feed)]
Blobs = Annotated[blobs.Blobs, Depends(_get_blobs)]
Notify = Annotated[Callable[[], bool], Depends(_get_notify)]
Owner = Annotated[str, Depends(_get_owner)]
HasAccess = Annotated[auth.AccessCheck, Depends(_get_access_check)]
Webhooks = Annotated[policy.WebhookPolicy, Depends(_get_webhooks)]
JobLimits = Annotated[limits.JobLimits, Depends(_get_job_limits)]
Configuration = Annotated[ApiSettings, Depends(_get_settings)]
