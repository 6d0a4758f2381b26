"""Encoded responses and files are sent as uvicorn sends the same bytes, with a real server."""

import asyncio
import http.client
import re
import socket
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.flow_control import FlowControl

from api.http.shared_response import ENCODED, ZERO_COPY, SharedResponse
from api.server import request_cycle
from api.server.request_cycle import RequestCycle
from api.server.slow_clients import ConnectionLimits, slow_client_protocol

BODY = b'{"a": 1}'
HEADERS = [(b"content-length", b"8"), (b"content-type", b"application/json"), (b"etag", b'"1"')]
SHARED, KNOWN = SharedResponse(200, HEADERS, BODY), SharedResponse(304, HEADERS[2:])
DATA = bytes(range(256)) * 20_000  # 5 MB: more than a connection takes at once


async def _fill_transport(transport: Any) -> None:
    """Write until the connection takes no more, so that a few bytes wait in the transport."""
    while not transport.get_write_buffer_size():
        transport.write(b"." * 8192)
        await asyncio.sleep(0)


async def _send_file(send: Any, path: str) -> None:
    if path == "/waiting":
        await _fill_transport(send.__self__.transport)
    with tempfile.TemporaryFile() as file:
        file.write(DATA[:-1] if path == "/shorter" else DATA)
        file.flush()
        size = len(DATA) - 10 if path == "/longer" else len(DATA)
        headers = [(b"content-length", str(size).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": ZERO_COPY, "file": file.fileno(), "count": len(DATA)})


async def _application(scope: Any, receive: Any, send: Any) -> None:
    assert {ENCODED, ZERO_COPY} <= scope["extensions"].keys()
    path, own = scope["path"], [(b"x-request-id", b"abc")]
    response = KNOWN if path.endswith("known") else SHARED
    if path.startswith("/usual"):
        await response.send_to({**scope, "extensions": {}}, receive, send, own)
    elif path.startswith("/encoded"):
        await response.send_to(scope, receive, send, own)
    else:
        await _send_file(send, path)


@pytest.fixture
def port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(httptools_impl, "RequestResponseCycle", httptools_impl.RequestResponseCycle)
    request_cycle.install()
    server = uvicorn.Server(
        uvicorn.Config(
            _application,
            http=slow_client_protocol(ConnectionLimits()),
            ws="none",
            lifespan="off",
            log_config=None,
        )
    )
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def _exchange(port: int, request: str) -> bytes:
    """Return all bytes that the server sends until it closes, without the date."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request.encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    return re.sub(rb"date: [^\r]*\r\n", b"date\r\n", answer)


@pytest.mark.parametrize("name", ["", "-known"])
@pytest.mark.parametrize(
    "form",
    [
        "GET {} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        "GET {} HTTP/1.0\r\n\r\n",
        "GET {0} HTTP/1.1\r\nHost: a\r\n\r\n"
        "GET {0} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    ],
    ids=["close", "1.0", "pipelined"],
)
def test_an_encoded_response_has_the_same_bytes(port: int, form: str, name: str) -> None:
    encoded, usual = (_exchange(port, form.format(f"/{way}{name}")) for way in ("encoded", "usual"))

    assert encoded == usual
    assert b"date\r\n" in encoded
    assert encoded.count(b"HTTP/1.1 ") == form.count("GET")


def test_a_file_arrives_whole_and_the_connection_goes_on(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    for path, expected in (("/file", DATA), ("/encoded", BODY), ("/file", DATA)):
        connection.request("GET", path)
        assert connection.getresponse().read() == expected
    connection.close()


def test_a_slow_reader_gets_the_file_while_others_are_answered(port: int) -> None:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(10)
    connection.connect(("127.0.0.1", port))
    with connection:
        connection.sendall(b"GET /file HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        received = connection.recv(100)
        assert BODY in _exchange(port, "GET /encoded HTTP/1.0\r\n\r\n")
        received += b"".join(iter(lambda: connection.recv(3000), b""))

    assert received.partition(b"\r\n\r\n")[2] == DATA


def test_a_file_does_not_overtake_what_waits_in_the_transport(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection has room as soon as the client reads, before the transport writes again."""
    may_read, has_read = threading.Event(), threading.Event()
    sendfile, drain = RequestCycle._sendfile, FlowControl.drain

    async def drain_while_the_client_reads(flow: FlowControl) -> None:
        may_read.set()
        await drain(flow)

    def sendfile_after_the_client_has_read(cycle: RequestCycle, *arguments: int) -> int:
        may_read.set()
        assert has_read.wait(10)
        return sendfile(cycle, *arguments)

    monkeypatch.setattr(FlowControl, "drain", drain_while_the_client_reads)
    monkeypatch.setattr(RequestCycle, "_sendfile", sendfile_after_the_client_has_read)
    received = bytearray()
    with socket.create_connection(("127.0.0.1", port), timeout=0.2) as connection:
        connection.sendall(b"GET /waiting HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert may_read.wait(10)
        while True:
            try:
                block = connection.recv(65536)
            except TimeoutError:  # everything is read that the connection had
                has_read.set()
                continue
            if not block:
                break
            received += block

    head, _, body = received.lstrip(b".").partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert body == DATA


@pytest.mark.parametrize("path", ["/shorter", "/longer"])
def test_a_file_of_another_length_ends_the_connection(port: int, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path)
    with pytest.raises((http.client.IncompleteRead, http.client.RemoteDisconnected)):
        connection.getresponse().read()
    connection.close()
