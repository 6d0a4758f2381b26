"""The wake-up messages on a real Valkey."""

import json
import logging
import pickle
import socket
import threading
import time
from typing import Any

import pytest
import redis

from core.celery_app import MAX_PENDING, MESSAGE_FORMAT, QUEUE, STYLIZE, make_celery, notify_workers


def _count_messages(url: str) -> int:
    with redis.Redis.from_url(url) as client:
        return int(client.llen(QUEUE))


def test_a_notification_waits_in_the_broker_until_a_worker_reads_it(valkey: Any) -> None:
    app = make_celery(valkey.url)
    assert notify_workers(app)
    assert notify_workers(app)

    assert _count_messages(valkey.url) == 2
    with redis.Redis.from_url(valkey.url) as client:
        message = json.loads(client.lindex(QUEUE, 0))
    assert message["headers"]["format"] == MESSAGE_FORMAT
    app.close()


def test_surplus_notifications_are_deleted(valkey: Any) -> None:
    app = make_celery(valkey.url)
    for _ in range(MAX_PENDING + 5):
        notify_workers(app)

    assert _count_messages(valkey.url) == MAX_PENDING
    app.close()


def test_without_a_broker_a_notification_fails_at_once() -> None:
    app, start = make_celery("redis://127.0.0.1:1/0"), time.monotonic()

    assert not notify_workers(app)
    assert time.monotonic() - start < 10
    app.close()


def test_a_silent_broker_delays_a_notification_only_until_the_timeout() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        app, start = make_celery(url, timeout_seconds=0.5), time.monotonic()
        assert not notify_workers(app)
        assert time.monotonic() - start < 10
        app.close()


@pytest.mark.parametrize(
    "forged",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"7",
        b"[" * 100_000,
        b"{}",
        b'{"body": 7, "properties": {}}',
        pickle.dumps([[], {}]),
    ],
    ids=repr,
)
def test_a_forged_message_wakes_a_worker_or_does_nothing(valkey: Any, forged: bytes) -> None:
    app, received = make_celery(valkey.url), []
    notify_workers(app)
    with redis.Redis.from_url(valkey.url) as client:
        client.rpush(QUEUE, forged)  # workers read from this end

    assert _count_messages(valkey.url) == 2
    with app.connection_for_read() as connection:
        consumer = connection.Consumer(queues=[app.amqp.queues[QUEUE]], accept=["json"])
        consumer.register_callback(
            lambda body, message: (
                received.append((body, message.headers["task"])),
                message.ack(),
            )
        )
        with consumer:
            while _count_messages(valkey.url):
                connection.drain_events(timeout=5)

    assert received
    assert all(message == ([[], {}, {}], STYLIZE) for message in received)
    with redis.Redis.from_url(valkey.url) as client:
        assert client.hlen("unacked") == 0


def test_a_worker_that_lost_the_broker_while_receiving_receives_the_next_message(
    own_valkey: Any,
) -> None:
    app, received = make_celery(own_valkey.url), []

    def lose_broker(_: object, message: Any) -> None:
        own_valkey.kill()
        message.ack_log_error(logging.getLogger(__name__), (redis.RedisError,))
        received.append(message)

    notify_workers(app)
    with app.connection_for_read() as connection:
        consumer = connection.Consumer(
            queues=[app.amqp.queues[QUEUE]], accept=["json"], callbacks=[lose_broker]
        )
        consumer.qos(prefetch_count=1)
        with consumer:
            while not received:
                connection.drain_events(timeout=5)

            assert consumer.channel.qos.can_consume()
            own_valkey.start()


@pytest.mark.filterwarnings("ignore::celery.exceptions.CPendingDeprecationWarning")
def test_an_answer_that_is_an_error_does_not_end_a_worker(own_valkey: Any, until: Any) -> None:
    app, ran = make_celery(own_valkey.url), threading.Event()
    app.conf.include = []
    app.task(ran.set, name=STYLIZE)
    with redis.Redis.from_url(own_valkey.url) as client:

        def count_refusals() -> int:
            return int(client.info("errorstats").get("errorstat_NOREPLICAS", {}).get("count", 0))

        worker = app.WorkController(pool_cls="solo")
        thread = threading.Thread(target=worker.start, daemon=True)
        thread.start()
        client.config_set("min-replicas-to-write", 1)
        until(lambda: count_refusals() > 1, "the worker has asked twice")
        client.config_set("min-replicas-to-write", 0)
        assert notify_workers(app)
        assert ran.wait(20)
        worker.stop()
        thread.join()
    app.close()
