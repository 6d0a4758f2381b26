"""Sends one POST to an untrusted server, within a time limit and to permitted addresses only.

The sender resolves the name once, checks every address, and connects to one of these addresses. So
a name whose addresses change between check and connection (DNS rebinding) gains nothing. TLS and
the Host header use the name. The sender follows no redirect and discards the response body. One
deadline covers the whole exchange. Knows no jobs and no store.
"""

import queue
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

import httpcore2
from httpcore2 import NetworkBackend, NetworkStream

from core.webhooks.policy import Address, Receiver, WebhookPolicy

TIMEOUT_SECONDS = 15.0
BODY_BYTES = 65_536  # of a response; the rest is not read
MAX_ADDRESSES = 4  # of a name; they are tried one after the other

Resolve = Callable[[str, int], Sequence[Address]]  # raises OSError

_NETWORK_ERRORS = (
    httpcore2.TimeoutException,
    httpcore2.NetworkError,
    httpcore2.ProtocolError,
    OSError,
)


class DeliveryError(Exception):
    """There was no response. The message is for the operator's log only."""


def resolve(host: str, port: int) -> Sequence[Address]:
    """Return all addresses of a name, from the system's resolver. Raises OSError."""
    rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ip_address(address[0]) for *_, address in rows]


class WebhookSender:
    """Sends POST requests under a policy. Thread-safe."""

    def __init__(
        self,
        policy: WebhookPolicy,
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
        resolve: Resolve = resolve,
        network: NetworkBackend | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.timeout_seconds = timeout_seconds
        self._policy, self._resolve = policy, resolve
        self._network = network or httpcore2.SyncBackend()
        self._tls = tls or httpcore2.default_ssl_context()

    def post(
        self, receiver: Receiver, headers: Mapping[str, str], body: str, deadline: float
    ) -> int:
        """Send the body and return the status of the response. Raises DeliveryError.

        deadline: on the monotonic clock.
        """
        origin = httpcore2.Origin(receiver.scheme.encode(), receiver.host.encode(), receiver.port)
        url = httpcore2.URL(
            scheme=origin.scheme,
            host=origin.host,
            port=receiver.port,
            target=receiver.target.encode(),
        )
        network = _CheckedNetwork(self._policy, self._resolve, self._network, deadline)
        connection = httpcore2.HTTPConnection(
            origin, ssl_context=self._tls, network_backend=network
        )
        request = connection.stream("POST", url, headers=[*headers.items()], content=body.encode())
        try:
            with connection, request as response:
                _discard_body(response)
                return response.status
        except _NETWORK_ERRORS as error:
            raise DeliveryError(f"{type(error).__name__} {str(error)[:200]!a}") from error


def _discard_body(response: httpcore2.Response) -> None:
    """Read a usual response to its end, so that the connection closes without a reset.

    Errors do not matter here: the status has already arrived.
    """
    size = 0
    with suppress(*_NETWORK_ERRORS, DeliveryError):
        for chunk in response.iter_stream():
            size += len(chunk)
            if size >= BODY_BYTES:
                return


class _CheckedNetwork(NetworkBackend):
    """A network backend that connects to permitted addresses only, until a deadline.

    It ignores the timeout of each call, because one deadline covers all steps together.
    """

    def __init__(
        self, policy: WebhookPolicy, resolve: Resolve, network: NetworkBackend, deadline: float
    ) -> None:
        self._policy, self._resolve = policy, resolve
        self._network, self._deadline = network, deadline

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> NetworkStream:
        """Connect to the first address that answers. Raises DeliveryError."""
        addresses = self._resolve_in_time(host, port)
        if not addresses:
            raise DeliveryError("The host name does not resolve.")
        if not all(map(self._policy.is_allowed, addresses)):
            raise DeliveryError("The host name has an address that webhooks must not reach.")
        candidates = addresses[:MAX_ADDRESSES]
        for i, address in enumerate(candidates):
            # Each address gets an equal share of the time that is left.
            share = _seconds_left(self._deadline) / (len(candidates) - i)
            with suppress(httpcore2.ConnectError, httpcore2.ConnectTimeout):
                stream = self._network.connect_tcp(
                    str(address), port, share, local_address, socket_options
                )
                return _DeadlineStream(stream, self._deadline)
        raise DeliveryError("The host does not accept a connection.")

    def _resolve_in_time(self, host: str, port: int) -> Sequence[Address]:
        """Resolve on a separate thread, because the system's resolver takes no timeout."""
        results: queue.SimpleQueue[Sequence[Address]] = queue.SimpleQueue()

        def run() -> None:
            try:
                results.put(list(dict.fromkeys(self._resolve(host, port))))
            except (OSError, ValueError):
                results.put([])

        threading.Thread(target=run, name=f"resolve {host}", daemon=True).start()
        try:
            return results.get(timeout=_seconds_left(self._deadline))
        except queue.Empty:
            raise DeliveryError("The host name does not resolve in time.") from None


class _DeadlineStream(NetworkStream):
    """A stream that times out at a deadline, however many pieces its bytes come in."""

    def __init__(self, stream: NetworkStream, deadline: float) -> None:
        self._stream, self._deadline = stream, deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        return self._stream.read(max_bytes, _seconds_left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        self._stream.write(buffer, _seconds_left(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> NetworkStream:
        stream = self._stream.start_tls(ssl_context, server_hostname, _seconds_left(self._deadline))
        return _DeadlineStream(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _seconds_left(deadline: float) -> float:
    """The seconds until the deadline, above 0. Raises DeliveryError after it."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise DeliveryError("The delivery takes too long.")
    return left
