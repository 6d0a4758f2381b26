"""A dispatcher on a real store, with real receivers.

Each webhook arrives at least once, or the dispatcher gives up after the last try.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from standardwebhooks import Webhook

from api.schemas.job import job_resource
from core.jobs.models import Job, JobInput, Status, SubmissionContext, SubmissionOptions, new_job_id
from core.jobs.store import JobStore
from core.redis_client import PREFIX
from core.style.spec import StyleSpec
from core.webhooks.policy import WebhookPolicy
from core.webhooks.signing import Signer
from worker.webhooks.dispatcher import DELAYS, MAX_CONCURRENT, MAX_PER_OWNER, WebhookDispatcher
from worker.webhooks.sender import WebhookSender

SECRET = "whsec_" + "A" * 32
POLICY = WebhookPolicy(enabled=True, allow_http=True, ports=frozenset({80}))
SIGNER = Signer(SECRET)
FAST_DELAYS = (0.0, 0.05, 0.05)
ROOT = Path(__file__).parents[3]


def _end_job(store: JobStore, webhook: str, owner: str = "anna") -> Job:
    digest = "sha256:" + "a" * 64
    store.reserve(digest, 60)
    job_input = JobInput(content=digest, styles=[digest], spec=StyleSpec().model_dump())
    job = store.create(
        new_job_id(),
        job_input,
        SubmissionOptions(webhook=webhook),
        context=SubmissionContext(owner=owner),
    )
    return store.cancel(job.id)


def _outcome(store: JobStore, url: str, job: Job) -> str | None:
    """The recorded outcome of its webhook."""
    assert store.get(job.id) == job, "a webhook does not change its job"
    with redis.Redis.from_url(url, decode_responses=True) as client:
        return client.hget(f"{PREFIX}job:{job.id}", "webhook_end")  # type: ignore[return-value]


@pytest.fixture
def start_dispatcher(store: JobStore, behave: Any) -> Iterator[Callable[..., WebhookDispatcher]]:
    """Start dispatchers in this process, on a network that connects to a server."""
    running: list[tuple[WebhookDispatcher, threading.Thread]] = []

    def start(
        server: Any, timeout_seconds: float = 5, delays: tuple[float, ...] = FAST_DELAYS
    ) -> WebhookDispatcher:
        network = behave.network(server.port)
        sender = WebhookSender(
            POLICY,
            timeout_seconds=timeout_seconds,
            resolve=behave.names("93.184.216.34"),
            network=network,
        )
        dispatcher = WebhookDispatcher(
            store, POLICY, SIGNER, sender, delays=delays, lease_seconds=1
        )
        thread = threading.Thread(target=dispatcher.run, daemon=True)
        thread.start()
        running.append((dispatcher, thread))
        return dispatcher

    yield start
    for dispatcher, _ in running:
        dispatcher.stop()
    for _, thread in running:
        thread.join()


def test_a_webhook_is_signed_and_agrees_with_the_api(
    store: JobStore, valkey: Any, serve: Any, start_dispatcher: Any, until: Any
) -> None:
    server = serve()
    job = _end_job(store, "http://hooks.example.org/a?b=c")
    start_dispatcher(server)
    until(lambda: _outcome(store, valkey.url, job) == "delivered", "delivered")

    (request,) = server.requests
    event = Webhook(SIGNER.owner_secret("anna")).verify(request.body, request.headers)
    shown = json.loads(job_resource(job).model_dump_json())
    assert event["type"] == "job.canceled"
    assert event["data"] == {key: shown[key] for key in event["data"] if key != "links"} | {
        "links": event["data"]["links"]
    }
    assert event["data"]["links"].items() <= shown["links"].items()
    assert request.line == "POST /a?b=c HTTP/1.1"
    assert request.headers["content-type"] == "application/json"


def test_a_failed_try_is_repeated_with_the_same_id(
    store: JobStore, valkey: Any, serve: Any, behave: Any, start_dispatcher: Any, until: Any
) -> None:
    server = serve(behave.answer(500), behave.reset, behave.answer(200))
    job = _end_job(store, "http://hooks.example.org/")
    start_dispatcher(server)
    until(lambda: _outcome(store, valkey.url, job) == "delivered", "delivered")

    assert len(server.requests) == 3
    assert len({request.headers["webhook-id"] for request in server.requests}) == 1
    assert len({request.body for request in server.requests}) == 1
    for request in server.requests:
        Webhook(SIGNER.owner_secret("anna")).verify(request.body, request.headers)


@pytest.mark.parametrize(
    ("status", "tries", "outcome"), [(410, 1, "gone"), (404, 3, "given_up"), (302, 3, "given_up")]
)
def test_status_410_ends_the_tries_and_other_failures_have_a_limit(
    status: int,
    tries: int,
    outcome: str,
    store: JobStore,
    valkey: Any,
    serve: Any,
    behave: Any,
    start_dispatcher: Any,
    until: Any,
) -> None:
    canary = serve()
    server = serve(behave.answer(status, f"Location: http://127.0.0.1:{canary.port}/"))
    job = _end_job(store, "http://hooks.example.org/")
    start_dispatcher(server)
    until(lambda: _outcome(store, valkey.url, job) == outcome, outcome)
    sentinel = _end_job(store, "http://hooks.example.org/")
    server.behaviors = [behave.answer(200)]
    until(lambda: _outcome(store, valkey.url, sentinel) == "delivered", "the next webhook")

    assert (len(server.requests), canary.connections) == (tries + 1, 0)


def test_there_are_eight_tries_within_two_days(store: JobStore) -> None:
    """With some random delay, so that tries that failed together are not repeated together."""
    dispatcher = WebhookDispatcher(store, POLICY, SIGNER, WebhookSender(POLICY))
    delays = [[dispatcher._retry_delay(attempt) for _ in range(50)] for attempt in range(1, 9)]

    assert DELAYS == (0, 5, 300, 1800, 7200, 18000, 36000, 86400)
    for delay, drawn in zip(DELAYS[1:], delays, strict=False):
        assert all(seconds is not None and delay <= seconds <= 1.1 * delay for seconds in drawn)
        assert len(set(drawn)) > 40
    assert set(delays[-1]) == {None}


def test_a_receiver_that_hangs_delays_no_other_receiver_and_times_out(
    store: JobStore, valkey: Any, serve: Any, behave: Any, start_dispatcher: Any, until: Any
) -> None:
    """Twenty webhooks for a host that hangs are due before those for ten other hosts.

    The network connects all hosts to one server.
    """

    def by_host(connection: Any, request: Any) -> None:
        is_slow = request.headers["host"] == "slow.example.org"
        action = behave.hang if is_slow else behave.answer(200)
        action(connection, request)

    server = serve(by_host)
    slow = [_end_job(store, "http://slow.example.org/") for _ in range(20)]
    others = [_end_job(store, f"http://host{number}.example.org/") for number in range(10)]
    start_dispatcher(server, timeout_seconds=3)
    until(
        lambda: all(_outcome(store, valkey.url, job) == "delivered" for job in others),
        "the webhooks for the others",
        2.5,
    )
    assert sum(request.headers["host"] == "slow.example.org" for request in server.requests) == 1

    def slow_requests() -> list[Any]:
        return [one for one in server.requests if one.headers["host"] == "slow.example.org"]

    until(lambda: len(slow_requests()) == 2, "the next try for the slow host", 10)
    first, second = slow_requests()
    assert 2.8 < second.at - first.at < 5
    assert store.get(slow[0].id).status is Status.CANCELED


def test_an_owner_whose_receivers_hang_delays_no_other_owner(
    store: JobStore, valkey: Any, serve: Any, behave: Any, start_dispatcher: Any, until: Any
) -> None:
    """More hosts of one owner hang than there are slots; MAX_PER_OWNER of them get a request."""

    def by_host(connection: Any, request: Any) -> None:
        action = behave.hang if "slow" in request.headers["host"] else behave.answer(200)
        action(connection, request)

    server = serve(by_host)
    for number in range(MAX_CONCURRENT + 8):
        _end_job(store, f"http://slow{number}.example.org/")
    other = _end_job(store, "http://hooks.example.org/", owner="ben")
    start_dispatcher(server, timeout_seconds=5)
    until(lambda: _outcome(store, valkey.url, other) == "delivered", "the other owner's", 4)

    until(lambda: len(server.requests) == MAX_PER_OWNER + 1, "the owner's share", 2)
    time.sleep(0.6)  # longer than a poll
    assert len(server.requests) == MAX_PER_OWNER + 1


def test_a_destination_stays_busy_although_its_job_is_deleted(
    store: JobStore, serve: Any, behave: Any, start_dispatcher: Any, until: Any
) -> None:
    server = serve(behave.hang, behave.answer(200))
    deleted = _end_job(store, "http://hooks.example.org/a")
    time.sleep(0.002)  # the outbox orders by ms
    _end_job(store, "http://hooks.example.org/b")
    start_dispatcher(server, timeout_seconds=2)
    until(lambda: len(server.requests) == 1, "the first request")
    store.delete(deleted.id)
    until(lambda: len(server.requests) == 2, "the second request")

    first, second = server.requests
    assert second.at - first.at > 1.8


def test_a_delivery_survives_an_outage_of_the_store(
    own_valkey: Any, serve: Any, behave: Any, until: Any
) -> None:
    store = JobStore(own_valkey.url)

    def kill_store(connection: Any, request: Any) -> None:
        own_valkey.kill()
        threading.Timer(1, own_valkey.start).start()
        behave.answer(200)(connection, request)

    server = serve(kill_store, behave.answer(200))
    job = _end_job(store, "http://hooks.example.org/")
    sender = WebhookSender(
        POLICY, resolve=behave.names("93.184.216.34"), network=behave.network(server.port)
    )
    dispatcher = WebhookDispatcher(store, POLICY, SIGNER, sender)
    thread = threading.Thread(target=dispatcher.run, daemon=True)
    thread.start()
    until(lambda: len(server.requests) == 1, "sent")
    until(lambda: _is_up(store), "the store is back")
    until(lambda: _outcome(store, own_valkey.url, job) == "delivered", "reported to the store")
    dispatcher.stop()
    thread.join()
    store.close()

    assert len(server.requests) == 1


def _is_up(store: JobStore) -> bool:
    try:
        store.ping()
    except Exception:
        return False
    return True


# ---------------------------------------------------------------------- as a process

SHORT_LEASE = """
import sys
from core.jobs.store import JobStore
from core.config import Settings
from worker.webhooks.dispatcher import WebhookDispatcher
from worker.webhooks.sender import WebhookSender
settings = Settings()
sender = WebhookSender(settings.webhooks, timeout_seconds=2)
store = JobStore(settings.redis_url)
WebhookDispatcher(
    store, settings.webhooks, settings.webhook_signer, sender, lease_seconds=0.5
).run()
"""


@pytest.fixture
def process(valkey: Any) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(*command: str, **environment: str) -> subprocess.Popen[str]:
        env = {
            **os.environ,
            "IMPASTO_REDIS_URL": valkey.url,
            "IMPASTO_WEBHOOK_SECRET": SECRET,
            **environment,
        }
        full = [sys.executable, *command]
        started.append(subprocess.Popen(full, env=env, cwd=ROOT, stderr=subprocess.PIPE, text=True))
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.communicate()


def _local(server: Any) -> dict[str, str]:
    return {
        "IMPASTO_WEBHOOK_PORTS": str(server.port),
        "IMPASTO_WEBHOOK_ALLOW_HTTP": "true",
        "IMPASTO_WEBHOOK_ALLOW_PRIVATE": "true",
    }


def test_after_kill_9_during_a_delivery_another_dispatcher_repeats_it(
    store: JobStore, valkey: Any, serve: Any, behave: Any, process: Any, until: Any
) -> None:
    """After the lease, not before, and with the same id."""
    server = serve(behave.hang, behave.answer(200))
    job = _end_job(store, f"http://localhost:{server.port}/")
    first = process("-c", SHORT_LEASE, **_local(server))
    until(lambda: len(server.requests) == 1, "the first request")
    process("-c", SHORT_LEASE, **_local(server))
    first.send_signal(signal.SIGKILL)
    until(
        lambda: _outcome(store, valkey.url, job) == "delivered", "delivered by the other dispatcher"
    )

    early, late = server.requests
    assert late.headers["webhook-id"] == early.headers["webhook-id"]
    assert late.at - early.at > 2


def test_the_process_delivers_to_loopback_only_if_allowed_and_stops_on_sigterm(
    store: JobStore, valkey: Any, serve: Any, process: Any, until: Any
) -> None:
    server = serve()
    job = _end_job(store, f"http://localhost:{server.port}/")
    refusing = process(
        "-m", "worker.webhooks", **_local(server) | {"IMPASTO_WEBHOOK_ALLOW_PRIVATE": "false"}
    )
    for line in refusing.stderr:
        if job.id in line:
            break
    assert "must not reach" in line or "reachable from the internet" in line
    refusing.send_signal(signal.SIGTERM)
    assert (refusing.wait(10), server.connections) == (0, 0)

    allowed = process("-m", "worker.webhooks", **_local(server))
    until(lambda: _outcome(store, valkey.url, job) == "delivered", "delivered")
    allowed.send_signal(signal.SIGTERM)
    assert allowed.wait(10) == 0
    assert len(server.requests) == 1


def test_the_process_loads_neither_torch_nor_celery() -> None:
    code = (
        "import sys, worker.webhooks.__main__\n"
        "sys.exit('torch' in sys.modules or 'celery' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("secret", ["", "whsec_short", "A" * 32, "whsec_" + "!" * 32])
def test_without_a_valid_secret_the_process_exits_with_one_line(secret: str, process: Any) -> None:
    ran = process("-m", "worker.webhooks", IMPASTO_WEBHOOK_SECRET=secret)
    _, stderr = ran.communicate(timeout=20)

    assert ran.returncode == 2
    assert "IMPASTO_WEBHOOK_SECRET" in stderr
    assert not secret or secret not in stderr
    assert stderr.count("\n") == 1
