"""The page: one HTML file at two addresses, and its modules, styles and pictures. Knows nothing of what they do."""

import hashlib
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, Response
from fastapi.staticfiles import StaticFiles

from api.http import etag

WEB = Path(__file__).parents[1] / "web"
ADDRESSES = ("/", "/j/{job_id}")  # the page finds in its own address which job to show

# A browser asks each time whether there is a newer one: modules of two versions do not fit together.
_FRESH = {"Cache-Control": "no-cache"}


class _Files(StaticFiles):
    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        answer = super().file_response(*args, **kwargs)
        answer.headers.update(_FRESH)
        return answer


def _page(request: Request) -> Response:
    html = (WEB / "index.html").read_bytes()
    tag = f'"{hashlib.sha256(html).hexdigest()[:32]}"'
    if etag.matches(etag.if_none_match(request), tag):
        return Response(status_code=304, headers={**_FRESH, "ETag": tag})
    return HTMLResponse(html, headers={**_FRESH, "ETag": tag})


def add_page(app: FastAPI) -> None:
    """Serve it."""
    app.mount("/web", _Files(directory=WEB), name="web")
    for address in ADDRESSES:
        app.add_api_route(address, _page, include_in_schema=False)
