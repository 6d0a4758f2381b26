"""A connection has patience with the client, and none is needed with us. A real server; its application dawdles."""

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

PATIENCE, RATE = 1.5, 1000.0
LONG = 2 * PATIENCE
LARGE = 40_000  # more than the small buffer of a client, less than the kernel takes from us


async def _answer(send: Any, *bodies: bytes, pause: float = 0) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for body in bodies:
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await asyncio.sleep(pause)
    await send({"type": "http.response.body", "body": b"end"})


async def _application(scope: Any, receive: Any, send: Any) -> None:
    match scope["path"]:
        case "/slow-to-answer":
            await asyncio.sleep(LONG)
            await _answer(send)
        case "/slow-to-read":
            await asyncio.sleep(LONG)
            while (await receive()).get("more_body"):
                pass
            await _answer(send)
        case "/read":
            while (await receive()).get("more_body"):
                pass
            await _answer(send)
        case "/stream":
            await _answer(send, b"first", b"second", pause=LONG)
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
            http=slow_client_protocol(ConnectionLimits(PATIENCE, RATE)),
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


Ask = Callable[..., tuple[int, float]]


@pytest.fixture
def ask(port: int) -> Ask:
    """Send pieces with a pause after each; the status of the answer, 0 for none, and how long it took."""

    def send(*pieces: bytes, pause: float = 0.0) -> tuple[int, float]:
        began = time.monotonic()
        received = b""
        with socket.create_connection(("127.0.0.1", port), timeout=20) as line:
            with contextlib.suppress(OSError):
                for piece in pieces:
                    line.sendall(piece)
                    time.sleep(pause)
            with contextlib.suppress(OSError):
                while not received.endswith(b"end\r\n0\r\n\r\n") and (piece := line.recv(65536)):
                    received += piece
        return int(received[9:12] or 0), time.monotonic() - began

    return send


def _post(path: str, length: int) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n".encode()


@pytest.mark.parametrize("path", ["/slow-to-answer", "/stream"])
def test_it_waits_for_us_as_long_as_we_need(ask: Ask, path: str) -> None:
    status, seconds = ask(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())

    assert status == 200
    assert seconds > LONG - 0.1


def test_a_client_that_we_make_wait_is_not_slow(ask: Ask) -> None:
    """The rest of its body is in the kernel until the application reads."""
    status, _ = ask(_post("/slow-to-read", 8_000_000) + b"a" * 8_000_000)

    assert status == 200


def test_a_body_may_pause_and_be_slow_if_not_too_slow(ask: Ask) -> None:
    """Bursts with pauses shorter than the patience, at three times the lowest rate."""
    burst = int(RATE * 2)
    status, seconds = ask(_post("/read", 6 * burst), *([b"a" * burst] * 6), pause=0.6)

    assert status == 200
    assert seconds > LONG


def test_a_body_below_the_lowest_rate_is_cut(ask: Ask) -> None:
    status, seconds = ask(_post("/read", 10_000), *([b"a" * 100] * 100), pause=0.2)

    assert status in (408, 0)
    assert seconds < 25


def test_no_body_takes_longer_than_all_bodies_may(
    ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slow_clients, "MAX_BODY_SECONDS", 2)
    status, seconds = ask(_post("/read", 100_000), *([b"a" * 5000] * 20), pause=0.5)

    assert status in (408, 0)
    assert seconds < 9


def test_a_body_that_was_answered_before_its_end_is_not_waited_for(ask: Ask) -> None:
    began = time.monotonic()
    status, _ = ask(_post("/unread", 10_000_000), *([b"a" * 5000] * 20), pause=0.5)

    assert status == 200
    assert time.monotonic() - began < 5


def test_a_head_in_drops_is_cut_in_time(ask: Ask) -> None:
    """However much it moves: 408 at the end of the patience, not a patience after the last byte."""
    status, seconds = ask(b"GET / HTTP/1.1\r\n", *([b"A: bbbbbbbbbb\r\n"] * 15), pause=0.2)

    assert status == 408
    assert seconds < LONG + 1


def test_an_answer_may_be_taken_slowly_after_we_have_written_it(port: int) -> None:
    """It lies in the kernel, the connection counts as idle, and the client takes it at six times the lowest rate."""
    taken = 0
    with socket.socket() as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.settimeout(20)
        line.connect(("127.0.0.1", port))
        line.sendall(b"GET /large HTTP/1.1\r\nHost: a\r\n\r\n")
        while taken < LARGE:
            piece = line.recv(600)
            assert piece
            taken += len(piece)
            time.sleep(0.1)
