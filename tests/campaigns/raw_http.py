"""Malformed and hostile requests to a real API: each response must be an expected one.

python tests/campaigns/raw_http.py --seed 1 [--history FILE] [--client-timeout 15]
    [--without protocol|guard|validation]
"""

import gzip
import json
import random
import socket
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import click
from api_process import CONTROLS, ApiProcess
from history import report_violations

CANARY = "zanzibar"  # in all input that must appear neither in a response nor in the log
HANG_SECONDS = 15.0
LINE_BYTES = 4096

Sent = bytes | list[bytes]
NO_RESPONSE = 0  # instead of a status: the server closed the connection without a response


@dataclass(frozen=True)
class Case:
    """A request, and the statuses that may answer it.

    end: close the sending half of the connection afterwards.
    """

    name: str
    sent: Sent
    expected: set[int]
    code: str | None = None
    end: bool = False
    absent: str | None = None  # a header that the response must not have


@dataclass
class Outcome:
    """The responses to a case."""

    name: str
    statuses: list[int] = field(default_factory=list)
    expected: list[int] = field(default_factory=list)
    code: str | None = None
    expected_code: str | None = None
    kind: str = ""
    seconds: float = 0.0
    echo: bool = False
    forbidden: str | None = None


def request(
    method: str,
    target: str | bytes,
    *headers: str | bytes,
    body: bytes = b"",
    host: str = "localhost",
) -> bytes:
    """Build a request with a correct Host, Connection and Content-Length."""
    path = target.encode() if isinstance(target, str) else target
    lines = [
        b"%b %b HTTP/1.1" % (method.encode(), path),
        b"Host: " + host.encode(),
        b"Connection: close",
    ]
    lines += [header.encode("latin-1") if isinstance(header, str) else header for header in headers]
    if body:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def framed(*headers: str, body: bytes = b"", version: str = "1.1") -> bytes:
    """Build POST /v1/jobs for JSON with exactly these further headers."""
    lines = [
        f"POST /v1/jobs HTTP/{version}",
        "Host: localhost",
        "Content-Type: application/json",
        *headers,
    ]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def syntax(seed: int) -> Iterator[Case]:
    """Request lines, headers and body framing."""
    bad, length = {400}, "Content-Length"
    object_ = b"{}"
    yield Case(
        "length longer than the body, then silence",
        framed(f"{length}: 99", body=object_),
        {408},
        "request_timeout",
    )
    yield Case(
        "length longer than the body, then the end",
        framed(f"{length}: 99", body=object_),
        {NO_RESPONSE},
        end=True,
    )
    yield Case(
        "length shorter than the body", framed(f"{length}: 1", body=object_), bad, "bad_request"
    )
    for value in ("-1", "+2", "2, 2", "0x2", "2 2", str(2**64), "9" * 5000, "two", "2\x0b"):
        yield Case(
            f"length {value[:20]!r}", framed(f"{length}: {value}", body=object_), bad, "bad_request"
        )
    yield Case("length missing", framed(), bad)
    yield Case(
        "length twice, the same",
        framed(f"{length}: 2", f"{length}: 2", body=object_),
        bad,
        "bad_request",
    )
    yield Case(
        "length twice, another",
        framed(f"{length}: 2", f"{length}: 1", body=object_),
        bad,
        "bad_request",
    )
    yield Case(
        "length over the limit",
        framed(f"{length}: 50000000000", body=object_),
        {413},
        "upload_too_large",
    )
    chunks = b"2\r\n{}\r\n0\r\n\r\n"
    te = "Transfer-Encoding"
    yield Case(
        "length and chunks",
        framed(f"{length}: 2", f"{te}: chunked", body=chunks),
        bad,
        "bad_request",
    )
    yield Case(
        "chunks and length",
        framed(f"{te}: chunked", f"{length}: 2", body=chunks),
        bad,
        "bad_request",
    )
    for value in (
        "gzip, chunked",
        "identity",
        "xchunked",
        "chunked, chunked",
        "\x0bchunked",
        "chunked, identity",
    ):
        yield Case(f"coding {value!r}", framed(f"{te}: {value}", body=chunks), bad, "bad_request")
        livez = request("GET", "/livez", f"{te}: {value}") + chunks
        yield Case(f"coding {value!r} where no body is read", livez, bad, "bad_request")
    yield Case(
        "coding twice", framed(f"{te}: chunked", f"{te}: chunked", body=chunks), bad, "bad_request"
    )
    yield Case(
        "coding, space before the colon", framed(f"{te} : chunked", body=chunks), bad, "bad_request"
    )
    yield Case(
        "chunks in HTTP/1.0",
        framed(f"{te}: chunked", body=chunks, version="1.0"),
        bad,
        "bad_request",
    )
    for name, body in {
        "no number": b"zz\r\n{}\r\n0\r\n\r\n",
        "negative": b"-2\r\n{}\r\n0\r\n\r\n",
        "number too long": b"F" * 17 + b"\r\n{}\r\n",
        "no line end": b"2\r\n{}XX0\r\n\r\n",
        "2,000 trailers": b"2\r\n{}\r\n0\r\n" + b"A: b\r\n" * 2000 + b"\r\n",
    }.items():
        codes = {400, 431}
        yield Case(f"chunk: {name}", framed(f"{te}: chunked", body=body), codes)
    yield Case(
        "chunks without end",
        framed(f"{te}: chunked", body=b"2\r\n{}\r\n"),
        {408},
        "request_timeout",
    )
    for name, line in {
        "folded": b"A: b\r\n c",
        "without colon": b"nonsense",
        "with NUL": b"A: b\x00c",
        "with a bare CR": b"A: b\rc",
        "with a control character as name": b"A\x01: b",
        "empty name": b": b",
        "raw high bytes as name": b"\xff\xfe: b",
    }.items():
        yield Case(f"header {name}", request("GET", "/livez", line), bad, "bad_request")
    yield Case("lines end in LF", b"GET /livez HTTP/1.1\nHost: localhost\n\n", bad, "bad_request")
    yield Case("HTTP/0.9", b"GET /livez\r\n\r\n", bad, "bad_request")
    yield Case("HTTP/0.9 without an end", b"GET /livez\r\n", {408}, "request_timeout")
    for version in ("0.9", "1.2", "2.0", "9.9", "11.1", "x"):
        yield Case(
            f"HTTP/{version}",
            f"GET /livez HTTP/{version}\r\nHost: localhost\r\n\r\n".encode(),
            bad,
            "bad_request",
        )
    yield Case("HTTP/1.0 without a host", b"GET /livez HTTP/1.0\r\n\r\n", {200})
    yield Case("HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", bad, "bad_request")
    hello = bytes.fromhex("16030100c8010000c40303") + random.Random(seed).randbytes(193)
    yield Case("TLS hello", hello, bad, "bad_request")
    yield Case("SSH banner", b"SSH-2.0-OpenSSH_9.2\r\n", bad, "bad_request")
    for number in range(5):
        noise = random.Random(seed + number).randbytes(2000)
        yield Case(f"noise {number}", b"\xff" + noise, bad, "bad_request")
    yield Case("only line ends", b"\r\n" * 100, {NO_RESPONSE})
    yield Case("silence", b"", {NO_RESPONSE})
    yield Case(
        "two requests at once",
        request("GET", "/livez").replace(b"Connection: close\r\n", b"") * 2,
        {200},
    )
    after = request("GET", "/livez").replace(b"Connection: close\r\n", b"") + b"\x00garbage\r\n\r\n"
    yield Case("garbage after a request", after, {200})
    expects = framed("Expect: 100-continue", f"{length}: 2", body=object_)
    yield Case("expects 100", expects, {100, 400})
    yield Case("expects nonsense", request("GET", "/livez", "Expect: 200-ok"), {200, 417})
    upgrade = "Upgrade: {}", "Connection: upgrade"
    for protocol in ("websocket", "h2c", "TLS/1.0"):
        yield Case(
            f"upgrade to {protocol}",
            request("GET", "/livez", upgrade[0].format(protocol), upgrade[1]),
            {200},
        )


def heads() -> Iterator[Case]:
    """The size limits of request line and headers."""
    yield Case("address of 9 KB", request("GET", "/" + "a" * 9000), {414}, "uri_too_long")
    yield Case("address of 1 MB", request("GET", "/" + "a" * 1_000_000), {414}, "uri_too_long")
    yield Case("address of 7 KB", request("GET", "/livez?" + "a" * 7000), {200})
    yield Case("header of 12 KB", request("GET", "/livez", "Accept: " + "a/b," * 3000), {200})
    yield Case(
        "header of 20 KB",
        request("GET", "/livez", "A: " + "b" * 20_000),
        {431},
        "headers_too_large",
    )
    yield Case(
        "header of 20 MB",
        request("GET", "/livez", b"A: " + b"b" * 20_000_000),
        {431},
        "headers_too_large",
    )
    yield Case(
        "header name of 1 MB",
        request("GET", "/livez", b"A" * 1_000_000 + b": b"),
        {431},
        "headers_too_large",
    )
    yield Case(
        "header without end",
        b"GET /livez HTTP/1.1\r\nA: " + b"b" * 1_000_000,
        {431},
        "headers_too_large",
    )
    yield Case("90 headers", request("GET", "/livez", *["A: b"] * 90), {200})
    yield Case("101 headers", request("GET", "/livez", *["A: b"] * 101), {431}, "headers_too_large")
    yield Case(
        "100,000 headers", request("GET", "/livez", *["A: b"] * 100_000), {431}, "headers_too_large"
    )
    slowly = request("GET", "/livez", *[f"A: {'b' * 1000}"] * 30)
    pieces = [slowly[start : start + 1500] for start in range(0, len(slowly), 1500)]
    yield Case("30 KB in pieces", pieces, {431}, "headers_too_large")


def targets() -> Iterator[Case]:
    """Methods, paths, queries, conditions."""
    for method, status in {
        "TRACE": 405,
        "PUT": 405,
        "PATCH": 405,
        "OPTIONS": 405,
        "FOO": 400,
        "get": 400,
    }.items():
        code = {405: "method_not_allowed", 400: "bad_request"}[status]
        yield Case(f"method {method}", request(method, "/v1/jobs"), {status}, code)
    yield Case("CONNECT", b"CONNECT a:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", {400}, "bad_request")
    yield Case("OPTIONS *", request("OPTIONS", "*"), {404}, "not_found")
    yield Case("absolute address", request("GET", "http://elsewhere.example/livez"), {200})
    for bad in (
        "%00",
        "%ff",
        "..%2f..%2fetc%2fpasswd",
        "%0d%0aA:b",
        "%ed%a0%80",
        "a" * 7000,
        "job_%d9%a1",
        "%",
    ):
        yield Case(f"job id {bad[:20]}", request("GET", f"/v1/jobs/{bad}"), {404})
        yield Case(f"picture {bad[:20]}", request("HEAD", f"/v1/images/{bad}"), {404})
        yield Case(f"file of the page {bad[:20]}", request("GET", f"/web/{bad}"), {404})
    yield Case("job id with ..", request("GET", "/v1/jobs/../../livez"), {404})
    yield Case("file of the page with ..", request("GET", "/web/../../pyproject.toml"), {404})
    yield Case("delete a job with NUL", request("DELETE", "/v1/jobs/%00"), {404}, "job_not_found")
    yield Case(
        "cancel a job with %ff", request("POST", "/v1/jobs/%ff/cancel"), {404}, "job_not_found"
    )
    yield Case("raw NUL in the path", request("GET", b"/\x00"), {400}, "bad_request")
    yield Case("raw high byte in the path", request("GET", b"/\xff"), {400}, "bad_request")
    yield Case("space in the path", request("GET", b"/a b"), {400}, "bad_request")
    queries = [
        "limit=NaN",
        "limit=Infinity",
        "limit=1e999",
        "limit=" + "9" * 5000,
        "limit=%ff",
        "limit=",
        "cursor=-1",
    ]
    for query in [
        *queries,
        "cursor=%00",
        "status=%ed%a0%80",
        f"status={CANARY}",
        "limit=1&limit=x",
        "cursor=1e3",
    ]:
        yield Case(f"query {query[:30]}", request("GET", f"/v1/jobs?{query}"), {422}, "bad_input")
    yield Case("unknown format", request("GET", "/v1/jobs/x/result?format=svg"), {404, 422})
    none_match = request("GET", f"/v1/jobs/job_{'a' * 26}", 'If-None-Match: "' + "a" * 10_000 + '"')
    yield Case("If-None-Match of 10 KB", none_match, {404}, "job_not_found")
    ranges = "Range: bytes=" + ",".join("0-0" for _ in range(1000))
    yield Case("1,000 ranges", request("GET", "/web/app.js", ranges), {200, 206, 400, 416})
    yield Case("empty range", request("GET", "/web/app.js", "Range: bytes=9-1"), {200, 400, 416})
    yield Case(
        "range beyond the end", request("GET", "/web/app.js", "Range: bytes=99999999-"), {200, 416}
    )
    forwarded = [f"X-Forwarded-{name}: {CANARY}" for name in ("For", "Proto", "Host")]
    yield Case("forwarded headers without a proxy", request("GET", "/livez", *forwarded), {200})
    yield Case(
        "hostile request id", request("GET", "/livez", f"X-Request-Id: {CANARY};\x1b[2J"), {400}
    )
    yield Case("long request id", request("GET", "/livez", f"X-Request-Id: {CANARY * 20}"), {200})


def origins() -> Iterator[Case]:
    """Host names of other sites, and requests from pages of other origins."""
    yield Case("no host", b"GET /livez HTTP/1.1\r\n\r\n", {400}, "bad_request")
    yield Case("two hosts", request("GET", "/livez", "Host: localhost"), {400}, "bad_request")
    for host in (
        "",
        "a b",
        "user@localhost",
        "localhost/",
        "localhost:x",
        "[::1",
        "localhost:99999999",
    ):
        yield Case(f"host {host!r}", request("GET", "/livez", host=host), {400}, "bad_request")
    others = (
        "elsewhere.example",
        "localhost.elsewhere.example",
        "127.0.0.1.nip.example",
        "0.0.0.0",  # noqa: S104
        "2130706433",
    )
    for host in others:
        yield Case(f"host {host}", request("GET", "/v1/jobs", host=host), {403}, "host_not_allowed")
    for host in ("localhost:8000", "127.0.0.1", "[::1]:80", "LOCALHOST"):
        yield Case(f"host {host}", request("GET", "/v1/jobs", host=host), {200})
    form = b'--x\r\nContent-Disposition: form-data; name="size"\r\n\r\n64\r\n--x--\r\n'
    kind = "Content-Type: multipart/form-data; boundary=x"
    for line in (
        "Origin: http://elsewhere.example",
        "Origin: null",
        "Origin: http://localhost:1",
        "Origin: localhost",
    ):
        yield Case(
            f"form, {line}",
            request("POST", "/v1/jobs", kind, line, body=form),
            {403},
            "cross_origin_forbidden",
        )
    for site in ("cross-site", "same-site", "nonsense", ""):
        line = f"Sec-Fetch-Site: {site}"
        yield Case(
            f"form, {line}",
            request("POST", "/v1/jobs", kind, line, body=form),
            {403},
            "cross_origin_forbidden",
        )
    for line in (
        "Origin: http://localhost",
        "Sec-Fetch-Site: same-origin",
        "Sec-Fetch-Site: none",
        "Accept: */*",
    ):
        yield Case(
            f"form, {line}",
            request("POST", "/v1/jobs", kind, line, body=form),
            {400},
            "bad_request",
        )
    cross = "Sec-Fetch-Site: cross-site"
    yield Case(
        "cancel from another site",
        request("POST", "/v1/jobs/x/cancel", cross),
        {403},
        "cross_origin_forbidden",
    )
    yield Case(
        "delete from another site",
        request("DELETE", "/v1/jobs/x", cross),
        {403},
        "cross_origin_forbidden",
    )
    evil = "Origin: http://elsewhere.example"
    allow = "access-control-allow-origin"
    yield Case(
        "read from another site", request("GET", "/v1/jobs", cross, evil), {200}, absent=allow
    )
    ask = "Access-Control-Request-Method: DELETE"
    yield Case(
        "CORS preflight from another site",
        request("OPTIONS", "/v1/jobs/x", evil, ask),
        {405},
        absent=allow,
    )


def forms() -> Iterator[Case]:
    """Multipart bodies."""

    def post(kind: str, body: bytes) -> bytes:
        return request("POST", "/v1/jobs", f"Content-Type: {kind}", body=body)

    part = 'Content-Disposition: form-data; name="{}"'
    file = (
        b'--x\r\nContent-Disposition: form-data; name="content"; filename="'
        + CANARY.encode()
        + b'"\r\n\r\nabc\r\n'
    )
    sound = b"--x\r\n" + part.format("size").encode() + b"\r\n\r\n64\r\n"
    kind = "multipart/form-data; boundary=x"
    refused = {400, 413, 415, 422}
    yield Case("no content type", request("POST", "/v1/jobs", body=sound), {400}, "bad_request")
    yield Case(
        "boundary missing", post("multipart/form-data", sound + b"--x--\r\n"), {400}, "bad_request"
    )
    yield Case(
        "boundary empty",
        post("multipart/form-data; boundary=", sound + b"--x--\r\n"),
        {400},
        "bad_request",
    )
    yield Case(
        "boundary wrong",
        post("multipart/form-data; boundary=y", sound + b"--x--\r\n"),
        {400},
        "bad_request",
    )
    yield Case(
        "boundary of 10 KB",
        post("multipart/form-data; boundary=" + "x" * 10_000, sound),
        {400},
        "bad_request",
    )
    for charset in ("zz", "undefined", "punycode", "idna", "utf-16", "unicode_escape", "zlib"):
        yield Case(
            f"charset {charset}",
            post(f"{kind}; charset={charset}", sound + b"--x--\r\n"),
            {400},
            "bad_request",
        )
    yield Case("unterminated", post(kind, sound), {400}, "bad_request")
    yield Case("unterminated inside a file", post(kind, file[:-3]), refused)
    yield Case(
        "a million fields",
        post(kind, b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' * 1_000_000),
        refused,
    )
    yield Case("2,000 files", post(kind, file * 2000 + b"--x--\r\n"), {400}, "bad_request")
    yield Case(
        "a text of 2 MB", post(kind, sound[:-4] + b"6" * 2_000_000 + b"\r\n--x--\r\n"), refused
    )
    yield Case(
        "a part's header of 1 MB",
        post(kind, b"--x\r\nA: " + b"b" * 1_000_000 + b"\r\n\r\n--x--\r\n"),
        refused,
    )
    yield Case(
        "a part without a name",
        post(kind, b"--x\r\nA: b\r\n\r\n64\r\n--x--\r\n"),
        {400},
        "bad_request",
    )
    yield Case(
        "a part of garbage", post(kind, b"--x\r\n\x00\xff\r\n--x--\r\n"), {400}, "bad_request"
    )
    yield Case("empty body", post(kind, b"") + b"", {400}, "bad_request")
    yield Case("only the end", post(kind, b"--x--\r\n"), {400}, "bad_request")
    for name in (
        b"../../etc/cron.d/x\x00.png",
        b"a%0d%0ab",
        b"\xff\xfe",
        b"<img src=x onerror=alert(1)>",
        b'a\\"b',
    ):
        hostile = file.replace(CANARY.encode(), CANARY.encode() + name)
        both = hostile + hostile.replace(b'name="content"', b'name="style"') + b"--x--\r\n"
        yield Case(f"file called {name[:20]!r}", post(kind, both), refused)
    empty = file.replace(b"abc", b"")
    yield Case(
        "empty files",
        post(kind, empty + empty.replace(b'"content"', b'"style"') + b"--x--\r\n"),
        refused,
    )
    for value in (
        "NaN",
        "nan",
        "Infinity",
        "-inf",
        "1e999",
        "9" * 5000,
        "½",
        "\x00",
        "[" * 50_000,
        "1_0",
        " ",
        "0x40",
    ):
        field_ = f"--x\r\n{part.format('strength')}\r\n\r\n{value}\r\n".encode()
        both = file + file.replace(b'name="content"', b'name="style"')
        yield Case(f"strength {value[:10]!r}", post(kind, field_ + both + b"--x--\r\n"), refused)
    encoded = "application/x-www-form-urlencoded"
    yield Case("urlencoded, a million fields", post(encoded, b"a=b&" * 1_000_000), {400, 413, 415})
    image = request(
        "POST", "/v1/images", f"Content-Type: {kind}", body=file.replace(b"content", b"image")
    )
    yield Case("an image without an end", image, refused)
    no_file = request("POST", "/v1/images", f"Content-Type: {kind}", body=sound + b"--x--\r\n")
    yield Case("an image that is no file", no_file, {400}, "bad_request")


def objects() -> Iterator[Case]:
    """JSON bodies."""

    def post(body: bytes, *headers: str) -> bytes:
        return request("POST", "/v1/jobs", "Content-Type: application/json", *headers, body=body)

    digest = "sha256:" + "0" * 64
    for name, value in {
        "NaN": "NaN",
        "Infinity": "Infinity",
        "-Infinity": "-Infinity",
        "1e999": "1e999",
        "a lone surrogate": '"\\ud800"',
        "5,000 digits": "9" * 5000,
        "null": "null",
        "a list": "[1]",
        "an object": "{}",
        "1e38": "1e38",
        "NUL": '"\\u0000"',
    }.items():
        for parameter in ("strength", "size", "seed", "quality"):
            pictures = f'"content": "{digest}", "styles": ["{digest}"]'
            text = f'{{{pictures}, "spec": {{"{parameter}": {value}}}}}'
            yield Case(f"{parameter} {name}", post(text.encode()), {400, 422})
        text = f'{{"content": {value}, "styles": [{value}]}}'
        yield Case(f"picture {name}", post(text.encode()), {400, 404, 422})
    for name, body in {
        "bad UTF-8": b'{"content": "\xff\xfe"}',
        "UTF-16": '{"content": "a"}'.encode("utf-16"),
        "with a BOM": b"\xef\xbb\xbf{}",
        "100,000 deep": b'{"spec": ' + b"[" * 80_000,
        "deep objects": b'{"a":' * 15_000,
        "a number": b"1",
        "not closed": b"{",
        "two": b"{}{}",
        "200 KB": b'{"content": "' + b"a" * 200_000 + b'"}',
        "10 MB": b'{"content": "' + b"a" * 10_000_000 + b'"}',
        "an unknown parameter": json.dumps(
            {"content": digest, "styles": [digest], "spec": {CANARY: 1}}
        ).encode(),
        "a surrogate as key": b'{"\\ud800": 1}',
        "a billion as styles": b'{"content":"a","styles":[' + b'"a",' * 20_000 + b'"a"]}',
    }.items():
        yield Case(f"JSON: {name}", post(body), {400, 404, 413, 422})
    yield Case(
        "gzip", post(gzip.compress(b"{}"), "Content-Encoding: gzip"), {415}, "unsupported_encoding"
    )
    bomb = gzip.compress(b"0" * 10_000_000)
    yield Case("gzip bomb", post(bomb, "Content-Encoding: gzip"), {415}, "unsupported_encoding")
    yield Case("br", post(b"{}", "Content-Encoding: identity, br"), {415}, "unsupported_encoding")


def cases(seed: int) -> list[Case]:
    """Return all cases."""
    groups: list[Iterable[Case]] = [
        syntax(seed),
        heads(),
        targets(),
        origins(),
        forms(),
        objects(),
    ]
    return [case for group in groups for case in group]


def send(case: Case, port: int) -> Outcome:
    """Send the request, and read until the server closes the connection or the timeout."""
    outcome = Outcome(case.name, expected=sorted(case.expected), expected_code=case.code)
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=HANG_SECONDS + 10) as line:
        try:
            for piece in case.sent if isinstance(case.sent, list) else [case.sent]:
                line.sendall(piece)
                if isinstance(case.sent, list):
                    time.sleep(0.01)  # so that each piece arrives separately
            if case.end:
                line.shutdown(socket.SHUT_WR)
        except OSError:  # closed before everything was sent; there may still be a response
            pass
        received = _receive(line)
    outcome.seconds = round(time.monotonic() - began, 2)
    _parse_responses(received, outcome, case)
    return outcome


def _receive(line: socket.socket) -> bytes:
    received = b""
    try:
        while piece := line.recv(65536):
            received += piece
    except OSError:
        pass
    return received


def _parse_responses(received: bytes, outcome: Outcome, case: Case) -> None:
    rest = received
    while rest.startswith(b"HTTP/1.1 "):
        head, _, rest = rest.partition(b"\r\n\r\n")
        outcome.statuses.append(int(head[9:12]))
        headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        length = int(headers.get(b"content-length", b"0")) if case.sent[:4] != b"HEAD" else 0
        body, rest = rest[:length], rest[length:]
        outcome.kind = headers.get(b"content-type", b"").decode()
        if "json" in outcome.kind and body:
            outcome.code = json.loads(body).get("code")
        if case.absent and case.absent.encode() in headers:
            outcome.forbidden = case.absent
    if rest:
        outcome.statuses.append(-1)  # bytes that are no response
    outcome.echo = CANARY.encode() in received


def run(seed: int, history: Path, client_timeout: float, without: str | None) -> None:
    """Send all cases to a service of their own, eight at a time."""
    settings = {"API_CLIENT_TIMEOUT_SECONDS": str(client_timeout), "API_MAX_WAIT_SECONDS": "600"}
    with tempfile.TemporaryDirectory() as folder, history.open("w") as out:
        with ApiProcess(Path(folder), without, **settings) as api:
            with ThreadPoolExecutor(8) as pool:
                for outcome in pool.map(lambda case: send(case, api.port), cases(seed)):
                    out.write(json.dumps({"case": asdict(outcome)}) + "\n")
            alive = send(Case("alive", request("GET", "/v1/system"), {200}), api.port)
            out.write(json.dumps({"case": asdict(alive)}) + "\n")
            out.write(json.dumps({"leftovers": sorted(api.leftovers())}) + "\n")
        for line in api.log.read_text(errors="surrogateescape").splitlines():
            out.write(json.dumps({"log": line}) + "\n")


def violations(history: Path) -> list[str]:
    """Return the violations that the history shows."""
    found = []
    for line in history.read_text().splitlines():
        entry = json.loads(line)
        if "case" in entry:
            found += [f"{entry['case']['name']}: {wrong}" for wrong in _check_case(entry["case"])]
        elif "leftovers" in entry:
            found += [f"file left on the disk: {name}" for name in entry["leftovers"]]
        else:
            found += [
                f"log: {wrong}: {entry['log'][:200]}" for wrong in _check_log_line(entry["log"])
            ]
    return found


def _check_case(case: dict[str, Any]) -> Iterator[str]:
    statuses = case["statuses"] or [NO_RESPONSE]
    if not set(statuses) <= set(case["expected"]):
        yield f"answered {statuses}, not {case['expected']}"
    if any(status >= 500 and status != 503 for status in statuses):
        yield f"answered {statuses}"
    if case["expected_code"] and case["code"] != case["expected_code"] and "json" in case["kind"]:
        yield f"code {case['code']}, not {case['expected_code']}"
    if statuses[-1] >= 400 and case["kind"] != "application/problem+json":
        yield f"an error with content type {case['kind'] or 'none'}"
    if case["seconds"] > HANG_SECONDS + 3:
        yield f"took {case['seconds']} s"
    if case["echo"]:
        yield "echoed the input"
    if case["forbidden"]:
        yield f"answered with {case['forbidden']}"


def _check_log_line(line: str) -> Iterator[str]:
    try:
        json.loads(line)
    except ValueError:
        yield "not JSON"
    if len(line) > LINE_BYTES:
        yield f"{len(line)} bytes long"
    if not line.isascii() or not line.isprintable():
        yield "control characters"
    if CANARY in line or "hunter2" in line:
        yield "contains input or a secret"
    if "Traceback" in line:
        yield "a traceback"


@click.command()
@click.option("--seed", default=1, show_default=True)
@click.option(
    "--history", type=click.Path(path_type=Path), default=Path("raw_http.jsonl"), show_default=True
)
@click.option(
    "--client-timeout", default=15.0, show_default=True, help="IMPASTO_API_CLIENT_TIMEOUT_SECONDS."
)
@click.option(
    "--without",
    type=click.Choice(list(CONTROLS)),
    help="Remove this guard: there must be violations.",
)
def main(seed: int, history: Path, client_timeout: float, without: str | None) -> None:
    """Run the campaign and check its history; exit code 1 if there are violations."""
    run(seed, history, client_timeout, without)
    outcome = [json.loads(line).get("case") for line in history.read_text().splitlines()]
    statuses = Counter((case["statuses"] or [NO_RESPONSE])[-1] for case in outcome if case)
    print(f"seed {seed}: {sum(statuses.values())} cases; statuses {dict(sorted(statuses.items()))}")
    print(f"longest {max(case['seconds'] for case in outcome if case)} s")
    report_violations(violations(history))


if __name__ == "__main__":
    main()
