"""Which requests are answered from the cache of responses, with a real server."""

import asyncio
import gc
import queue
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http import httptools_impl

from api.http.shared_response import CachePolicy, SharedResponse
from api.server import request_cycle, response_cache
from api.server.slow_clients import ConnectionLimits, slow_client_protocol

REQUEST = "GET /v1/jobs?limit=5 HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer b\r\n\r\n"


class Server:
    """An application whose answers are numbered and may be cached, except those of /slow."""

    def __init__(self) -> None:
        self.port = 0
        self.answered = 0
        self.expired: queue.Queue[int] = queue.Queue()
        self.may_answer_slowly = threading.Event()
        self.seconds, self.is_valid = 60.0, True

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            await asyncio.to_thread(self.may_answer_slowly.wait)
        self.answered += 1
        body = b"%5d" % self.answered
        headers = [(b"content-length", b"5")]
        policy = CachePolicy(self.seconds, lambda: self.is_valid, self.expired.put)
        cache = None if scope["path"] == "/slow" else policy
        await SharedResponse(503, headers, body).send_to(scope, receive, send, [], cache)

    def read_all(self, request: str) -> bytes:
        """Return all bytes that the server sends until it closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(request.encode())
            return b"".join(iter(lambda: connection.recv(65536), b""))

    def ask(self, *requests: str, source: str = "127.0.0.1") -> list[int]:
        """Send the requests on one connection; return the numbers of the answers."""
        with socket.create_connection(
            ("127.0.0.1", self.port), timeout=10, source_address=(source, 0)
        ) as connection:
            connection.sendall("".join(requests).encode())
            received = b""
            while len(numbers := re.findall(rb"\r\n\r\n([ \d]{5})", received)) < len(requests):
                block = connection.recv(65536)
                assert block, received
                received += block
        return [int(number) for number in numbers]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(httptools_impl, "RequestResponseCycle", httptools_impl.RequestResponseCycle)
    request_cycle.install()
    running = Server()
    protocol = slow_client_protocol(ConnectionLimits())
    config = uvicorn.Config(
        running.app,
        interface="asgi3",
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        date_header=False,
        timeout_keep_alive=1,
        proxy_headers=False,
    )
    uvicorn_server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running.port = listener.getsockname()[1]
        thread = threading.Thread(target=uvicorn_server.run, args=([listener],))
        thread.start()
        yield running
        running.may_answer_slowly.set()
        uvicorn_server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def test_the_same_request_gets_the_same_response(server: Server) -> None:
    assert server.ask(REQUEST) == [1]
    assert server.ask(REQUEST, REQUEST) == [1, 1]
    assert server.ask(REQUEST) == [1]
    assert server.answered == 1


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("GET", "HEAD"),
        ("GET", "DELETE"),
        ("/v1/jobs", "/v1/system"),
        ("limit=5", "limit=6"),
        ("limit=5", ""),
        ("HTTP/1.1", "HTTP/1.0"),
        ("Bearer b", "Bearer c"),
        ("Authorization: Bearer b\r\n", ""),
        ("\r\n\r\n", "\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n"),
        ("\r\n\r\n", "\r\nAuthorization: Bearer b\r\n\r\n"),
        ("Host: a\r\nAuthorization: Bearer b", "Authorization: Bearer b\r\nHost: a"),
    ],
)
def test_another_request_goes_to_the_application(server: Server, old: str, new: str) -> None:
    assert server.ask(REQUEST) == [1]
    assert server.ask(REQUEST.replace(old, new)) == [2]
    assert server.ask(REQUEST) == [1]


def test_the_same_request_from_another_address_goes_to_the_application(server: Server) -> None:
    assert server.ask(REQUEST) == [1]
    assert server.ask(REQUEST, source="127.0.0.2") == [2]


def test_after_its_time_the_application_answers_and_knows_the_count(server: Server) -> None:
    server.seconds = 1.0
    assert server.ask(REQUEST) == [1]
    assert server.ask(*[REQUEST] * 3) == [1] * 3
    assert server.expired.get(timeout=10) == 3
    assert server.ask(REQUEST) == [2]


def test_a_response_that_is_no_longer_valid_is_not_sent(server: Server) -> None:
    assert server.ask(REQUEST) == [1]
    server.is_valid = False
    assert server.ask(REQUEST) == [2]


@pytest.mark.parametrize("part", ["Bearer b", "limit=5"])
def test_a_response_to_a_large_request_is_not_kept(server: Server, part: str) -> None:
    large = REQUEST.replace(part, part + "0" * response_cache.MAX_HEAD_BYTES)
    assert server.ask(large) == [1]
    assert server.ask(large) == [2]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("\r\n\r\n", "\r\nConnection: close\r\n\r\n"),
        ("HTTP/1.1", "HTTP/1.0"),
        ("\r\n\r\n", "\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n"),
    ],
    ids=["close", "1.0", "upgrade"],
)
def test_the_connection_closes_as_after_the_first_response(
    server: Server, old: str, new: str
) -> None:
    request = REQUEST.replace(old, new)
    answers = [server.read_all(request) for _ in range(2)]

    assert b"connection: close\r\n" in answers[0]
    assert re.sub(rb"[ \d]{5}$", b"", answers[0]) == re.sub(rb"[ \d]{5}$", b"", answers[1])


@pytest.mark.parametrize("body", ["", "Content-Length: 3\r\n"])
@pytest.mark.parametrize("expect", ["", "Expect: 100-continue\r\n"])
def test_a_body_is_skipped(server: Server, body: str, expect: str) -> None:
    request = REQUEST.replace("\r\n\r\n", f"\r\n{body}{expect}\r\n") + "abc" * bool(body)
    assert server.ask(request) == [1]
    assert server.ask(request, request, REQUEST) == [1, 1, 1 if not body + expect else 2]


def test_a_slow_response_after_one_from_the_cache_outlives_the_keep_alive_time(
    server: Server,
) -> None:
    assert server.ask(REQUEST) == [1]
    threading.Timer(2.0, server.may_answer_slowly.set).start()
    assert server.ask(REQUEST, REQUEST.replace("/v1/jobs", "/slow")) == [1, 2]


def test_connections_leave_no_cyclic_garbage(server: Server) -> None:
    gc.collect()
    gc.disable()
    try:
        assert server.ask(REQUEST) == [1]
        before = _count_protocols()
        for _ in range(20):
            assert server.ask(REQUEST) == [1]
        until = time.monotonic() + 10
        while _count_protocols() > before and time.monotonic() < until:
            time.sleep(0.05)
        assert _count_protocols() <= before
    finally:
        gc.enable()


def _count_protocols() -> int:
    return sum(type(one).__name__ == "SlowClientProtocol" for one in gc.get_objects())


def test_many_requests_behind_a_slow_one_get_their_responses(server: Server) -> None:
    slow = REQUEST.replace("/v1/jobs", "/slow")
    assert server.ask(REQUEST) == [1]
    threading.Timer(0.2, server.may_answer_slowly.set).start()
    # More than Python's calls may be deep.
    numbers = server.ask(slow, *[REQUEST] * 2000)
    assert len(numbers) == 2001
    assert numbers[-1] == 1


def test_only_so_many_responses_are_kept(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_cache, "MAX_ENTRIES", 1)
    other = REQUEST.replace("Bearer b", "Bearer c")
    assert server.ask(REQUEST, other, other, REQUEST) == [1, 2, 3, 1]
