"""An S3 server (moto) on loopback, in this process, whose answers a test can spoil.

with S3Server() as server:
    url = server.create_bucket()
    server.faults.append(Fault("GET", "blobs/", cut))
"""

import hashlib
import io
import itertools
import logging
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "impasto", "AWS_SECRET_ACCESS_KEY": "secret"}

Application = Callable[..., Iterable[bytes]]
# Gets the server's application and the arguments of one request; returns the body.
Behavior = Callable[[Application, dict[str, Any], Any], Iterable[bytes]]


@dataclass
class Fault:
    """Spoils requests with this method ("" for all) whose path and query contain the text."""

    method: str
    text: str
    behavior: Behavior
    times: float = float("inf")
    seen: list[str] = field(default_factory=list)

    def applies(self, environ: dict[str, Any]) -> bool:
        target = f"{environ['PATH_INFO']}?{environ['QUERY_STRING']}"
        fits = self.method in ("", environ["REQUEST_METHOD"]) and self.text in target
        if fits and len(self.seen) < self.times:
            self.seen.append(target)
            return True
        return False


def answer(status: str, code: str) -> Behavior:
    """Answer with an error of S3."""

    def behave(_: Application, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        body = f"<Error><Code>{code}</Code><Message>x</Message></Error>".encode()
        start_response(status, [("Content-Length", str(len(body)))])
        return [body]

    return behave


def delay(seconds: float) -> Behavior:
    """Answer rightly, after a while."""

    def behave(app: Application, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        time.sleep(seconds)
        return app(environ, start_response)

    return behave


def cut(app: Application, environ: dict[str, Any], start_response: Any) -> Iterator[bytes]:
    """Send half of the answer's body, then close the connection."""
    body = b"".join(app(environ, start_response))
    yield body[: len(body) // 2]
    raise ConnectionError


def flip(app: Application, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Change a byte of the answer's body."""
    body = bytearray(b"".join(app(environ, start_response)))
    body[len(body) // 2] ^= 1
    return [bytes(body)]


def flip_upload(app: Application, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Change a byte of the request's body."""
    body = bytearray(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
    body[len(body) // 2] ^= 1
    return app({**environ, "wsgi.input": io.BytesIO(bytes(body))}, start_response)


class Stale:
    """Answers each list as it was at the first time."""

    def __init__(self) -> None:
        self._answers: dict[str, tuple[tuple[Any, ...], bytes]] = {}

    def __call__(
        self, app: Application, environ: dict[str, Any], start_response: Any
    ) -> Iterable[bytes]:
        query = environ["PATH_INFO"] + environ["QUERY_STRING"]
        if query not in self._answers:
            head: list[Any] = []
            body = b"".join(app(environ, lambda *args: head.append(args)))
            self._answers[query] = (head[0], body)
        args, body = self._answers[query]
        start_response(*args)
        return [body]


class S3Server:
    """The server. It checks the SHA-256 of an upload as S3 does; moto itself does not."""

    _numbers = itertools.count()

    def __init__(self) -> None:
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self._app = DomainDispatcherApplication(create_backend_app)
        logging.getLogger("werkzeug").setLevel(logging.CRITICAL)  # a cut connection is no error
        self._server = make_server("127.0.0.1", 0, self._serve, threaded=True)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self.client = boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        )

    def __enter__(self) -> "S3Server":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()

    def create_bucket(self) -> str:
        """Create a bucket and return its IMPASTO_BLOBS_URL."""
        name = f"pictures-{next(self._numbers)}"
        self.client.create_bucket(Bucket=name)
        return f"s3://{name}/studio?endpoint={self.endpoint}&region=us-east-1"

    def replace(self, url: str, key: str, data: bytes) -> None:
        """Replace an object below the prefix of the URL, as nobody should."""
        bucket = url.removeprefix("s3://").partition("/")[0]
        self.client.put_object(Bucket=bucket, Key=f"studio/{key}", Body=data)

    def keys(self, url: str) -> list[str]:
        """Return the keys below the prefix of the URL."""
        bucket = url.removeprefix("s3://").partition("/")[0]
        found = self.client.list_objects_v2(Bucket=bucket).get("Contents", [])
        return [row["Key"].removeprefix("studio/") for row in found]

    def count_keys(self, url: str) -> int:
        """Return how many keys there are below the prefix of the URL."""
        bucket = url.removeprefix("s3://").partition("/")[0]
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return sum(page["KeyCount"] for page in pages)

    def _serve(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        self.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}")
        for fault in self.faults:
            if fault.applies(environ):
                return fault.behavior(self._check, environ, start_response)
        return self._check(environ, start_response)

    def _check(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        expected = environ.get("HTTP_X_AMZ_CHECKSUM_SHA256")
        if expected is not None:
            body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
            if b64encode(hashlib.sha256(body).digest()).decode() != expected:
                return answer("400 Bad Request", "BadDigest")(
                    self._app, {**environ, "CONTENT_LENGTH": "0"}, start_response
                )
            environ = {**environ, "wsgi.input": io.BytesIO(body)}
        body_parts: Iterable[bytes] = self._app(environ, start_response)
        return body_parts
