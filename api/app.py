"""The one place where the API is put together."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware

from api.background.reaper import Reaper
from api.http import problems
from api.job_feed import JobFeed
from api.middleware import host_guard, security_headers
from api.middleware.access_log import AccessLog
from api.middleware.auth import ApiKeyCache, Authentication
from api.middleware.head import HeadRequests
from api.middleware.host_guard import HostGuard
from api.middleware.security_headers import SecurityHeaders
from api.openapi import document
from api.rate_limit import RateLimiter
from api.routes import (
    batches,
    estimate,
    health,
    images,
    job_events,
    job_frames,
    job_status,
    jobs,
    presets,
    system,
)
from api.routes.web import add_page
from api.settings import ApiSettings
from core.auth.api_keys import ApiKeyStore
from core.celery_app import make_celery, notify_workers
from core.config import Settings, read_settings
from core.images import decoder
from core.jobs.store import JobStore
from core.storage.blobs import Blobs
from core.storage.checkpoints import Checkpoints

log = logging.getLogger(__name__)

# What a page of an allowed origin may send, and read of an answer, beyond what CORS allows by itself.
_SENT = [
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-None-Match",
    "Last-Event-ID",
    "Prefer",
]
_SENT += ["X-Request-Id"]
_READ = [
    "ETag",
    "Idempotent-Replayed",
    "Location",
    "Preference-Applied",
    "Retry-After",
    "WWW-Authenticate",
]
_READ += ["X-Request-Id"]

RING_SECONDS = (
    2.0  # that a submission waits for a doorbell that says nothing; the reaper rings again
)
REST_SECONDS = 0.5  # that a store that says nothing is left alone
# For the OpenAPI document, and the form at /docs; api/middleware/auth.py has looked at the header by then.
_BEARER = HTTPBearer(
    auto_error=False, scheme_name="key", description="An API key: `impasto keys create NAME`."
)


def create_app(shared: Settings | None = None, own: ApiSettings | None = None) -> FastAPI:
    """The application with its store, blobs, doorbell and reaper. Raises BadSettings."""
    shared, own = shared or read_settings(Settings), own or read_settings(ApiSettings)
    store, blobs, celery = (
        JobStore(shared.redis_url, cooldown_seconds=REST_SECONDS),
        Blobs(shared.blobs_dir),
        make_celery(shared.redis_url, timeout_seconds=RING_SECONDS),
    )
    reaper = Reaper(
        store,
        blobs,
        Checkpoints(shared.checkpoints_dir),
        celery,
        record_seconds=own.job_retention_days * 86_400,
        disk_bytes=own.storage_quota_gb * 1e9,
    )

    feed = JobFeed(shared.redis_url, own.max_streams_per_caller)
    keys = ApiKeyStore(shared.redis_url, cooldown_seconds=REST_SECONDS)
    limits = own.submissions_per_minute, own.requests_per_minute, own.auth_failures_per_minute
    rates = RateLimiter(shared.redis_url, *limits, cooldown_seconds=REST_SECONDS)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if not await run_in_threadpool(decoder.warm_up):
            log.warning(
                "pictures are decoded without a filter on system calls: this system has none that we know"
            )
        reaper.start()
        yield
        await feed.stop()
        reaper.stop()
        for opened in (store, keys, rates):
            opened.close()

    app = FastAPI(
        title="Impasto",
        version=version("impasto"),
        description="Paints one picture in the style of another. Submit, poll, fetch the result.",
        lifespan=lifespan,
        telemetry={"tracing": False, "metrics": False, "logs": False},  # it asks with every request
        docs_url=None,
        redoc_url=None,
    )
    app.state.store, app.state.job_feed, app.state.blobs, app.state.settings = (
        store,
        feed,
        blobs,
        own,
    )
    app.state.webhooks = shared.webhooks
    app.state.notify = partial(notify_workers, celery)
    problems.install(app)
    app.add_middleware(HeadRequests)
    app.add_middleware(
        Authentication, ring=ApiKeyCache(keys) if own.keys_required else None, rates=rates
    )
    _surround(app, own)
    security_headers.add_docs(app)
    bearer = [Depends(_BEARER)] if own.keys_required else []
    for part in (
        job_status,
        jobs,
        job_frames,
        job_events,
        batches,
        images,
        presets,
        estimate,
        system,
    ):  # the first is found soonest
        app.include_router(part.router, dependencies=bearer)
    app.include_router(health.router)
    add_page(app)
    document.describe(app)
    return app


def _surround(app: FastAPI, own: ApiSettings) -> None:
    """The layers around the routes, from the inside out."""
    app.add_middleware(
        HostGuard, names=host_guard.names_for(own.host, own.allowed_hosts), origins=own.cors_origins
    )
    if own.cors_origins:
        methods = ["GET", "HEAD", "POST", "PATCH", "DELETE"]
        app.add_middleware(
            CORSMiddleware,
            allow_origins=own.cors_origins,
            allow_methods=methods,
            allow_headers=_SENT,
            expose_headers=_READ,
        )
    app.add_middleware(problems.FrameworkErrors)
    app.add_middleware(AccessLog)
    app.add_middleware(SecurityHeaders)
