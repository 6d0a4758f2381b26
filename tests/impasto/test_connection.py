"""TLS with a CA of one's own, proxies, and the causes of failures. Every server is on loopback."""

import os
import shutil
import socket
import socketserver
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trustme
from api_process import ApiProcess

from cli.local_service import free_port
from impasto import Client, errors
from impasto import client as client_module
from impasto.connection import _may_use_proxy

NAME = "impasto.test"  # resolves to nothing
PROXY_VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*PROXY_VARIABLES, "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


@pytest.fixture(autouse=True)
def _no_public_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only loopback is resolved, so that no test asks a name server."""
    resolve = socket.getaddrinfo

    def resolve_loopback(host: Any, *args: Any, **more: Any) -> Any:
        if host in ("127.0.0.1", "localhost"):
            return resolve(host, *args, **more)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve_loopback)


@contextmanager
def _serve(handle: Callable[[socket.socket], None]) -> Iterator[int]:
    """Handle each connection in a thread; yields the port."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError):
                handle(self.request)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def _forward(one: socket.socket, other: socket.socket) -> None:
    """Copy bytes in both directions until one side closes."""

    def copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)

    thread = threading.Thread(target=copy, args=(other, one))
    thread.start()
    copy(one, other)
    thread.join()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> Path:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return tmp_path / "ca.pem"


@pytest.fixture
def tls_port(service: ApiProcess, authority: trustme.CA) -> Iterator[int]:
    """The port of a TLS server in front of a real service."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", NAME).configure_cert(context)

    def handle(connection: socket.socket) -> None:
        with (
            context.wrap_socket(connection, server_side=True) as secure,
            socket.create_connection(("127.0.0.1", service.port)) as upstream,
        ):
            _forward(secure, upstream)

    with _serve(handle) as port:
        yield port


@pytest.fixture
def proxied(tls_port: int) -> Iterator[tuple[str, list[str]]]:
    """The URL of a proxy that knows where NAME is, and the targets that it was asked for."""
    asked: list[str] = []

    def handle(connection: socket.socket) -> None:
        asked.append(connection.recv(65536).split(b" ")[1].decode())
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        with socket.create_connection(("127.0.0.1", tls_port)) as upstream:
            _forward(connection, upstream)

    with _serve(handle) as port:
        yield f"http://127.0.0.1:{port}", asked


def _get_presets(url: str, **options: Any) -> int:
    with Client(url, **options) as client:
        return len(client.presets())


def _fail(url: str, **options: Any) -> str:
    with pytest.raises(errors.ServiceUnreachable) as refused:
        _get_presets(url, **options)
    return refused.value.message


# ---------------------------------------------------------------------- certificates


def test_a_certificate_of_an_unknown_ca_is_named_as_the_cause(tls_port: int) -> None:
    message = _fail(f"https://127.0.0.1:{tls_port}")

    assert "its certificate is not trusted (" in message
    assert "--ca-file, or SSL_CERT_FILE" in message


def test_a_ca_is_trusted_by_argument_and_by_file_and_folder_of_the_environment(
    tls_port: int, ca_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"https://127.0.0.1:{tls_port}"
    assert _get_presets(url, ca_file=ca_file) > 0

    monkeypatch.setenv("SSL_CERT_FILE", str(ca_file))
    assert _get_presets(url) > 0
    trustme.CA().cert_pem.write_to_path(str(tmp_path / "other.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "other.pem"))
    assert "certificate" in _fail(url)
    assert _get_presets(url, ca_file=ca_file) > 0, "ca_file counts beside it"

    (tmp_path / "folder").mkdir()
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "folder"))
    assert "certificate" in _fail(url)
    if shutil.which("openssl"):
        command = ["openssl", "x509", "-hash", "-noout", "-in", ca_file]
        name = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        shutil.copy(ca_file, tmp_path / "folder" / f"{name}.0")
        assert _get_presets(url) > 0, "the folder counts beside the file"
        folders = f"/nowhere{os.pathsep}{tmp_path / 'folder'}"
        monkeypatch.setenv("SSL_CERT_DIR", folders)
        assert _get_presets(url) > 0, "it may be a list, as OpenSSL reads it"


def test_a_certificate_for_another_name_is_refused_even_if_its_ca_is_trusted(
    tls_port: int, ca_file: Path
) -> None:
    assert "its certificate is not trusted (Hostname mismatch" in _fail(
        f"https://localhost:{tls_port}", ca_file=ca_file
    )


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SSL_CERT_FILE", "/nowhere"),
        ("SSL_CERT_DIR", "/nowhere"),
        ("SSL_CERT_DIR", f"/nowhere{os.pathsep}/neither"),
        (None, ""),
    ],
)
def test_a_missing_file_of_certificates_is_named(
    variable: str | None, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca_file = None if variable else "/nowhere/ca.pem"
    if variable:
        monkeypatch.setenv(variable, value)
    with pytest.raises(errors.BadSettings, match=variable or "the CA file /nowhere/ca.pem"):
        Client("https://127.0.0.1:1", ca_file=ca_file)


# ---------------------------------------------------------------------- proxies


def test_https_goes_through_the_proxy_of_the_environment(
    proxied: tuple[str, list[str]], ca_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, asked = proxied
    monkeypatch.setenv("HTTPS_PROXY", proxy)

    # The service itself answers: it does not know this name.
    with pytest.raises(errors.BadInput, match="Host header names another host"):
        _get_presets(f"https://{NAME}:8443", ca_file=ca_file)
    assert asked == [f"{NAME}:8443"]


def test_a_host_of_no_proxy_is_connected_directly(
    proxied: tuple[str, list[str]], ca_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, asked = proxied
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    monkeypatch.setenv("NO_PROXY", f"other.test,{NAME}")
    message = _fail(f"https://{NAME}:8443", ca_file=ca_file)

    assert f"answers at https://{NAME}:8443: the name {NAME} is not found" in message
    assert asked == []


def test_the_service_on_this_machine_needs_no_proxy(
    proxied: tuple[str, list[str]], service: ApiProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, asked = proxied
    monkeypatch.setenv("http_proxy", proxy)
    monkeypatch.setenv("ALL_PROXY", proxy)

    assert _get_presets(service.url) > 0
    assert _get_presets(service.url.replace("127.0.0.1", "localhost")) > 0
    assert asked == []
    for address, uses_proxy in (("0.0.0.0", False), ("[::1]", False), (NAME, True)):  # noqa: S104
        assert _may_use_proxy(httpx2.URL(f"http://{address}:8000")) == uses_proxy


def test_a_proxy_that_fails_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    began = time.monotonic()
    with _serve(refuse) as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://user:hunter2@127.0.0.1:{port}")
        refused = _fail(f"https://{NAME}")
    down = _fail(f"https://{NAME}")

    assert time.monotonic() - began < 5, "neither is worth a retry"
    assert f"through the proxy 127.0.0.1:{port}: the proxy refuses (403" in refused
    assert f"through the proxy 127.0.0.1:{port}: the connection is refused" in down
    assert "hunter2" not in refused + down
    advice = f"Check HTTPS_PROXY, HTTP_PROXY or ALL_PROXY, or add {NAME} to NO_PROXY."
    assert refused.endswith(advice)
    assert down.endswith(advice), "to start a service would not help"


def test_a_proxy_that_hangs_is_named_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("impasto.client.PROXY_SECONDS", 0.3)
    over = threading.Event()
    began = time.monotonic()
    with _serve(lambda _: over.wait(60) and None) as port:
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
        message = _fail(f"https://{NAME}")
        over.set()

    assert time.monotonic() - began < 5, "the answer to a request may take a minute"
    assert f"through the proxy 127.0.0.1:{port}: there is no answer in time" in message
    assert f"add {NAME} to NO_PROXY" in message


@pytest.mark.parametrize("proxy", ["ftp://127.0.0.1:1", "socks5://127.0.0.1:1"])
def test_a_proxy_of_an_unsupported_kind_is_named(
    proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    with pytest.raises(errors.BadSettings, match="HTTPS_PROXY"):
        Client(f"https://{NAME}")


# ---------------------------------------------------------------------- causes


def test_each_cause_of_a_failure_is_named(
    service: ApiProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "_timeout", lambda _: 0.3)
    over = threading.Event()
    with _serve(lambda _: over.wait(20) and None) as silent:
        timeout = _fail(f"http://127.0.0.1:{silent}", retry_seconds=0)
        over.set()
    with _serve(lambda connection: connection.close()) as closing:
        closed = _fail(f"http://127.0.0.1:{closing}", retry_seconds=0)

    assert "there is no answer in time" in timeout
    assert "broke off" in closed or "reset" in closed
    assert "the connection is refused" in _fail(f"http://127.0.0.1:{free_port()}")
    assert f"the name {NAME} is not found" in _fail(f"http://{NAME}")
    assert "it speaks no TLS" in _fail(f"https://127.0.0.1:{service.port}")


@pytest.mark.parametrize("url", ["nonsense", "ftp://127.0.0.1", "http://", "http://a:b"])
def test_what_is_no_url_is_refused_by_one_sentence(url: str) -> None:
    with pytest.raises(errors.BadSettings, match=r"is not a URL; give one like http://host:8000"):
        Client(url)


def test_the_commands_take_a_ca_file_and_print_the_cause(
    run_command: Any, tls_port: int, ca_file: Path, at_service: Any
) -> None:
    url = ["--url", f"https://127.0.0.1:{tls_port}"]
    for command in (["watch"], ["cancel"], ["retry"], ["result", "-o", "out.png"]):
        untrusted = run_command(*command, "job_x", *url)
        trusted = run_command(*command, "job_x", *url, "--ca-file", ca_file)

        assert (untrusted.returncode, trusted.returncode) == (1, 2)
        assert "certificate is not trusted" in untrusted.stderr
        assert trusted.stderr == f"impasto: {errors.JobNotFound().message}\n"
