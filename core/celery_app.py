"""The Celery application: names, serializer and transport options of wake-up messages; no tasks.

A message only says that jobs are queued. It wakes one idle worker, which then runs jobs until none
is queued. The store decides which job runs and which worker may finish it. So a lost, doubled or
late message does no harm: the reaper notifies idle workers again, and a worker that finds no job
does nothing. The content of a message is never read: a client that can write into the broker can
wake a worker, and nothing else.
"""

import json
import logging
import uuid
from typing import Any
from urllib.parse import quote

from celery import Celery
from kombu.exceptions import OperationalError
from kombu.transport import redis, virtual
from redis.exceptions import RedisError
from redis.sentinel import Sentinel

from core.redis_client import SENTINEL_OPTIONS, PrimaryConnection, PrimaryTlsConnection
from core.redis_url import URL_PARAMETERS, parse_sentinel_url

QUEUE = "impasto"
STYLIZE = "impasto.stylize"
MESSAGE_FORMAT = 1  # for people who look into the broker: a message of any format wakes a worker
MAX_PENDING = 100  # messages that wait in the broker; one wakes one idle worker

log = logging.getLogger(__name__)


class Notification(virtual.Message):
    """A message that always means the one task, without arguments, options or time.

    Its real content is ignored.
    """

    def __init__(self, _: object, channel: Any = None, **options: Any) -> None:
        tag = str(uuid.uuid4())
        message = {
            "body": "[[], {}, {}]",
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {"task": STYLIZE, "id": tag},
            "properties": {
                "delivery_tag": tag,
                "delivery_info": {"exchange": "", "routing_key": QUEUE},
            },
        }
        super().__init__(message, channel=channel, **options)


class Channel(redis.Channel):
    """Accepts every entry of the list as a notification.

    A stock Celery worker ends when it reads an entry that is no JSON, each time it starts.
    """

    Message = Notification

    def _put(self, queue: str, message: dict[str, Any], **_: Any) -> None:
        """Add a message and delete the surplus, because busy workers do not read the list."""
        with self.conn_or_acquire() as client, client.pipeline(transaction=False) as pipe:
            pipe.lpush(queue, json.dumps(message))
            pipe.ltrim(queue, 0, MAX_PENDING - 1)
            pipe.execute()

    def _brpop_read(self, **options: Any) -> bool:
        try:
            return bool(super()._brpop_read(**options))  # type: ignore[misc]
        except (ValueError, RecursionError):
            log.warning("the broker holds a message that is not from Impasto")
            return True


class Transport(redis.Transport):
    """Redis, with this module's channel."""

    Channel = Channel


class SentinelChannel(Channel, redis.SentinelChannel):
    """The same on the primary that the Sentinels name.

    kombu itself takes the Sentinels from a list of URLs, and continues with its own channel after
    it has lost the connection to the first.
    """

    connection_class = PrimaryConnection
    connection_class_ssl = PrimaryTlsConnection
    from_transport_options = (*redis.SentinelChannel.from_transport_options, "sentinels")
    sentinels: list[tuple[str, int]]
    sentinel_kwargs: dict[str, Any]
    master_name: str
    _connparams: Any

    def _sentinel_managed_pool(self, asynchronous: bool = False) -> Any:
        options = self._connparams(asynchronous)
        del options["host"], options["port"]
        manager = Sentinel(self.sentinels, sentinel_kwargs=self.sentinel_kwargs)
        if asynchronous:
            self._async_sentinel_manager = manager  # where kombu closes it
        else:
            self._sentinel_manager = manager
        return manager.master_for(self.master_name, **options).connection_pool


class SentinelTransport(redis.SentinelTransport):
    """Redis with Sentinel, with this module's channel."""

    Channel = SentinelChannel


def make_celery(redis_url: str, *, timeout_seconds: float = 30) -> Celery:
    """Return the Celery application on this Redis. Reads no settings.

    timeout_seconds: until a silent broker counts as unavailable. A worker listens, so it needs a
    long timeout.
    """
    broker, transport_options = _describe_broker(redis_url)
    app = Celery("impasto", include=["worker.tasks"])
    app.conf.update(
        **broker,
        worker_enable_remote_control=False,  # a client with access to the broker could end a worker
        task_default_queue=QUEUE,
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=False,  # late acks on Redis run jobs twice; leases recover lost jobs
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,
        worker_pool="prefork",
        worker_concurrency=1,
        worker_pool_start_method="spawn",  # CUDA cannot be used in a forked child
        # A child imports torch and loads the network before it reports that it is alive.
        worker_proc_alive_timeout=120,
        worker_max_tasks_per_child=500,
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,  # with True, 5.7 loses jobs
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # An answer such as BUSY or NOREPLICAS must not end a worker, nor the job that it runs.
        broker_channel_error_retry=True,
        broker_connection_timeout=2,
        broker_transport_options={
            # Disable kombu's emulation of acknowledgments. It copies each received message, and
            # deletes the copy on the ack. After one failed ack the consumer counts the message as
            # pending for ever, and receives no other.
            "ack_emulation": False,
            "health_check_interval": 5,
            "socket_timeout": timeout_seconds,
            "socket_connect_timeout": 2,
            "socket_keepalive": True,
            **transport_options,
        },
    )
    return app


def _describe_broker(redis_url: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return Celery's settings for this Redis, and kombu's additional transport options."""
    # kombu itself does not verify a server whose URL has no TLS parameter.
    tls: dict[str, Any] = {"ssl_cert_reqs": "required"}
    address = parse_sentinel_url(redis_url)
    if address is None:
        return {
            "broker_url": redis_url,
            "broker_transport": f"{__name__}:Transport",
            "broker_use_ssl": tls if redis_url.startswith("rediss:") else None,
        }, {}
    options = address.options
    tls |= {name: options[name] for name in URL_PARAMETERS if name in options}
    account = ":".join(quote(options.get(name, ""), safe="") for name in ("username", "password"))
    broker = {
        "broker_url": f"redis://{account}@sentinel/{options['db']}",  # no host of this name is used
        "broker_transport": f"{__name__}:SentinelTransport",
        "broker_use_ssl": tls if "ssl" in options else None,
    }
    return broker, {
        "sentinels": address.sentinels,
        "master_name": address.name,
        "sentinel_kwargs": SENTINEL_OPTIONS | address.sentinel_options,
    }


def notify_workers(app: Celery) -> bool:
    """Wake an idle worker. Returns False if the broker does not answer; the reaper retries."""
    try:
        headers = {"format": MESSAGE_FORMAT}
        app.send_task(STYLIZE, queue=QUEUE, retry=False, ignore_result=True, headers=headers)
    except (OperationalError, RedisError, OSError):
        return False
    return True
