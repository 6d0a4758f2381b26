"""The one place where the API is put together."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool

from api import health, images, jobs, problems
from api.reaper import Reaper
from api.settings import ApiSettings
from core import images as pictures
from core import settings
from core.blobs import Blobs
from core.queue import make_celery, ring
from core.settings import Settings
from core.store import JobStore

log = logging.getLogger(__name__)

WEB = Path(__file__).with_name("web")

_PAGE_POLICY = "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; frame-ancestors 'none'"


def create_app(shared: Settings | None = None, own: ApiSettings | None = None) -> FastAPI:
    """The application with its store, blobs, doorbell and reaper. Raises BadSettings."""
    shared, own = shared or settings.read(Settings), own or settings.read(ApiSettings)
    store, blobs, celery = JobStore(shared.redis_url), Blobs(shared.blobs_dir), make_celery(shared.redis_url)
    reaper = Reaper(store, blobs, celery)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if not await run_in_threadpool(pictures.warm_up):
            log.warning("pictures are decoded without a filter on system calls: this system has none that we know")
        reaper.start()
        yield
        reaper.stop()
        store.close()

    app = FastAPI(
        title="Impasto",
        version=version("impasto"),
        description="Paints one picture in the style of another. Submit, poll, fetch the result.",
        lifespan=lifespan,
    )
    app.state.store, app.state.blobs, app.state.settings = store, blobs, own
    app.state.ring = partial(ring, celery)
    problems.install(app)
    app.middleware("http")(_harden)
    for part in (jobs, images, health):
        app.include_router(part.router)
    app.mount("/web", StaticFiles(directory=WEB), name="web")
    app.add_api_route("/", lambda: FileResponse(WEB / "index.html"), include_in_schema=False)
    return app


async def _harden(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """What every answer says to a browser. /docs loads its scripts from elsewhere, so the policy is not for it."""
    response = problems.reworded(await call_next(request))
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    if not request.url.path.startswith(("/docs", "/redoc")):
        response.headers["Content-Security-Policy"] = _PAGE_POLICY
    return response
