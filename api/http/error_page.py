"""The page that a person sees at an address where nothing is. Programs get the JSON problem."""

import re
from string import Template

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse
from starlette.types import Scope

from api.assets.files import PageFiles
from api.http.root_path import add_root_path

_POLICY = (
    "default-src 'none'; style-src 'self'; img-src 'self'; font-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)

# Each language of the page, with the texts of not-found.html.
_TEXTS = {
    "en": {
        "title": "Page not found",
        "advice": "Please check the address. If it is one of the API, it may need an API key.",
        "link": "Open Impasto",
    },
    "zh-CN": {
        "title": "找不到页面",
        "advice": "请检查网址是否有误。如果这是 API 地址，访问时可能需要 API 密钥。",
        "link": "打开 Impasto",
    },
}


def error_page(scope: Scope, status: int) -> HTMLResponse | None:
    """Return the page with this status, or None if the client is a program."""
    headers = Headers(scope=scope)
    if scope["method"] not in ("GET", "HEAD") or not _prefers_html(headers):
        return None
    files: PageFiles = scope["app"].state.page_files
    language = "zh-CN" if _prefers_chinese(headers) else "en"
    # The depth of the address is unknown, so the addresses in the page cannot be relative.
    html = files.document("not-found.html").content.decode()
    html = Template(html).substitute(_TEXTS[language], language=language)
    html = html.replace('="./', f'="{add_root_path("/")}')
    own = {
        "Cache-Control": "no-cache",
        "Content-Security-Policy": _POLICY,
        "Vary": "Accept, Accept-Language",
    }
    return HTMLResponse(html, status, own)


def _prefers_html(headers: Headers) -> bool:
    """Whether the client names HTML among what it accepts, as browsers do, and no JSON."""
    accepted = ",".join(headers.getlist("accept")).lower()
    kinds = {part.partition(";")[0].strip() for part in accepted.split(",")}
    return "text/html" in kinds and not any(kind.endswith("json") for kind in kinds)


def _prefers_chinese(headers: Headers) -> bool:
    """Whether the client wants Chinese rather than English, the other language of the page.

    Browsers send their languages in the order of preference.
    """
    accepted = ",".join(headers.getlist("accept-language")).lower()
    return re.findall(r"(?<![\w-])(en|zh)\b", accepted)[:1] == ["zh"]
