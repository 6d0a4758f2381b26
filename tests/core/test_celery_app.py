"""The doorbell on a real Valkey."""

import logging
import pickle
from typing import Any

import pytest
import redis

from core.celery_app import QUEUE, STYLIZE, make_celery, notify_workers, pending_notifications


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
def test_whatever_lies_in_the_list_rings_or_does_nothing(valkey: Any, forged: bytes) -> None:
    app, heard = make_celery(valkey.url), []
    notify_workers(app)
    with redis.Redis.from_url(valkey.url) as store:
        store.rpush(QUEUE, forged)  # it is heard first

    assert pending_notifications(app) == 2
    with app.connection_for_read() as connection:
        consumer = connection.Consumer(queues=[app.amqp.queues[QUEUE]], accept=["json"])
        consumer.register_callback(
            lambda body, message: (heard.append((body, message.headers["task"])), message.ack())
        )
        with consumer:
            while pending_notifications(app):
                connection.drain_events(timeout=5)

    assert heard
    assert all(one == ([[], {}, {}], STYLIZE) for one in heard)
    with redis.Redis.from_url(valkey.url) as store:
        assert store.hlen("unacked") == 0


def test_a_worker_that_lost_the_broker_as_it_took_a_bell_hears_the_next(own_valkey: Any) -> None:
    app, heard = make_celery(own_valkey.url), []

    def lost(_: object, message: Any) -> None:
        own_valkey.kill()
        message.ack_log_error(logging.getLogger(__name__), (redis.RedisError,))
        heard.append(message)

    notify_workers(app)
    with app.connection_for_read() as connection:
        consumer = connection.Consumer(
            queues=[app.amqp.queues[QUEUE]], accept=["json"], callbacks=[lost]
        )
        consumer.qos(prefetch_count=1)
        with consumer:
            while not heard:
                connection.drain_events(timeout=5)

            assert consumer.channel.qos.can_consume()
            own_valkey.start()
