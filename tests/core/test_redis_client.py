"""Timeouts for a silent server, and the circuit breaker."""

import socket
import time
from collections.abc import Callable, Iterator

import pytest
import redis

from core import errors
from core.auth.api_keys import ApiKeyStore
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
    "message",
    [
        "MISCONF Valkey is configured to save RDB snapshots, but it cannot",
        "Command # 2 (SET a 1) of pipeline caused error: MISCONF Valkey is configured",
    ],
)
def test_a_server_whose_disk_is_full_is_unavailable(message: str) -> None:
    with pytest.raises(errors.StoreUnavailable), CircuitBreaker():
        raise redis.ResponseError(message)


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
