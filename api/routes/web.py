"""The web page: one HTML file at two paths, and the operator's page, with all their files.

Its addresses are relative, so that it works under any path of a proxy.
"""

import re
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import RedirectResponse, Response
from fastapi.staticfiles import StaticFiles

from api.assets.files import PageFiles, StaticFile
from api.http.root_path import add_root_path
from api.http.static_response import IMMUTABLE, REVALIDATE, respond

WEB = Path(__file__).parents[1] / "web"
# The page reads the job's id from its own URL.
DOCUMENTS = {"/": "index.html", "/j/{job_id}": "index.html", "/operator": "operator.html"}

_LANGUAGE = re.compile(r"\b(zh|en)\b", re.IGNORECASE)

# A service worker takes its policy from its own file. It fetches what the page may fetch.
_WORKER_POLICY = "default-src 'none'; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'"

# What a process answers when it is asked for code of another version, as during an upgrade behind
# a proxy. The module asks again, because a process of that version may answer, and in the end
# loads the page again, because there may be none. Code of two versions never meets.
_OTHER_VERSION = StaticFile.of(
    "other-version.js",
    b"""const { href, search } = new URL(import.meta.url), tries = Number(search.slice(1));
await new Promise((resolve) => setTimeout(resolve, 150 * 2 ** tries));
if (tries > 3) await new Promise(() => location.reload());
const module = await import(href.replace(/[?].*|$/, `?${tries + 1}`));
export default module.default;
""",
)


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
        is_current = version == files.version
        if not is_current and path.endswith(".js"):
            file = _OTHER_VERSION
        if file is None:
            raise HTTPException(404)
        if is_current:
            return respond(request, file, IMMUTABLE)
        # A page of another version gets samples and style of this one. They must never get into a
        # cache under this address; `Vary: *` keeps them out of the service worker's.
        response = respond(request, file, "no-store")
        response.headers["Vary"] = "*"
        return response

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
