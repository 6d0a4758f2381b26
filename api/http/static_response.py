"""Answers with a static file: compressed if the client accepts gzip, 304 if it has the file."""

from fastapi import Request
from fastapi.responses import Response

from api.assets.files import StaticFile
from api.http import etag

IMMUTABLE = "public, max-age=31536000, immutable"  # for addresses that contain a hash
REVALIDATE = "no-cache"


def respond(request: Request, file: StaticFile, cache_control: str) -> Response:
    """Return the response for this file."""
    headers = {"Cache-Control": cache_control, "ETag": file.etag, "Vary": "Accept-Encoding"}
    if etag.matches(etag.if_none_match(request), file.etag):
        return Response(status_code=304, headers=headers)
    content = file.content
    if file.gzip is not None and accepts_gzip(request):
        content = file.gzip
        headers["Content-Encoding"] = "gzip"
    return Response(content, headers=headers, media_type=file.media_type)


def accepts_gzip(request: Request) -> bool:
    """Whether the client accepts gzip (RFC 9110, section 12.5.3). Without the header: no."""
    weights: dict[str, float] = {}
    for part in ",".join(request.headers.getlist("accept-encoding")).split(","):
        name, _, parameter = part.partition(";")
        _, _, weight = parameter.partition("=")
        try:
            weights[name.strip().lower()] = float(weight) if parameter.strip() else 1.0
        except ValueError:
            return False
    return weights.get("gzip", weights.get("*", 0.0)) > 0
