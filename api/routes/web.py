"""The web page: one HTML file at two paths, and the operator's page, with all their files.

Its addresses are relative, so that it works under any path of a proxy.
"""

import re
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import RedirectResponse, Response
from fastapi.staticfiles import StaticFiles

from api.assets.files import PageFiles
from api.http.root_path import add_root_path
from api.http.static_response import IMMUTABLE, REVALIDATE, respond

WEB = Path(__file__).parents[1] / "web"
# The page reads the job's id from its own URL.
DOCUMENTS = {"/": "index.html", "/j/{job_id}": "index.html", "/operator": "operator.html"}

_LANGUAGE = re.compile(r"\b(zh|en)\b", re.IGNORECASE)

# A service worker takes its policy from its own file. It fetches what the page may fetch.
_WORKER_POLICY = "default-src 'none'; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'"


class _SourceFiles(StaticFiles):
    """The files as they are in the folder, at addresses that do not change."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = REVALIDATE
        return response


def add_page(app: FastAPI, form: bytes = b"") -> None:
    """Add the page and its files to the app. form: see PageFiles."""
    files = app.state.page_files = PageFiles(WEB, form)
    documents = {
        path: files.document(name, is_nested=path.count("/") > 1)
        for path, name in DOCUMENTS.items()
    }

    # Coroutines: a plain function would run in a thread, for nothing.
    async def get_page(request: Request) -> Response:
        path = request.scope["route"].path
        response = respond(request, documents[path], REVALIDATE)
        if DOCUMENTS[path] == "index.html":
            # The dictionary comes together with the code that will ask for it: text.js.
            found = _LANGUAGE.search(request.headers.get("accept-language", ""))
            name = "text-zh.js" if found and found[1].lower() == "zh" else "text-en.js"
            folder = "../" * (path.count("/") - 1) + files.folder
            response.headers["Link"] = f"<{folder}/{name}>; rel=modulepreload"
        return response

    async def get_file(request: Request, version: str, path: str) -> Response:
        file = files.get(path)
        if file is None:
            raise HTTPException(404)
        if version == files.version:
            return respond(request, file, IMMUTABLE)
        # Another version's must never get into a cache under this address, and code of two
        # versions must never meet. But a page that was open before an upgrade needs its samples.
        if not path.startswith("gallery/"):
            raise HTTPException(404)
        target = add_root_path(f"/{files.folder}/{path}")
        return RedirectResponse(target, 307, {"Cache-Control": "no-store"})

    worker = files.service_worker(DOCUMENTS["/"])

    async def get_worker(request: Request) -> Response:
        response = respond(request, worker, REVALIDATE)
        response.headers["Content-Security-Policy"] = _WORKER_POLICY
        return response

    favicon = files.get("icons/favicon.ico")
    assert favicon is not None

    async def get_favicon(request: Request) -> Response:
        return respond(request, favicon, REVALIDATE)

    # Where no service worker has taken the shared picture, the page opens without it.
    async def open_shared() -> Response:
        return RedirectResponse(add_root_path("/"), 303)

    app.add_api_route("/sw.js", get_worker, include_in_schema=False)
    app.add_api_route("/favicon.ico", get_favicon, include_in_schema=False)
    app.add_api_route("/share", open_shared, methods=["GET", "POST"], include_in_schema=False)
    for path in DOCUMENTS:
        app.add_api_route(path, get_page, include_in_schema=False)
    app.add_api_route("/web-{version}/{path:path}", get_file, include_in_schema=False)
    app.mount("/web", _SourceFiles(directory=WEB), name="web")
