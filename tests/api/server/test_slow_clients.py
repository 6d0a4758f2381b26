"""The time budget of a connection, with a real server and an application that can be slow."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn

from api.server import slow_clients
from api.server.slow_clients import ConnectionLimits, slow_client_protocol

TIMEOUT, RATE = 1.5, 1000.0
LONGER = 2 * TIMEOUT
LARGE = 40_000  # more than the small buffer of a client, less than the server's kernel buffers


async def _answer(send: Any, *bodies: bytes, pause: float = 0) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for body in bodies:
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await asyncio.sleep(pause)
    await send({"type": "http.response.body", "body": b"end"})


async def _application(scope: Any, receive: Any, send: Any) -> None:
    match scope["path"]:
        case "/slow-to-answer":
            await asyncio.sleep(LONGER)
            await _answer(send)
        case "/slow-to-read":
            await asyncio.sleep(LONGER)
            while (await receive()).get("more_body"):
                pass
            await _answer(send)
        case "/read":
            while (await receive()).get("more_body"):
                pass
            await _answer(send)
        case "/stream":
            await _answer(send, b"first", b"second", pause=LONGER)
        case "/large":
            await _answer(send, b"a" * LARGE)
        case "/unread":
            await _answer(send)


@pytest.fixture
def port() -> Iterator[int]:
    server = uvicorn.Server(
        uvicorn.Config(
            _application,
            port=0,
            http=slow_client_protocol(ConnectionLimits(TIMEOUT, RATE)),
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


Send = Callable[..., tuple[int, float]]


@pytest.fixture
def send(port: int) -> Send:
    """Send pieces with a pause after each.

    Returns the status of the response, 0 for none, and the seconds until its end.
    """

    def send_pieces(*pieces: bytes, pause: float = 0.0) -> tuple[int, float]:
        began = time.monotonic()
        received = b""
        with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
            with contextlib.suppress(OSError):
                for piece in pieces:
                    connection.sendall(piece)
                    time.sleep(pause)
            with contextlib.suppress(OSError):
                while not received.endswith(b"end\r\n0\r\n\r\n") and (
                    piece := connection.recv(65536)
                ):
                    received += piece
        return int(received[9:12] or 0), time.monotonic() - began

    return send_pieces


def _post(path: str, length: int) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n".encode()


@pytest.mark.parametrize("path", ["/slow-to-answer", "/stream"])
def test_a_slow_response_does_not_use_up_the_clients_time(send: Send, path: str) -> None:
    status, seconds = send(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())

    assert status == 200
    assert seconds > LONGER - 0.1


def test_a_client_that_waits_for_the_server_is_not_slow(send: Send) -> None:
    """The rest of its body stays in the kernel until the application reads."""
    status, _ = send(_post("/slow-to-read", 8_000_000) + b"a" * 8_000_000)

    assert status == 200


def test_a_body_may_pause_if_its_rate_is_above_the_minimum(send: Send) -> None:
    """Bursts with pauses shorter than the timeout, at three times the minimum rate."""
    burst = int(RATE * 2)
    status, seconds = send(_post("/read", 6 * burst), *([b"a" * burst] * 6), pause=0.6)

    assert status == 200
    assert seconds > LONGER


def test_a_body_below_the_minimum_rate_is_refused(send: Send) -> None:
    status, seconds = send(_post("/read", 10_000), *([b"a" * 100] * 100), pause=0.2)

    assert status in (408, 0)
    assert seconds < 25


def test_a_body_that_exceeds_the_total_time_is_refused(
    send: Send, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow_clients, "MAX_BODY_SECONDS", 2)
    status, seconds = send(_post("/read", 100_000), *([b"a" * 5000] * 20), pause=0.5)

    assert status in (408, 0)
    assert seconds < 9


def test_the_rest_of_a_body_is_not_awaited_after_the_response(send: Send) -> None:
    began = time.monotonic()
    status, _ = send(_post("/unread", 10_000_000), *([b"a" * 5000] * 20), pause=0.5)

    assert status == 200
    assert time.monotonic() - began < 5


def test_a_head_that_arrives_in_small_pieces_times_out(send: Send) -> None:
    """Bytes of a head restore no time: 408 comes one timeout after the first byte."""
    status, seconds = send(b"GET / HTTP/1.1\r\n", *([b"A: bbbbbbbbbb\r\n"] * 15), pause=0.2)

    assert status == 408
    assert seconds < LONGER + 1


def test_a_response_may_be_received_slowly_after_it_is_written(port: int) -> None:
    """It is in the kernel's buffer, so uvicorn takes the connection for idle.

    The client receives it at six times the minimum rate.
    """
    received = 0
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        connection.connect(("127.0.0.1", port))
        connection.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        while received < LARGE:
            piece = connection.recv(600)
            assert piece
            received += len(piece)
            time.sleep(0.1)


def test_a_check_of_a_socket_that_is_closed_counts_what_is_buffered() -> None:
    """The event loop closes the socket before it reports the end of the connection."""

    class Closed(asyncio.Transport):
        def get_write_buffer_size(self) -> int:
            return 5

    with socket.socket() as closed:
        pass
    protocol = object.__new__(slow_clients.SlowClientProtocol)
    protocol.transport = Closed({"socket": closed})  # type: ignore[assignment]

    assert protocol._count_unsent() == 5
