"""The doorbell: Celery's names, serialiser and transport options; no tasks.

A message says "there is work", no more. Which job runs, and who may finish it, is the store's business. So a message
that is lost, doubled or late harms nothing: the reaper rings again, and a bell without work claims nothing. And so what
a message holds is never read: whoever can write into the broker can ring, and cannot say anything else.
"""

import logging
import uuid
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError
from kombu.transport import redis, virtual
from redis.exceptions import RedisError

from core import errors

QUEUE = "impasto"
STYLIZE = "impasto.stylize"

log = logging.getLogger(__name__)


class Notification(virtual.Message):
    """A message, whatever was in it: the one task, without arguments, options, or a time."""

    def __init__(self, _: object, channel: Any = None, **options: Any) -> None:
        tag = str(uuid.uuid4())
        sound = {
            "body": "[[], {}, {}]",
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {"task": STYLIZE, "id": tag},
            "properties": {
                "delivery_tag": tag,
                "delivery_info": {"exchange": "", "routing_key": QUEUE},
            },
        }
        super().__init__(sound, channel=channel, **options)


class Channel(redis.Channel):
    """Takes whatever is in the list for a bell. What is no JSON ends a worker of Celery's own, each time it starts."""

    Message = Notification

    def _brpop_read(self, **options: Any) -> bool:
        try:
            return bool(super()._brpop_read(**options))  # type: ignore[misc]
        except (ValueError, RecursionError):
            log.warning("a message in the broker is not ours")
            return True


class Transport(redis.Transport):
    """Redis, by our channel."""

    Channel = Channel


def make_celery(redis_url: str, *, timeout_seconds: float = 30) -> Celery:
    """The Celery application on this Redis. Reads no settings: the URL is given.

    timeout_seconds: with a broker that says nothing. A worker, which listens, needs some.
    """
    app = Celery("impasto", broker=redis_url, include=["worker.tasks"])
    app.conf.update(
        broker_transport=f"{__name__}:Transport",
        worker_enable_remote_control=False,  # anybody who can write there could end a worker
        task_default_queue=QUEUE,
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=False,  # late acks on Redis double jobs; recovery is the lease's
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,
        worker_pool="prefork",
        worker_concurrency=1,
        worker_pool_start_method="spawn",  # CUDA cannot be used in a forked child
        worker_proc_alive_timeout=120,  # a child imports torch and loads the network before it says it is alive
        worker_max_tasks_per_child=500,
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,  # with True, 5.7 loses jobs
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=2,
        broker_transport_options={
            # A bell that is heard is not kept in the broker as well, to be struck out there: where that fails for once,
            # a worker counts the bell as unheard for good, and hears no other.
            "ack_emulation": False,
            "health_check_interval": 5,
            "socket_timeout": timeout_seconds,
            "socket_connect_timeout": 2,
            "socket_keepalive": True,
        },
    )
    return app


def notify_workers(app: Celery) -> bool:
    """Wake a worker. False when the broker does not answer; the reaper rings again then."""
    try:
        app.send_task(STYLIZE, queue=QUEUE, retry=False, ignore_result=True)
    except (OperationalError, RedisError, OSError):
        return False
    return True


def trim_notifications(app: Celery, most: int) -> None:
    """Take bells away where there are more: those of jobs that were canceled, which nobody needs to hear.

    Raises StoreUnavailable.
    """
    try:
        with app.connection_for_write() as connection:
            channel: Any = connection.default_channel
            channel.client.ltrim(QUEUE, -most, -1)  # the last is heard first
    except (OperationalError, RedisError, OSError) as error:
        raise errors.StoreUnavailable() from error


def pending_notifications(app: Celery) -> int:
    """How many bells no worker has heard yet. Raises StoreUnavailable."""
    try:
        with app.connection_for_read() as connection:
            channel: Any = connection.default_channel
            declared = channel.queue_declare(queue=QUEUE)
            return int(declared.message_count)
    except (OperationalError, RedisError, OSError) as error:
        raise errors.StoreUnavailable() from error
