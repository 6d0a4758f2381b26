"""Timeouts for a silent server, and the circuit breaker."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis
import trustme
from redis._parsers import BaseParser

from core import errors
from core.auth.api_keys import ApiKeyStore
from core.celery_app import make_celery, notify_workers
from core.jobs.models import LOCAL_OWNER, new_job_id
from core.jobs.store import JobStore
from core.redis_client import CircuitBreaker


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of a server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield f"redis://127.0.0.1:{server.getsockname()[1]}/0"


def _seconds_until_unavailable(call: Callable[[], object]) -> float:
    started = time.monotonic()
    with pytest.raises(errors.StoreUnavailable):
        call()
    return time.monotonic() - started


def test_a_call_to_a_silent_server_times_out_within_two_seconds(silent: str) -> None:
    store = JobStore(silent)

    assert 1 < _seconds_until_unavailable(store.ping) < 2
    assert 1 < _seconds_until_unavailable(store.ping) < 2  # without a cooldown every call waits


def test_after_a_timeout_further_calls_fail_at_once(silent: str) -> None:
    for call in (
        JobStore(silent, cooldown_seconds=60).ping,
        ApiKeyStore(silent, cooldown_seconds=60).list,
    ):
        assert 1 < _seconds_until_unavailable(call) < 2
        assert _seconds_until_unavailable(call) < 0.2


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("MISCONF Valkey is configured to save RDB snapshots, but it cannot", "disk is full"),
        ("BUSY Valkey is busy running a script.", "busy with a script"),
        ("NOREPLICAS Not enough good replicas to write.", "Too few of its replicas"),
        ("UNBLOCKED force unblock from blocking operation", "read-only replica"),
        ("ERR DB index is out of range", "no database"),
        ("ERR ACL failure in script: User u has no permissions", "forbids a command"),
        ("READONLY You can't write against a read only replica.", "read-only replica"),
        ("MASTERDOWN Link with MASTER is down", "lost its primary"),
        ("LOADING Valkey is loading the dataset in memory", "loading its data"),
        ("OOM command not allowed when used memory > 'maxmemory'.", "memory is full"),
        ("TRYAGAIN Multiple keys request during rehashing of slot", "Redis Cluster"),
        ("ASK 3999 127.0.0.1:6381", "Redis Cluster"),
        ("CROSSSLOT Keys in request don't hash to the same slot", "Redis Cluster"),
        ("CLUSTERDOWN The cluster is down", "Redis Cluster"),
    ],
)
@pytest.mark.parametrize("is_in_pipeline", [False, True])
def test_an_answer_that_means_an_outage_is_named(
    answer: str, reason: str, is_in_pipeline: bool
) -> None:
    """An error that is no outage counts as a bug: 500, and a finished job fails."""
    error: Any = BaseParser.parse_error(answer)
    if is_in_pipeline:
        redis.client.Pipeline.annotate_exception(None, error, 2, ["SET", "a", "1"])  # type: ignore[arg-type]

    with pytest.raises(errors.StoreUnavailable, match=reason), CircuitBreaker():
        raise error


@pytest.mark.parametrize("answer", ["WRONGTYPE Operation against a key", "BUSYKEY exists", "ERR x"])
def test_an_answer_that_means_a_bug_is_no_outage(answer: str) -> None:
    error: Any = BaseParser.parse_error(answer)
    redis.client.Pipeline.annotate_exception(None, error, 2, ["SET", "a", "BUSY MISCONF"])  # type: ignore[arg-type]

    with pytest.raises(redis.ResponseError), CircuitBreaker():
        raise error


def _is_call_made(breaker: CircuitBreaker, error: BaseException | None = None) -> bool:
    """Whether the breaker lets the call through, which then raises this error."""
    made = False
    try:
        with breaker:
            made = True
            if error:
                raise error
    except (errors.StoreUnavailable, redis.ResponseError):
        pass
    return made


def test_one_call_per_cooldown_tries_again_until_one_is_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now, timeout = 100.0, redis.TimeoutError("no answer")
    breaker = CircuitBreaker(cooldown_seconds=0.5)
    monkeypatch.setattr("core.redis_client.time.monotonic", lambda: now)

    assert _is_call_made(breaker, timeout)
    assert not _is_call_made(breaker)
    now += 0.6
    assert _is_call_made(breaker, timeout)
    assert not _is_call_made(breaker)
    now += 0.6
    with breaker:  # while this call waits for its answer
        assert not _is_call_made(breaker)
    assert _is_call_made(breaker)  # after an answer, every call


@pytest.mark.parametrize(
    "error", [redis.ConnectionError("refused"), redis.ResponseError("WRONGTYPE"), None]
)
def test_only_a_timeout_opens_the_circuit(error: BaseException | None) -> None:
    breaker = CircuitBreaker(cooldown_seconds=60)

    assert _is_call_made(breaker, error)
    assert _is_call_made(breaker, error)


def test_without_a_cooldown_every_call_is_made() -> None:
    breaker = CircuitBreaker()

    assert _is_call_made(breaker, redis.TimeoutError("no answer"))
    assert _is_call_made(breaker)


# ---------------------------------------------------------------------- the message of an outage


def _serve_once_each(answer: bytes) -> socket.socket:
    """Start a server that answers each connection with these bytes and closes it."""
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                with server.accept()[0] as client:
                    client.recv(100)
                    client.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return server


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "is no Redis server"),
        (b"\x15\x03\x03\x00\x02\x02\x46", "expects TLS"),  # a TLS alert
        (b"", "expects TLS"),
    ],
    ids=["HTTP", "TLS", "closed"],
)
def test_a_server_that_speaks_another_protocol_is_named(answer: bytes, reason: str) -> None:
    with _serve_once_each(answer) as server:
        store = JobStore(f"redis://127.0.0.1:{server.getsockname()[1]}/0")
        with pytest.raises(errors.StoreUnavailable, match=reason):
            store.ping()


def test_a_process_that_finds_no_redis_server_ends_at_its_start() -> None:
    with _serve_once_each(b"HTTP/1.1 400 Bad Request\r\n\r\n") as server:
        store = JobStore(f"redis://127.0.0.1:{server.getsockname()[1]}/0")
        with pytest.raises(errors.BadSettings, match="IMPASTO_REDIS_URL: There is no Redis server"):
            store.monitor.require_usable()


def test_an_unknown_host_and_a_closed_port_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(errors.StoreUnavailable, match="refuses the connection"):
        JobStore("redis://127.0.0.1:1/0").ping()

    def resolve(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(errors.StoreUnavailable, match="host name in IMPASTO_REDIS_URL is not"):
        JobStore("redis://store.example:6379/0").ping()


def test_a_command_that_is_forbidden_inside_a_function_is_named(own_valkey: Any) -> None:
    """The server reports it without the code NOPERM."""
    with redis.Redis(port=own_valkey.port) as admin:
        rules = ("reset", "on", ">word", "~*", "&*", "+@all", "-hget", "-hmget", "-hgetall")
        admin.execute_command("ACL", "SETUSER", "limited", *rules)
    store = JobStore(own_valkey.url.replace("redis://", "redis://limited:word@"))

    with pytest.raises(errors.StoreUnavailable, match="forbids a command") as raised:
        store.cancel(new_job_id(), LOCAL_OWNER)
    assert not isinstance(raised.value.__cause__, redis.exceptions.NoPermissionError)


class TlsProxy:
    """Terminates TLS before a store, as managed services do."""

    def __init__(
        self, port: int, authority: trustme.CA, name: str, *, verify: bool = False
    ) -> None:
        self._target, self._context = port, ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(name).configure_cert(self._context)
        if verify:
            authority.configure_trust(self._context)
            self._context.verify_mode = ssl.CERT_REQUIRED
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client = self._listener.accept()[0]
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with plain, suppress(OSError):
            client = self._context.wrap_socket(plain, server_side=True)
            with client, socket.create_connection(("127.0.0.1", self._target)) as server:
                back = threading.Thread(target=self._copy, args=(server, client), daemon=True)
                back.start()
                self._copy(client, server)
                server.shutdown(socket.SHUT_RDWR)
                back.join()

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)

    def close(self) -> None:
        self._listener.close()


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture
def tls(valkey: Any, authority: trustme.CA) -> Iterator[Callable[..., int]]:
    """Return a function that starts a TLS proxy before the store and returns its port."""
    proxies: list[TlsProxy] = []

    def start(name: str = "127.0.0.1", *, verify: bool = False) -> int:
        proxies.append(TlsProxy(valkey.port, authority, name, verify=verify))
        return proxies[-1].port

    yield start
    for proxy in proxies:
        proxy.close()


@pytest.fixture
def ca_file(authority: trustme.CA, tmp_path: Path) -> Path:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return tmp_path / "ca.pem"


def test_the_store_works_over_tls(tls: Callable[..., int], ca_file: Path) -> None:
    JobStore(f"rediss://127.0.0.1:{tls()}/0?ssl_ca_certs={ca_file}").ping()


def test_a_tls_failure_names_the_certificate(
    valkey: Any, tls: Callable[..., int], ca_file: Path
) -> None:
    another_name = f"rediss://127.0.0.1:{tls('store.example')}/0?ssl_ca_certs={ca_file}"
    for url in (f"rediss://127.0.0.1:{tls()}/0", another_name):  # the first: an unknown authority
        with pytest.raises(errors.StoreUnavailable, match="Its certificate cannot be verified"):
            JobStore(url).ping()
    wants_ours = f"rediss://127.0.0.1:{tls(verify=True)}/0?ssl_ca_certs={ca_file}"
    for url in (wants_ours, f"rediss://127.0.0.1:{valkey.port}/0"):  # the second: no TLS at all
        with pytest.raises(errors.StoreUnavailable, match="TLS fails; check its certificate"):
            JobStore(url).ping()


def test_the_broker_is_verified_like_the_store(
    tls: Callable[..., int], ca_file: Path, valkey: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both use the same URL; a broker that is not verified would receive the password."""
    url = f"rediss://127.0.0.1:{tls()}/0"

    assert notify_workers(make_celery(f"{url}?ssl_ca_certs={ca_file}"))
    assert not notify_workers(make_celery(url, timeout_seconds=2))
    monkeypatch.setenv("SSL_CERT_FILE", str(ca_file))  # as a company's authority is installed
    JobStore(url).ping()
    assert notify_workers(make_celery(url, timeout_seconds=2))


def test_a_refused_password_and_a_replica_are_named(own_valkey: Any, valkey: Any) -> None:
    with redis.Redis(port=own_valkey.port) as client:
        client.config_set("requirepass", "secret")
    for url in (own_valkey.url, own_valkey.url.replace("//", "//:wrong@")):
        with pytest.raises(errors.StoreUnavailable, match="password"):
            JobStore(url).ping()

    replica = own_valkey.url.replace("//", "//:secret@")
    with redis.Redis.from_url(replica) as client:
        client.replicaof("127.0.0.1", valkey.port)
    with pytest.raises(errors.StoreUnavailable, match="replica"):
        JobStore(replica).check_writable()
