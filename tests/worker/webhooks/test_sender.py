"""One POST to an untrusted server: what it sends, what it refuses, and when it times out."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from typing import Any

import pytest
import trustme

from core.webhooks.policy import Receiver, WebhookPolicy
from worker.webhooks.sender import BODY_BYTES, DeliveryError, WebhookSender

STRICT = WebhookPolicy(enabled=True, allow_http=True, ports=frozenset({80, 443}))
NAME, PUBLIC = "hooks.example.org", "93.184.216.34"
SECONDS = 0.6

HOSTILE = """
    0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.100.100.200 127.0.0.1 127.0.0.53
    127.255.255.254 168.63.129.16 169.254.169.254 172.16.0.1 172.31.255.255 192.0.0.192 192.0.2.1
    192.88.99.1 192.168.0.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 239.255.255.250 240.0.0.1
    255.255.255.255 :: ::1 ::127.0.0.1 ::10.0.0.1 ::ffff:127.0.0.1 ::ffff:169.254.169.254
    ::ffff:8.8.8.8 64:ff9b::127.0.0.1 64:ff9b::10.0.0.1 64:ff9b:1::a00:1 2001:0:a00:1::1 2001:db8::1
    2002:7f00:1:: 2002:a00:1:: 3fff::1 fc00::1 fd00:ec2::254 fe80::1 fec0::1 ff02::1 ff0e::1
""".split()  # noqa: SIM905


def _post(sender: WebhookSender, url: str, policy: WebhookPolicy = STRICT) -> int:
    headers = {"Content-Type": "application/json"}
    return sender.post(
        policy.parse_url(url), headers, '{"a":1}', time.monotonic() + sender.timeout_seconds
    )


def _seconds_of(step: Callable[[], Any]) -> float:
    started = time.monotonic()
    step()
    return time.monotonic() - started


# ---------------------------------------------------------------------- the request


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


def _server_tls(authority: trustme.CA, name: str, requested: list[str | None]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    context.sni_callback = lambda _, server_name, __: requested.append(server_name)
    return context


def test_it_connects_to_the_checked_address_and_uses_the_name_for_tls_and_host(
    serve: Any, behave: Any, authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    """The certificate, SNI and the Host header use the name; the connection uses the address."""
    requested: list[str | None] = []
    server = serve(behave.answer(204), tls=_server_tls(authority, NAME, requested))
    network = behave.network(server.port)
    sender = WebhookSender(STRICT, resolve=behave.names(PUBLIC), network=network, tls=trusting)

    assert _post(sender, f"https://{NAME}/hook?a=b") == 204
    (request,) = server.requests
    assert (request.line, request.headers["host"], request.body) == (
        "POST /hook?a=b HTTP/1.1",
        NAME,
        '{"a":1}',
    )
    assert (requested, network.hosts) == ([NAME], [PUBLIC])


def test_a_certificate_for_another_name_or_of_an_unknown_authority_is_refused(
    serve: Any, behave: Any, authority: trustme.CA, trusting: ssl.SSLContext
) -> None:
    server = serve(tls=_server_tls(authority, "evil.example", []))
    for context, why in ((trusting, "Hostname mismatch"), (None, "certificate verify failed")):
        network = behave.network(server.port)
        sender = WebhookSender(STRICT, resolve=behave.names(PUBLIC), network=network, tls=context)
        with pytest.raises(DeliveryError, match=why):
            _post(sender, f"https://{NAME}/")

    assert server.requests == []


def test_a_proxy_from_the_environment_is_ignored(
    serve: Any, behave: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy would resolve the name again, without our check."""
    proxy, server = serve(), serve()
    for name in (
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
    ):
        monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
    _post(
        WebhookSender(STRICT, resolve=behave.names(PUBLIC), network=behave.network(server.port)),
        f"http://{NAME}/",
    )

    assert (proxy.connections, len(server.requests)) == (0, 1)


def test_an_address_that_does_not_answer_leaves_time_for_the_next_one(
    serve: Any, behave: Any
) -> None:
    server = serve()

    class Network(behave.network):  # type: ignore[misc,name-defined]
        def connect_tcp(self, host: str, port: int, timeout: float | None = None, *_: Any) -> Any:
            if host != PUBLIC:
                import httpcore2

                self.hosts.append(host)
                time.sleep(timeout or 0)
                raise httpcore2.ConnectTimeout
            return super().connect_tcp(host, port, timeout)

    network = Network(server.port)
    sender = WebhookSender(
        STRICT,
        timeout_seconds=1,
        resolve=behave.names("2606:4700::1", "1.1.1.1", PUBLIC),
        network=network,
    )

    assert _post(sender, f"http://{NAME}/") == 200
    assert network.hosts == ["2606:4700::1", "1.1.1.1", PUBLIC]


# ---------------------------------------------------------------------- refused addresses


@pytest.mark.parametrize("address", HOSTILE)
def test_a_name_with_a_hostile_address_gets_no_connection(
    address: str, serve: Any, behave: Any
) -> None:
    """Alone, and beside a public address. This network would connect any address to the canary."""
    canary = serve()
    network = behave.network(canary.port)
    for addresses in ((address,), (PUBLIC, address), (address, PUBLIC)):
        sender = WebhookSender(STRICT, resolve=behave.names(*addresses), network=network)
        with pytest.raises(DeliveryError, match="must not reach"):
            _post(sender, f"http://{NAME}/")

    assert (network.hosts, canary.connections) == ([], 0)


def test_a_name_that_changes_its_address_after_the_check_gains_nothing(
    serve: Any, behave: Any
) -> None:
    """The sender resolves the name once and connects to that answer."""
    server = serve()
    network, answers = behave.network(server.port), [PUBLIC, "127.0.0.1", "127.0.0.1"]
    sender = WebhookSender(STRICT, resolve=lambda *_: [ip_address(answers.pop(0))], network=network)

    assert _post(sender, f"http://{NAME}/") == 200
    assert (network.hosts, len(answers)) == ([PUBLIC], 2)
    with pytest.raises(DeliveryError, match="must not reach"):
        _post(sender, f"http://{NAME}/")


def test_loopback_is_refused_with_the_systems_resolver(serve: Any) -> None:
    """Also in notations that only the system parses, should one ever pass the check of the URL."""
    canary = serve()
    policy = WebhookPolicy(
        enabled=True, ports=frozenset({canary.port}), allow_http=True, allow_private=True
    )
    strict = WebhookPolicy(enabled=True, ports=frozenset({canary.port}), allow_http=True)
    hosts = (
        "localhost 127.0.0.1 127.0.0.2 ::1 ::ffff:127.0.0.1 0.0.0.0 0 127.1 0x7f.1 0x7f000001"
        " 2130706433 0177.0.0.1"
    )
    for host in hosts.split():
        with pytest.raises(DeliveryError):
            WebhookSender(strict).post(
                Receiver("http", host, canary.port, "/"), {}, "", time.monotonic() + 5
            )

    assert canary.connections == 0
    assert _post(WebhookSender(policy), f"http://localhost:{canary.port}/", policy) == 200


def test_a_redirect_is_not_followed(serve: Any, behave: Any) -> None:
    canary = serve()
    for status in (301, 302, 303, 307, 308):
        server = serve(behave.answer(status, f"Location: http://127.0.0.1:{canary.port}/"))
        network = behave.network(server.port)
        assert (
            _post(
                WebhookSender(STRICT, resolve=behave.names(PUBLIC), network=network),
                f"http://{NAME}/",
            )
            == status
        )
        assert (network.hosts, len(server.requests)) == ([PUBLIC], 1)

    assert canary.connections == 0


@pytest.mark.parametrize(
    "error", [OSError("no"), UnicodeError("label too long"), socket.gaierror(-2, "no")]
)
def test_a_name_that_does_not_resolve_is_a_delivery_error(error: Exception, behave: Any) -> None:
    def resolve(*_: Any) -> Any:
        raise error

    with pytest.raises(DeliveryError, match="does not resolve"):
        _post(WebhookSender(STRICT, resolve=resolve), f"http://{NAME}/")


# ---------------------------------------------------------------------- limits of time and size


def _drip(head: bytes, piece: bytes) -> Any:
    def behave(connection: socket.socket, _: Any) -> None:
        connection.sendall(head)
        while True:
            connection.sendall(piece)
            time.sleep(0.05)

    return behave


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"", b""),
        (b"", b"H"),
        (b"HTTP/1.1 200 OK\r\n", b"X-A: 1\r\n"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nX: ", b"a" * 60_000),
        (b"\x00\xff\x00 nonsense", b""),
    ],
    ids=[
        "silence",
        "one byte at a time",
        "endless headers",
        "endless 100 Continue",
        "an endless header",
        "no HTTP",
    ],
)
def test_an_endless_or_missing_response_times_out(
    head: bytes, piece: bytes, serve: Any, behave: Any
) -> None:
    network = behave.network(serve(_drip(head, piece)).port)
    sender = WebhookSender(
        STRICT, timeout_seconds=SECONDS, resolve=behave.names(PUBLIC), network=network
    )

    def step() -> None:
        with pytest.raises(DeliveryError):
            _post(sender, f"http://{NAME}/")

    assert _seconds_of(step) < SECONDS + 0.3


@pytest.mark.parametrize("piece", [b"a", b"a" * 100_000], ids=["slow", "fast"])
def test_an_endless_body_is_cut_off_and_the_status_counts(
    piece: bytes, serve: Any, behave: Any
) -> None:
    network = behave.network(serve(_drip(b"HTTP/1.1 200 OK\r\n\r\n", piece)).port)
    sender = WebhookSender(
        STRICT, timeout_seconds=SECONDS, resolve=behave.names(PUBLIC), network=network
    )

    assert _seconds_of(lambda: _post(sender, f"http://{NAME}/")) < SECONDS + 0.3
    assert network.bytes_read <= 2 * BODY_BYTES, "at most one read beyond the limit"


def test_a_slow_resolver_times_out(behave: Any) -> None:
    released = threading.Event()

    def resolve(*_: Any) -> Any:
        released.wait(20)
        return []

    def step() -> None:
        with pytest.raises(DeliveryError, match="in time"):
            _post(
                WebhookSender(STRICT, timeout_seconds=SECONDS, resolve=resolve), f"http://{NAME}/"
            )

    assert _seconds_of(step) < SECONDS + 0.3
    released.set()


def test_nothing_is_sent_after_the_deadline(serve: Any, behave: Any) -> None:
    """The dispatcher may have been suspended until another one could claim the delivery."""
    server = serve()
    sender = WebhookSender(
        STRICT, resolve=behave.names(PUBLIC), network=behave.network(server.port)
    )
    with pytest.raises(DeliveryError, match="too long"):
        sender.post(STRICT.parse_url(f"http://{NAME}/"), {}, "{}", time.monotonic())

    assert server.connections == 0


@pytest.fixture
def mute() -> Iterator[int]:
    """The port of a listener that accepts and sends nothing, not even a TLS handshake."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_tls_handshake_that_does_not_end_times_out(mute: int, behave: Any) -> None:
    sender = WebhookSender(
        STRICT, timeout_seconds=SECONDS, resolve=behave.names(PUBLIC), network=behave.network(mute)
    )

    def step() -> None:
        with pytest.raises(DeliveryError):
            _post(sender, f"https://{NAME}/")

    assert _seconds_of(step) < SECONDS + 0.3
