"""The page that a person sees at an address where nothing is. Programs get the JSON problem."""

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse
from starlette.types import Scope

from api.assets.files import PageFiles
from api.http.root_path import add_root_path

_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; font-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def error_page(scope: Scope, status: int) -> HTMLResponse | None:
    """Return the page with this status, or None if the client is a program."""
    if scope["method"] not in ("GET", "HEAD") or not _prefers_html(Headers(scope=scope)):
        return None
    files: PageFiles = scope["app"].state.page_files
    # The depth of the address is unknown, so the addresses in the page cannot be relative.
    html = files.document("not-found.html").content.decode()
    html = html.replace('="./', f'="{add_root_path("/")}')
    headers = {"Cache-Control": "no-cache", "Content-Security-Policy": _POLICY}
    return HTMLResponse(html, status, headers)


def _prefers_html(headers: Headers) -> bool:
    """Whether the client names HTML among what it accepts, as browsers do, and no JSON."""
    accepted = ",".join(headers.getlist("accept")).lower()
    kinds = {part.partition(";")[0].strip() for part in accepted.split(",")}
    return "text/html" in kinds and not any(kind.endswith("json") for kind in kinds)
