"""What browsers are told with every answer: run nothing, embed nothing, ask nobody else. Knows paths, not contents."""

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

DOCS_FOLDER = "/docs/ui"  # what the page /docs loads

_NOBODY = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

# The page. blob: is a picture that was chosen and not yet sent. Its form is sent by its script, so it needs no action.
_PAGE = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    f"require-trusted-types-for 'script'; trusted-types 'none'; {_NOBODY}"
).encode()
# All else: JSON and pictures. Opened as a document, not even a picture that is a page for some browser can do anything.
_DATA = f"default-src 'none'; sandbox; {_NOBODY}".encode()

_ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
# As ASGI has them: every answer is written over, so it is done in one pass.
_CSP = b"content-security-policy"
_ALWAYS_RAW = [(name.lower().encode(), value.encode()) for name, value in _ALWAYS.items()]
_ALWAYS_NAMES = frozenset(name for name, _ in _ALWAYS_RAW)


class SecurityHeaders:
    """Puts the headers on every answer, unless the answer has its own."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = [pair for pair in message["headers"] if pair[0] not in _ALWAYS_NAMES]
                if all(name != _CSP for name, _ in given):
                    given.append((_CSP, _PAGE if _is_page(scope["path"]) else _DATA))
                message["headers"] = given + _ALWAYS_RAW
            await send(message)

        await self._app(scope, receive, answer)


def _is_page(path: str) -> bool:
    return path == "/" or path.startswith(("/web/", "/j/"))


def add_docs(app: FastAPI) -> None:
    """/docs: Swagger UI, from this service as all else. It styles itself as it runs, so it has a policy of its own."""
    app.mount(
        DOCS_FOLDER,
        StaticFiles(directory=Path(fastapi_offline.__file__).with_name("static")),
        name="docs",
    )
    page = get_swagger_ui_html(
        openapi_url="/openapi.json",
        title="Impasto: the API",
        swagger_js_url=f"{DOCS_FOLDER}/swagger-ui-bundle.js",
        swagger_css_url=f"{DOCS_FOLDER}/swagger-ui.css",
        swagger_favicon_url="data:,",
    )
    html = bytes(page.body).decode()
    inline = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    hashes = (
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in inline
    )
    scripts = " ".join(f"'sha256-{digest}'" for digest in hashes)
    policy = (
        f"default-src 'none'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; "
        f"img-src 'self' data: blob:; connect-src 'self'; {_NOBODY}"
    )
    headers = {"Content-Security-Policy": policy}
    app.add_api_route("/docs", lambda: HTMLResponse(html, headers=headers), include_in_schema=False)
