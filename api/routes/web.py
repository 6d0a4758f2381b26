"""The web page: one HTML file at two paths, with its modules, style sheets and pictures.

Its addresses are relative, so that it works under any path of a proxy.
"""

import hashlib
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from fastapi.staticfiles import StaticFiles

from api.http import etag

WEB = Path(__file__).parents[1] / "web"
PATHS = ("/", "/j/{job_id}")  # the page reads the job's id from its own URL

# The browser must revalidate each file: modules of two versions do not work together.
_REVALIDATE = {"Cache-Control": "no-cache"}


class _StaticFiles(StaticFiles):
    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(_REVALIDATE)
        return response


def _get_page(request: Request) -> Response:
    html = (WEB / "index.html").read_bytes()
    if request.path_params:  # a job's page is one folder deeper
        html = html.replace(b'="./', b'="../')
    tag = f'"{hashlib.sha256(html).hexdigest()[:32]}"'
    if etag.matches(etag.if_none_match(request), tag):
        return Response(status_code=304, headers={**_REVALIDATE, "ETag": tag})
    return HTMLResponse(html, headers={**_REVALIDATE, "ETag": tag})


def add_page(app: FastAPI) -> None:
    """Add the page and its files to the app."""
    app.mount("/web", _StaticFiles(directory=WEB), name="web")
    for path in PATHS:
        app.add_api_route(path, _get_page, include_in_schema=False)
