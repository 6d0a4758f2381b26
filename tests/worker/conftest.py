"""An untrusted server, a network that connects to it, and a claimed job."""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import httpcore2
import pytest
from httpcore2 import NetworkStream

from core.jobs.models import Job, JobInput, new_job_id
from core.jobs.store import JobStore
from core.style.spec import StyleSpec
from core.webhooks.policy import Address

Behavior = Callable[[socket.socket, "Request"], None]


@dataclass
class Request:
    """A request as the server received it."""

    line: str
    headers: dict[str, str]
    body: str
    at: float = field(default_factory=time.monotonic)


def answer(status: int, *headers: str, body: str = "") -> Behavior:
    """Answer with this status."""

    def send(connection: socket.socket, _: Request) -> None:
        lines = [f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers, "", body]
        connection.sendall("\r\n".join(lines).encode())

    return send


def hang(connection: socket.socket, _: Request) -> None:
    """Send nothing until the client closes the connection."""
    connection.settimeout(20)
    while connection.recv(1000):
        pass


def reset(connection: socket.socket, _: Request) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


class Server:
    """Listens on a free loopback port. Each request gets the next behavior; the last repeats."""

    def __init__(self, *behaviors: Behavior, tls: Any = None) -> None:
        self.behaviors = list(behaviors) or [answer(200)]
        self.requests: list[Request] = []
        self.connections = 0
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with (
                self._tls.wrap_socket(connection, server_side=True)
                if self._tls
                else connection as stream
            ):
                request = _read_request(stream)
                with self._lock:
                    self.requests.append(request)
                    behave = self.behaviors.pop(0) if len(self.behaviors) > 1 else self.behaviors[0]
                behave(stream, request)
        except OSError:
            pass


def _read_request(connection: socket.socket) -> Request:
    with connection.makefile("rb") as stream:
        line = stream.readline().decode().strip()
        headers = {}
        while row := stream.readline().decode().strip():
            name, _, value = row.partition(":")
            headers[name.lower()] = value.strip()
        return Request(line, headers, stream.read(int(headers.get("content-length", 0))).decode())


class Network(httpcore2.SyncBackend):
    """Connects every address to one loopback port, and records the hosts and the bytes read."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.hosts: list[str] = []
        self.bytes_read = 0

    def connect_tcp(
        self,
        host: str,
        port: int,  # noqa: ARG002
        timeout: float | None = None,
        *_: Any,
    ) -> NetworkStream:
        self.hosts.append(host)
        stream = super().connect_tcp("127.0.0.1", self.port, timeout)
        original = stream.read

        def read(max_bytes: int, timeout: float | None = None) -> bytes:
            data = original(max_bytes, timeout)
            self.bytes_read += len(data)
            return data

        stream.read = read  # type: ignore[method-assign]
        return stream


def names(*addresses: str) -> Callable[[str, int], Sequence[Address]]:
    """Resolve every name to these addresses."""
    return lambda host, port: [ip_address(address) for address in addresses]


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Start servers that close at the end of the test."""
    servers: list[Server] = []

    def start(*behaviors: Behavior, tls: Any = None) -> Server:
        servers.append(Server(*behaviors, tls=tls))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def behave() -> Any:
    """The behaviors of a server, and the fake network."""

    class Behave:
        answer, hang, reset = staticmethod(answer), staticmethod(hang), staticmethod(reset)
        network, names = Network, staticmethod(names)

    return Behave


@pytest.fixture
def claim_job() -> Callable[[JobStore], Job]:
    """Queue a job in a store and claim it with the token `t`."""
    digests = "sha256:" + "a" * 64, "sha256:" + "b" * 64
    job_input = JobInput(content=digests[0], styles=[digests[1]], spec=StyleSpec().model_dump())

    def claim(store: JobStore) -> Job:
        for digest in digests:
            store.reserve(digest)
        store.create(new_job_id(), job_input)
        job = store.claim("t", "worker")
        assert job is not None
        return job

    return claim


@pytest.fixture
def job(store: JobStore, claim_job: Callable[[JobStore], Job]) -> Job:
    """A job that is claimed with the token `t`."""
    return claim_job(store)
