"""Parses the URL of the bucket that stores the blobs. Opens no connection."""

import re
from dataclasses import dataclass, fields
from urllib.parse import parse_qsl, urlsplit

IDENTITY_FILE = "store.identity"  # beside the blobs; names the store that they belong to

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_SEGMENT = re.compile(r"[A-Za-z0-9._=-]+")
_EXAMPLE = "s3://bucket/prefix?endpoint=https://s3.example.org&region=eu-central-1"


@dataclass(frozen=True)
class BucketLocation:
    """Where the blobs are. An empty endpoint or region: as AWS_* variables say, or Amazon's own.

    public_endpoint: the endpoint as clients reach it, for presigned links; empty: the same.
    """

    bucket: str
    prefix: str
    endpoint: str = ""
    region: str = ""
    public_endpoint: str = ""


def parse_blobs_url(url: str) -> BucketLocation:
    """Return the parts of the URL. Raises ValueError with a sentence that names the wrong part.

    The sentence never contains the URL, which may contain a password by mistake.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(f"It is no URL such as {_EXAMPLE}.") from None
    if parts.scheme != "s3":
        raise ValueError(f"It must be empty or begin with s3://, such as {_EXAMPLE}.")
    if "@" in parts.netloc:
        raise ValueError("Credentials belong into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.")
    if not _BUCKET.fullmatch(parts.netloc):
        raise ValueError("Name a bucket after s3://, in small letters, digits, dots and hyphens.")
    segments = [segment for segment in parts.path.split("/") if segment]
    if parts.fragment or not all(map(_SEGMENT.fullmatch, segments)) or {".", ".."} & {*segments}:
        raise ValueError("The prefix may have letters, digits, . _ = - and slashes.")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    known = [field.name for field in fields(BucketLocation)][2:]
    if unknown := options.keys() - set(known):
        raise ValueError(f"It has an unknown parameter {min(unknown)}; use {', '.join(known)}.")
    for name in ("endpoint", "public_endpoint"):
        if name in options and not re.fullmatch(r"https?://[^/?#@\s]+/?", options[name]):
            raise ValueError(f"The {name} must be like https://s3.example.org or http://host:9000.")
        if name in options:
            options[name] = options[name].rstrip("/")
    return BucketLocation(parts.netloc, "/".join(segments), **options)


def check_blobs_url(url: str) -> str:
    """Return the URL. Raises ValueError as `parse_blobs_url`; an empty one is valid."""
    if url:
        parse_blobs_url(url)
    return url
