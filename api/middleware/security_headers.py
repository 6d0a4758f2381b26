"""Adds the headers that tell browsers to run nothing, embed nothing and connect nowhere else.

This module knows paths, not contents.
"""

import base64
import hashlib
import re
from pathlib import Path

import fastapi_offline
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.root_path import service_path

DOCS_FOLDER = "/docs/ui"  # scripts and styles of the page /docs

_DENY = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

# For the page. blob: is an image that was chosen and is not uploaded yet. Its script sends its
# form, so form-action is not needed.
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob:; connect-src 'self'; "
    "font-src 'self'; manifest-src 'self'; worker-src 'self'; "
    # The one policy knows one address: that of the service worker.
    f"require-trusted-types-for 'script'; trusted-types service-worker; {_DENY}"
).encode()
# For all else: JSON and images. A browser may take a crafted image for a document; then sandbox
# disables it.
_DATA_POLICY = f"default-src 'none'; sandbox; {_DENY}".encode()

_COMMON = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
# In ASGI's form, so that each response needs only one pass over its headers.
_CSP = b"content-security-policy"
_COMMON_RAW = [(name.lower().encode(), value.encode()) for name, value in _COMMON.items()]
_COMMON_NAMES = frozenset(name for name, _ in _COMMON_RAW)
# All headers of a response that is not a page, for api/fast_path.py.
DATA_HEADERS = [(_CSP, _DATA_POLICY), *_COMMON_RAW]


class SecurityHeaders:
    """Adds the headers to every response; a response may set its own Content-Security-Policy."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Computed now, because a route may change the scope.
        default_policy = _PAGE_POLICY if _is_page(service_path(scope)) else _DATA_POLICY

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [pair for pair in message["headers"] if pair[0] not in _COMMON_NAMES]
                if all(name != _CSP for name, _ in headers):
                    headers.append((_CSP, default_policy))
                message["headers"] = headers + _COMMON_RAW
            await send(message)

        await self._app(scope, receive, answer)


def _is_page(path: str) -> bool:
    return path in ("/", "/operator") or path.startswith(("/web/", "/web-", "/j/"))


def add_docs(app: FastAPI) -> None:
    """Add /docs: Swagger UI, served from here without another host.

    It sets styles from its script, so it has a policy of its own. The hashes allow its inline
    scripts.
    """
    app.mount(
        DOCS_FOLDER,
        StaticFiles(directory=Path(fastapi_offline.__file__).with_name("static")),
        name="docs",
    )
    folder = DOCS_FOLDER.removeprefix("/")  # relative addresses: a proxy may add a prefix
    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title="Impasto: the API",
        swagger_js_url=f"{folder}/swagger-ui-bundle.js",
        swagger_css_url=f"{folder}/swagger-ui.css",
        swagger_favicon_url="data:,",
    )
    html = bytes(page.body).decode()
    inline = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digests = (hashlib.sha256(script.encode()).digest() for script in inline)
    scripts = " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    policy = (
        f"default-src 'none'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; "
        f"img-src 'self' data: blob:; connect-src 'self'; {_DENY}"
    )
    headers = {"Content-Security-Policy": policy}
    app.add_api_route("/docs", lambda: HTMLResponse(html, headers=headers), include_in_schema=False)
