"""How long one waits for a server that says nothing, and how many do."""

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
def mute() -> Iterator[str]:
    """The URL of a server that is there and never says a word."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as server:
        yield f"redis://127.0.0.1:{server.getsockname()[1]}/0"


def _seconds_of(refused: Callable[[], object]) -> float:
    began = time.monotonic()
    with pytest.raises(errors.StoreUnavailable):
        refused()
    return time.monotonic() - began


def test_a_server_that_says_nothing_is_waited_for_less_than_two_seconds(mute: str) -> None:
    store = JobStore(mute)

    assert 1 < _seconds_of(store.ping) < 2
    assert 1 < _seconds_of(store.ping) < 2  # nobody who asks for it is spared the wait


def test_a_crowd_does_not_wait_where_one_has_waited_in_vain(mute: str) -> None:
    for ask in (
        JobStore(mute, cooldown_seconds=60).ping,
        ApiKeyStore(mute, cooldown_seconds=60).list,
    ):
        assert 1 < _seconds_of(ask) < 2
        assert _seconds_of(ask) < 0.2


def _made(line: CircuitBreaker, answer: BaseException | None = None) -> bool:
    """Whether the call is made, which has this answer."""
    made = False
    try:
        with line:
            made = True
            if answer:
                raise answer
    except (errors.StoreUnavailable, redis.ResponseError):
        pass
    return made


def test_of_a_crowd_one_at_a_time_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    now, line, silence = 100.0, CircuitBreaker(cooldown_seconds=0.5), redis.TimeoutError("nothing")
    monkeypatch.setattr("core.redis_client.time.monotonic", lambda: now)

    assert _made(line, silence)
    assert not _made(line)
    now += 0.6
    assert _made(line, silence)
    assert not _made(line)
    now += 0.6
    with line:  # it takes its time, and meanwhile
        assert not _made(line)
    assert _made(line)  # once it is answered, everybody


@pytest.mark.parametrize(
    "answer", [redis.ConnectionError("refused"), redis.ResponseError("WRONGTYPE"), None]
)
def test_whoever_is_answered_at_once_is_asked_again_at_once(answer: BaseException | None) -> None:
    line = CircuitBreaker(cooldown_seconds=60)

    assert _made(line, answer)
    assert _made(line, answer)


def test_without_a_rest_every_call_is_made() -> None:
    line = CircuitBreaker()

    assert _made(line, redis.TimeoutError("nothing"))
    assert _made(line)
