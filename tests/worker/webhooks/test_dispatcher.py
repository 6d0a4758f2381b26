"""A courier on a real store, with real receivers: every webhook arrives at least once, or is given up by the rule."""

import json
import os
import signal
import subprocess
import sys
import threading
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
from worker.webhooks.dispatcher import DELAYS, WebhookDispatcher
from worker.webhooks.sender import WebhookSender

SECRET = "whsec_" + "A" * 32
STRICT = WebhookPolicy(SECRET, allow_http=True, ports=frozenset({80}))
FAST = (0.0, 0.05, 0.05)
ROOT = Path(__file__).parents[3]


def _ended(store: JobStore, webhook: str, owner: str = "anna") -> Job:
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


def _end(store: JobStore, url: str, job: Job) -> str | None:
    """How its webhook ended."""
    assert store.get(job.id) == job, "a webhook changes nothing of its job"
    with redis.Redis.from_url(url, decode_responses=True) as client:
        return client.hget(f"{PREFIX}job:{job.id}", "webhook_end")  # type: ignore[return-value]


@pytest.fixture
def courier(store: JobStore, behave: Any) -> Iterator[Callable[..., WebhookDispatcher]]:
    """Start couriers in this process, on a network that leads to a server; they end with the test."""
    running: list[tuple[WebhookDispatcher, threading.Thread]] = []

    def start(
        server: Any, seconds: float = 5, delays: tuple[float, ...] = FAST
    ) -> WebhookDispatcher:
        network = behave.network(server.port)
        delivery = WebhookSender(
            STRICT, seconds=seconds, resolve=behave.names("93.184.216.34"), network=network
        )
        courier = WebhookDispatcher(store, STRICT, delivery, delays=delays, lease_seconds=1)
        thread = threading.Thread(target=courier.run, daemon=True)
        thread.start()
        running.append((courier, thread))
        return courier

    yield start
    for courier, _ in running:
        courier.leave()
    for _, thread in running:
        thread.join()


def test_a_webhook_is_signed_and_tells_what_the_api_tells(
    store: JobStore, valkey: Any, serve: Any, courier: Any, until: Any
) -> None:
    server = serve()
    job = _ended(store, "http://hooks.example.org/a?b=c")
    courier(server)
    until(lambda: _end(store, valkey.url, job) == "delivered", "delivered")

    (request,) = server.requests
    told = Webhook(STRICT.owner_secret("anna")).verify(request.body, request.headers)
    shown = json.loads(job_resource(job).model_dump_json())
    assert told["type"] == "job.canceled"
    assert told["data"] == {key: shown[key] for key in told["data"] if key != "links"} | {
        "links": told["data"]["links"]
    }
    assert told["data"]["links"].items() <= shown["links"].items()
    assert request.line == "POST /a?b=c HTTP/1.1"
    assert request.headers["content-type"] == "application/json"


def test_a_failed_try_is_repeated_under_the_same_id(
    store: JobStore, valkey: Any, serve: Any, behave: Any, courier: Any, until: Any
) -> None:
    server = serve(behave.answer(500), behave.reset, behave.answer(200))
    job = _ended(store, "http://hooks.example.org/")
    courier(server)
    until(lambda: _end(store, valkey.url, job) == "delivered", "delivered")

    assert len(server.requests) == 3
    assert len({request.headers["webhook-id"] for request in server.requests}) == 1
    assert len({request.body for request in server.requests}) == 1
    for request in server.requests:
        Webhook(STRICT.owner_secret("anna")).verify(request.body, request.headers)


@pytest.mark.parametrize(
    ("status", "tries", "end"), [(410, 1, "gone"), (404, 3, "given_up"), (302, 3, "given_up")]
)
def test_what_is_gone_is_not_asked_again_and_what_fails_not_for_ever(
    status: int,
    tries: int,
    end: str,
    store: JobStore,
    valkey: Any,
    serve: Any,
    behave: Any,
    courier: Any,
    until: Any,
) -> None:
    canary = serve()
    server = serve(behave.answer(status, f"Location: http://127.0.0.1:{canary.port}/"))
    job = _ended(store, "http://hooks.example.org/")
    courier(server)
    until(lambda: _end(store, valkey.url, job) == end, end)
    sentinel = _ended(store, "http://hooks.example.org/")
    server.behaviors = [behave.answer(200)]
    until(lambda: _end(store, valkey.url, sentinel) == "delivered", "another one")

    assert (len(server.requests), canary.connections) == (tries + 1, 0)


def test_the_rule_is_eight_tries_in_a_day_and_a_half(store: JobStore) -> None:
    """And a bit by chance, so that what failed together does not come back together."""
    courier = WebhookDispatcher(store, STRICT, WebhookSender(STRICT))
    pauses = [[courier._pause(attempt) for _ in range(50)] for attempt in range(1, 9)]

    assert DELAYS == (0, 5, 300, 1800, 7200, 18000, 36000, 86400)
    for delay, tried in zip(DELAYS[1:], pauses, strict=False):
        assert all(pause is not None and delay <= pause <= 1.1 * delay for pause in tried)
        assert len(set(tried)) > 40
    assert set(pauses[-1]) == {None}


def test_a_receiver_that_hangs_delays_no_other_and_is_cut(
    store: JobStore, valkey: Any, serve: Any, behave: Any, courier: Any, until: Any
) -> None:
    """Twenty webhooks for a host that hangs come before those for ten others, on a network that leads all to one."""

    def by_host(connection: Any, request: Any) -> None:
        (behave.hang if request.headers["host"] == "slow.example.org" else behave.answer(200))(
            connection, request
        )

    server = serve(by_host)
    slow = [_ended(store, "http://slow.example.org/") for _ in range(20)]
    others = [_ended(store, f"http://host{number}.example.org/") for number in range(10)]
    courier(server, seconds=3)
    until(
        lambda: all(_end(store, valkey.url, job) == "delivered" for job in others),
        "the others",
        2.5,
    )
    assert sum(request.headers["host"] == "slow.example.org" for request in server.requests) == 1

    def hosts() -> list[Any]:
        return [one for one in server.requests if one.headers["host"] == "slow.example.org"]

    until(lambda: len(hosts()) == 2, "the next for the slow one", 10)
    assert 2.8 < hosts()[1].at - hosts()[0].at < 5
    assert store.get(slow[0].id).status is Status.CANCELED


def test_the_store_may_go_away_while_a_webhook_is_on_its_way(
    own_valkey: Any, serve: Any, behave: Any, until: Any
) -> None:
    store = JobStore(own_valkey.url)

    def kill_it(connection: Any, request: Any) -> None:
        own_valkey.kill()
        threading.Timer(1, own_valkey.start).start()
        behave.answer(200)(connection, request)

    server = serve(kill_it, behave.answer(200))
    job = _ended(store, "http://hooks.example.org/")
    delivery = WebhookSender(
        STRICT, resolve=behave.names("93.184.216.34"), network=behave.network(server.port)
    )
    courier = WebhookDispatcher(store, STRICT, delivery)
    thread = threading.Thread(target=courier.run, daemon=True)
    thread.start()
    until(lambda: len(server.requests) == 1, "sent")
    until(lambda: _answers(store), "the store is back")
    until(lambda: _end(store, own_valkey.url, job) == "delivered", "told to the store")
    courier.leave()
    thread.join()
    store.close()

    assert len(server.requests) == 1


def _answers(store: JobStore) -> bool:
    try:
        store.ping()
    except Exception:
        return False
    return True


# ---------------------------------------------------------------------- as a process

SHORT = """
import sys
from core.jobs.store import JobStore
from core.config import Settings
from worker.webhooks.dispatcher import WebhookDispatcher
from worker.webhooks.sender import WebhookSender
shared = Settings()
WebhookDispatcher(JobStore(shared.redis_url), shared.webhooks, WebhookSender(shared.webhooks, seconds=2), lease_seconds=0.5).run()
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


def test_kill_9_in_the_middle_of_a_delivery_and_another_courier_makes_it(
    store: JobStore, valkey: Any, serve: Any, behave: Any, process: Any, until: Any
) -> None:
    """After the lease, not before; under the same id."""
    server = serve(behave.hang, behave.answer(200))
    job = _ended(store, f"http://localhost:{server.port}/")
    first = process("-c", SHORT, **_local(server))
    until(lambda: len(server.requests) == 1, "on its way")
    process("-c", SHORT, **_local(server))
    first.send_signal(signal.SIGKILL)
    until(lambda: _end(store, valkey.url, job) == "delivered", "delivered by the other")

    early, late = server.requests
    assert late.headers["webhook-id"] == early.headers["webhook-id"]
    assert late.at - early.at > 2


def test_the_program_delivers_to_this_machine_if_it_may_and_goes_when_asked(
    store: JobStore, valkey: Any, serve: Any, process: Any, until: Any
) -> None:
    server = serve()
    job = _ended(store, f"http://localhost:{server.port}/")
    refusing = process(
        "-m", "worker.webhooks", **_local(server) | {"IMPASTO_WEBHOOK_ALLOW_PRIVATE": "false"}
    )
    for line in refusing.stderr:
        if job.id in line:
            break
    assert "must not reach" in line or "everybody can reach" in line
    refusing.send_signal(signal.SIGTERM)
    assert (refusing.wait(10), server.connections) == (0, 0)

    allowed = process("-m", "worker.webhooks", **_local(server))
    until(lambda: _end(store, valkey.url, job) == "delivered", "delivered")
    allowed.send_signal(signal.SIGTERM)
    assert allowed.wait(10) == 0
    assert len(server.requests) == 1


def test_it_loads_no_torch() -> None:
    words = "import sys, worker.webhooks.__main__; sys.exit('torch' in sys.modules or 'celery' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", words], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("secret", ["", "whsec_short", "A" * 32, "whsec_" + "!" * 32])
def test_without_a_good_secret_it_ends_at_once_and_says_so(secret: str, process: Any) -> None:
    ran = process("-m", "worker.webhooks", IMPASTO_WEBHOOK_SECRET=secret)
    _, words = ran.communicate(timeout=20)

    assert ran.returncode == 2
    assert "IMPASTO_WEBHOOK_SECRET" in words
    assert not secret or secret not in words
    assert words.count("\n") == 1
