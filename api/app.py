"""Builds the application from its parts."""

import logging
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from api import metrics
from api.assets.files import StaticFile
from api.background.reaper import Reaper
from api.fast_path import FastPath
from api.http import problems
from api.job_feed import JobFeed
from api.middleware import host_guard, security_headers
from api.middleware.access_log import AccessLog
from api.middleware.admission import Admission, SubmissionLoad
from api.middleware.auth import ApiKeyCache, Authentication
from api.middleware.head import HeadRequests
from api.middleware.host_guard import HostGuard
from api.middleware.read_admission import ReadAdmission, create_read_queue
from api.middleware.reverse_proxy import ReverseProxy
from api.middleware.security_headers import SecurityHeaders
from api.middleware.tracing import Tracing
from api.openapi import document
from api.rate_limit import RateLimiter
from api.routes import (
    batches,
    estimate,
    form,
    health,
    images,
    job_events,
    job_frames,
    job_status,
    jobs,
    operator,
    presets,
    system,
)
from api.routes.web import add_page
from api.settings import ApiSettings
from api.submissions.pictures import decoders
from core import errors, tracing
from core.auth.api_keys import ApiKeyStore
from core.celery_app import make_celery, notify_workers
from core.config import Settings, read_settings
from core.images import decoder
from core.jobs.store import JobStore
from core.storage.location import open_storage

log = logging.getLogger(__name__)

# Headers that a page of an allowed origin may send, beyond those that CORS always allows.
_CORS_REQUEST_HEADERS = [
    "Authorization",
    "Content-Type",
    "Idempotency-Key",
    "If-None-Match",
    "Last-Event-ID",
    "Prefer",
    "Traceparent",
    "X-Request-Id",
]
# Headers of a response that such a page may read.
_CORS_RESPONSE_HEADERS = [
    "ETag",
    "Idempotent-Replayed",
    "Location",
    "Preference-Applied",
    "Retry-After",
    "WWW-Authenticate",
    "X-Request-Id",
]

# How long a submission waits for the broker. After a timeout the reaper notifies the workers.
NOTIFY_TIMEOUT_SECONDS = 2.0
# uvicorn's variable FORWARDED_ALLOW_IPS, and its default.
TRUSTED_PROXIES = "127.0.0.1,::1"
COOLDOWN_SECONDS = 0.5  # see core.redis_client.CircuitBreaker
# Only for the OpenAPI document and the form at /docs; api/middleware/auth.py has read the header by
# then.
_BEARER = HTTPBearer(
    auto_error=False, scheme_name="key", description="An API key: `impasto keys create NAME`."
)


def create_app(shared: Settings | None = None, own: ApiSettings | None = None) -> FastAPI:
    """Create the application with store, blobs, notifications and reaper. Raises BadSettings."""
    shared, own = shared or read_settings(Settings), own or read_settings(ApiSettings)
    tracing.configure(shared.traces_url, "impasto-api")
    blobs, checkpoints, identity = open_storage(shared)
    store = JobStore(
        shared.redis_url,
        cooldown_seconds=COOLDOWN_SECONDS,
        identity_file=identity,
        accepts_unsafe=shared.store_unsafe == "accept",
        on_call=metrics.record_store_call,
        replicas=shared.store_replicas,
    )
    if own.result_links and not blobs.is_shared:
        raise errors.BadSettings("IMPASTO_API_RESULT_LINKS: set IMPASTO_BLOBS_URL, too.")
    celery = make_celery(shared.redis_url, timeout_seconds=NOTIFY_TIMEOUT_SECONDS)
    reaper = Reaper(
        store,
        blobs,
        checkpoints,
        celery,
        job_retention_seconds=own.job_retention_days * 86_400,
        storage_quota_bytes=own.storage_quota_gb * 1e9,
    )

    feed = JobFeed(shared.redis_url, own.max_streams_per_caller)
    keys = ApiKeyStore(shared.redis_url, cooldown_seconds=COOLDOWN_SECONDS)
    limits = own.submissions_per_minute, own.requests_per_minute, own.auth_failures_per_minute
    rate_limiter = RateLimiter(shared.redis_url, *limits, cooldown_seconds=COOLDOWN_SECONDS)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if not await run_in_threadpool(decoder.warm_up):
            log.warning(
                "images are decoded without a system call filter: this system has no supported one"
            )
        reaper.start()
        yield
        await feed.stop()
        reaper.stop()
        for client in (store, keys, rate_limiter):
            client.close()
        await run_in_threadpool(tracing.flush)

    app = FastAPI(
        title="Impasto",
        version=version("impasto"),
        description="Paints one picture in the style of another. Submit, poll, fetch the result.",
        lifespan=lifespan,
        # Otherwise FastAPI looks for a telemetry backend with every request.
        telemetry={"tracing": False, "metrics": False, "logs": False},
        # Generated clients name their functions by it.
        generate_unique_id_function=lambda route: route.name,
        docs_url=None,
        redoc_url=None,
    )
    app.state.store, app.state.job_feed, app.state.blobs = store, feed, blobs
    app.state.settings, app.state.data_dir = own, None if blobs.is_shared else shared.data_dir
    app.state.keys = keys
    app.state.webhooks = shared.webhooks
    app.state.job_limits = shared.job_limits
    app.state.form = StaticFile.of("form.json", form.encode_form(form.describe_form(own, shared)))
    app.state.notify = partial(notify_workers, celery)
    problems.install(app)
    load = SubmissionLoad(decoders, own.max_wait_seconds)
    authenticate = partial(
        Authentication,
        keys=ApiKeyCache(keys),
        rate_limiter=rate_limiter,
        find_refusal=load.find_refusal,
        is_required=own.is_key_required,
    )
    _add_middleware(app, own, authenticate, load)
    security_headers.add_docs(app)
    bearer = [Depends(_BEARER)] if own.is_key_required else []
    for part in (  # Starlette tries routes in this order: the busiest comes first
        job_status,
        jobs,
        job_frames,
        job_events,
        batches,
        images,
        form,
        presets,
        estimate,
        system,
    ):
        app.include_router(part.router, dependencies=bearer)
    app.include_router(operator.router, dependencies=[Depends(_BEARER)])
    app.include_router(health.router)
    add_page(app, app.state.form.content)
    document.describe(app)
    return app


def _add_middleware(
    app: FastAPI,
    own: ApiSettings,
    authenticate: Callable[[ASGIApp], Authentication],
    load: SubmissionLoad,
) -> None:
    """Add all middleware, from the inside out."""
    app.add_middleware(HeadRequests)
    app.add_middleware(Admission, load=load)
    reads = create_read_queue(own.max_wait_seconds)
    app.add_middleware(ReadAdmission, queue=reads)
    app.add_middleware(authenticate)
    names = host_guard.resolve_host_names(own.host, own.allowed_hosts)
    app.add_middleware(HostGuard, names=names, origins=own.cors_origins)
    if own.cors_origins:
        methods = ["GET", "HEAD", "POST", "PATCH", "DELETE"]
        app.add_middleware(
            CORSMiddleware,
            allow_origins=own.cors_origins,
            allow_methods=methods,
            allow_headers=_CORS_REQUEST_HEADERS,
            expose_headers=_CORS_RESPONSE_HEADERS,
        )
    app.add_middleware(problems.FrameworkErrors)
    app.add_middleware(AccessLog)
    if tracing.is_enabled():
        app.add_middleware(Tracing)
    app.add_middleware(SecurityHeaders)
    app.add_middleware(
        FastPath,
        guard=HostGuard(app, names, own.cors_origins),
        authentication=authenticate(app),
        reads=reads,
        # As the CORS middleware adds it to the response to a request without an origin.
        headers=[(b"vary", b"Origin")] if own.cors_origins else [],
    )
    app.add_middleware(
        ReverseProxy,
        default_root_path=own.root_path,
        trusted_proxies=os.environ.get("FORWARDED_ALLOW_IPS", TRUSTED_PROXIES),
    )
