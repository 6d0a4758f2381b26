"""One POST to a stranger's server. Nothing that this server says or does can hurt us or show us what we must not see.

Its name is looked up once, every address found is checked, and one of the very addresses that were checked is connected
to, so that a name which changes its mind between check and connection gains nothing. TLS and the Host header know the
name. Redirects are not followed, the answer's body is dropped, the whole takes so many seconds and no more. Knows no
jobs and no store.
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

SECONDS = 15.0
BODY_BYTES = 65_536  # of an answer
MAX_ADDRESSES = 4  # of a name, to be tried one after the other

Resolve = Callable[[str, int], Sequence[Address]]  # raises OSError


class DeliveryError(Exception):
    """No answer. Its words are for the log of the service's operator, and for nobody else."""


def resolve(host: str, port: int) -> Sequence[Address]:
    """All addresses of a name, as the system knows them. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ip_address(address[0]) for *_, address in found]


class WebhookSender:
    """How to send. Called from many threads."""

    def __init__(
        self,
        policy: WebhookPolicy,
        *,
        seconds: float = SECONDS,
        resolve: Resolve = resolve,
        network: NetworkBackend | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.seconds = seconds
        self._policy, self._resolve = policy, resolve
        self._network = network or httpcore2.SyncBackend()
        self._tls = tls or httpcore2.default_ssl_context()

    def post(self, receiver: Receiver, headers: Mapping[str, str], body: str, until: float) -> int:
        """The status of the answer. until: by the monotonic clock. Raises Undelivered."""
        origin = httpcore2.Origin(receiver.scheme.encode(), receiver.host.encode(), receiver.port)
        url = httpcore2.URL(
            scheme=origin.scheme,
            host=origin.host,
            port=receiver.port,
            target=receiver.target.encode(),
        )
        guarded = _Guarded(self._policy, self._resolve, self._network, until)
        connection = httpcore2.HTTPConnection(
            origin, ssl_context=self._tls, network_backend=guarded
        )
        try:
            with (
                connection,
                connection.stream(
                    "POST", url, headers=[*headers.items()], content=body.encode()
                ) as answer,
            ):
                _drop(answer)
                return answer.status
        except (
            httpcore2.TimeoutException,
            httpcore2.NetworkError,
            httpcore2.ProtocolError,
            OSError,
        ) as error:
            raise DeliveryError(f"{type(error).__name__} {str(error)[:200]!a}") from error


def _drop(answer: httpcore2.Response) -> None:
    """Read what a usual answer has, so that the connection ends in peace. What it says is known by its status."""
    size = 0
    with suppress(
        httpcore2.TimeoutException,
        httpcore2.NetworkError,
        httpcore2.ProtocolError,
        OSError,
        DeliveryError,
    ):
        for chunk in answer.iter_stream():
            size += len(chunk)
            if size >= BODY_BYTES:
                return


class _Guarded(NetworkBackend):
    """A network of nothing but permitted addresses, until a time."""

    def __init__(
        self, policy: WebhookPolicy, resolve: Resolve, network: NetworkBackend, until: float
    ) -> None:
        self._policy, self._resolve, self._network, self._until = policy, resolve, network, until

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ARG002 - here and below: there is one for all steps together
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> NetworkStream:
        """Raises Undelivered, ConnectError, ConnectTimeout."""
        addresses = self._addresses(host, port)
        if not addresses:
            raise DeliveryError("its name is not known")
        if not all(map(self._policy.may_reach, addresses)):
            raise DeliveryError("it has an address that webhooks must not reach")
        tried = addresses[:MAX_ADDRESSES]
        for i, address in enumerate(tried):
            share = _left(self._until) / (len(tried) - i)
            with suppress(httpcore2.ConnectError, httpcore2.ConnectTimeout):
                stream = self._network.connect_tcp(
                    str(address), port, share, local_address, socket_options
                )
                return _Timed(stream, self._until)
        raise DeliveryError("nobody answers there")

    def _addresses(self, host: str, port: int) -> Sequence[Address]:
        """On a thread of its own: the system's look-up knows no limit of time."""
        answer: queue.SimpleQueue[Sequence[Address]] = queue.SimpleQueue()

        def ask() -> None:
            try:
                answer.put(list(dict.fromkeys(self._resolve(host, port))))
            except (OSError, ValueError):
                answer.put([])

        threading.Thread(target=ask, name=f"look up {host}", daemon=True).start()
        try:
            return answer.get(timeout=_left(self._until))
        except queue.Empty:
            raise DeliveryError("its name is not found in time") from None


class _Timed(NetworkStream):
    """A stream that ends at a time, however many pieces its bytes come in."""

    def __init__(self, stream: NetworkStream, until: float) -> None:
        self._stream, self._until = stream, until

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002
        return self._stream.read(max_bytes, _left(self._until))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ARG002
        self._stream.write(buffer, _left(self._until))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ARG002
    ) -> NetworkStream:
        return _Timed(
            self._stream.start_tls(ssl_context, server_hostname, _left(self._until)), self._until
        )

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(until: float) -> float:
    """Seconds, above 0. Raises Undelivered."""
    left = until - time.monotonic()
    if left <= 0:
        raise DeliveryError("it takes too long")
    return left
