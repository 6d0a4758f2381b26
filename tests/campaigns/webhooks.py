"""Webhooks to faulty receivers, from dispatchers that are killed, with names that resolve to traps.

    python tests/campaigns/webhooks.py --seed 1 [--count N] [--history FILE] [--without guard|lease]

The store, the dispatchers (processes that the campaign kills with SIGKILL) and the receiver are
real. Only the resolver and the network are fake. A table resolves the names. Public addresses lead
to the receiver, which fails, hangs, resets or redirects at random; every other address leads to a
canary, which no dispatcher must reach.

`--without guard`: the dispatchers connect to any address. `--without lease`: a claimed delivery is
due at once for the other dispatchers.
"""

import json
import logging
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from ipaddress import ip_address
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import httpcore2
from history import History, report_violations
from processes import Valkey
from standardwebhooks import Webhook, WebhookVerificationError

from core import errors
from core.jobs.models import (
    Job,
    JobInput,
    ModelUsed,
    Output,
    QueueLimits,
    SubmissionOptions,
    new_job_id,
)
from core.jobs.store import JobStore
from core.redis_client import PREFIX
from core.style.spec import StyleSpec
from core.webhooks.policy import Address, WebhookPolicy
from core.webhooks.signing import Signer
from worker.webhooks.dispatcher import WebhookDispatcher
from worker.webhooks.sender import WebhookSender

POLICY = WebhookPolicy(enabled=True, ports=frozenset({80}), allow_http=True)
SIGNER = Signer("whsec_" + "A" * 32)
TIMEOUT_SECONDS, LEASE_SECONDS = 0.8, 0.4
DELAYS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
DISPATCHERS = 3
SETTLE_SECONDS = 90.0
HOSTILE = [
    "127.0.0.1",
    "10.0.0.1",
    "169.254.169.254",
    "100.64.0.1",
    "::1",
    "::ffff:10.0.0.1",
    "fd00::1",
    "2002:a00:1::",
]
BEHAVIORS = ["ok", "ok", "drip", "drip", "fail", "hang", "reset", "redirect", "endless"]
ACCEPTED = {"ok", "drip", "endless"}  # these answer with 2xx


# ---------------------------------------------------------------------- the checker


def violations(history: list[dict[str, Any]]) -> list[str]:
    """Return every broken promise that the history shows."""
    found = [
        f"a canary was reached: {event['peer']}" for event in history if event["event"] == "canary"
    ]
    posts: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for event in history:
        if event["event"] == "post":
            posts[event["job"]].append(event)
    jobs = {event["job"]: event for event in history if event["event"] == "ended"}
    last = {event["job"]: event for event in history if event["event"] == "last"}
    if not jobs:
        found.append("no job ended")
    found += [f"{name}: lost" for name in jobs.keys() ^ last.keys()]
    for name in jobs.keys() & last.keys():
        found += [
            f"{name}: {text}"
            for text in _job_violations(jobs[name], last[name], posts.pop(name, []))
        ]
    found += [f"{name}: a webhook without a job" for name in posts]
    return found


def _job_violations(
    job: dict[str, Any], last: dict[str, Any], posts: list[dict[str, Any]]
) -> Iterator[str]:
    answers = {post["answer"] for post in posts}
    if job["record"] != last["record"]:
        yield "the job was changed"
    if job["seconds"] > 1:
        yield "the end of the job was delayed"
    if last["end"] is None:
        yield "neither delivered nor given up"
    if last["end"] == "delivered" and not answers & ACCEPTED:
        yield "reported as delivered, but no request was accepted"
    if last["end"] == "gone" and "gone" not in answers:
        yield "reported as gone, but no answer was 410"
    if last["end"] == "given_up" and last["tries"] < len(DELAYS):
        yield f"given up after {last['tries']} tries"
    if job["host"].startswith(("private", "mixed")) and posts:
        yield "sent, though its name has a private address"
    if len({post["id"] for post in posts}) > 1:
        yield "its id changed"
    if not all(post["verified"] for post in posts):
        yield "a signature does not verify"
    spans = sorted((post["from"], post["to"]) for post in posts)
    if any(later[0] < earlier[1] for earlier, later in pairwise(spans)):
        yield "sent twice at the same time"


# ---------------------------------------------------------------------- the fake network


def resolve(host: str, _: int) -> Sequence[Address]:
    """Resolve by the kind of the host name.

    good: one public address. mixed: a public and a private one. rebind: either, at random.
    private: one private address.
    """
    kind, _, number = host.partition(".")[0].partition("-")
    public, hostile = f"93.184.216.{int(number) % 250}", HOSTILE[int(number) % len(HOSTILE)]
    answers = {"good": [public], "mixed": [public, hostile], "private": [hostile]}
    answers["rebind"] = random.choice([[public], [hostile]])
    return [ip_address(address) for address in answers[kind]]


class Network(httpcore2.SyncBackend):
    """Connects public addresses to the receiver, and all others to the canary."""

    def __init__(self, receiver: int, canary: int) -> None:
        self._receiver, self._canary = receiver, canary

    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, *_: Any
    ) -> httpcore2.NetworkStream:
        with suppress(ValueError):
            ip_address(host)
            return super().connect_tcp("127.0.0.1", self._port(host), timeout)
        return super().connect_tcp("127.0.0.1", self._port(str(resolve(host, port)[0])), timeout)

    def _port(self, address: str) -> int:
        return self._receiver if address.startswith("93.184.216.") else self._canary


class Receiver:
    """Answers each request at random and records it. Without `canary` it is a canary itself."""

    def __init__(self, history: History, seed: int, canary: int | None) -> None:
        self._history, self._random, self._canary = history, random.Random(seed), canary
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Accept no further connection."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, peer = self._listener.accept()
                if self._canary is None:
                    self._history.record("canary", peer=str(peer))
                    connection.close()
                else:
                    threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        started = time.monotonic()
        with connection, connection.makefile("rb") as stream:
            headers = {}
            stream.readline()
            while row := stream.readline().decode().strip():
                name, _, value = row.partition(":")
                headers[name.lower()] = value.strip()
            body = stream.read(int(headers.get("content-length", 0)))
            if not body:
                return  # the dispatcher was killed before it sent the body
            event = json.loads(body)["data"]
            answer = "gone" if event["id"].endswith(("a", "b")) else self._random.choice(BEHAVIORS)
            with suppress(OSError):
                self._answer(connection, answer)
        verified = _verifies(body, headers)
        span = {"from": started, "to": time.monotonic()}
        self._history.record(
            "post",
            job=event["id"],
            id=headers["webhook-id"],
            answer=answer,
            verified=verified,
            **span,
        )

    def _answer(self, connection: socket.socket, answer: str) -> None:
        head = {"ok": "204", "fail": "503", "gone": "410", "endless": "200", "drip": "200"}
        if answer in head:
            length = "" if answer in ("endless", "drip") else "Content-Length: 0\r\n"
            connection.sendall(f"HTTP/1.1 {head[answer]} X\r\n{length}\r\n".encode())
        elif answer == "redirect":
            headers = f"Location: http://127.0.0.1:{self._canary}/\r\nContent-Length: 0\r\n"
            connection.sendall(f"HTTP/1.1 307 X\r\n{headers}\r\n".encode())
        elif answer == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        while answer == "endless":
            connection.sendall(b"a" * 10_000)
        if answer == "drip":  # if the dispatcher is killed now, the webhook is sent again
            for _ in range(10):
                connection.sendall(b"a")
                time.sleep(0.05)
        if answer == "hang":
            connection.settimeout(20)
            connection.recv(1)


def _verifies(body: bytes, headers: dict[str, str]) -> bool:
    with suppress(WebhookVerificationError):
        Webhook(SIGNER.owner_secret("local")).verify(body, headers)
        return True
    return False


class Dispatchers:
    """Dispatcher processes that the campaign kills and restarts."""

    def __init__(self, url: str, receiver: int, canary: int, without: str) -> None:
        options = {"url": url, "receiver": receiver, "canary": canary, "without": without}
        self._command = [sys.executable, __file__, "--dispatch", json.dumps(options)]
        self._running = [subprocess.Popen(self._command) for _ in range(DISPATCHERS)]

    def kill(self, which: int) -> None:
        """Kill one with SIGKILL and start another."""
        self._running[which].kill()
        self._running[which].wait()
        self._running[which] = subprocess.Popen(self._command)

    def close(self) -> None:
        """Kill all of them."""
        for process in self._running:
            process.kill()
            process.wait()


def _dispatch(options: dict[str, Any]) -> None:
    """Run the real dispatcher on the fake network, in this process."""
    logging.disable()
    if options["without"] == "guard":
        WebhookPolicy.is_allowed = lambda *_: True  # type: ignore[method-assign]
    network = Network(options["receiver"], options["canary"])
    sender = WebhookSender(
        POLICY, timeout_seconds=TIMEOUT_SECONDS, resolve=resolve, network=network
    )
    lease_seconds = LEASE_SECONDS  # in addition to the timeout of the sender
    if options["without"] == "lease":
        lease_seconds = 0.001 - TIMEOUT_SECONDS
    WebhookDispatcher(
        JobStore(options["url"]), POLICY, SIGNER, sender, delays=DELAYS, lease_seconds=lease_seconds
    ).run()


# ---------------------------------------------------------------------- the run


def _end_jobs(store: JobStore, history: History, rng: random.Random, count: int) -> None:
    """Submit and end some twenty jobs per second."""
    digest = "sha256:" + "a" * 64
    job_input = JobInput(content=digest, styles=[digest], spec=StyleSpec().model_dump())
    output = Output(id=digest, content_type="image/png", width=4, height=3, size_bytes=9)
    for number in range(count):
        kind = rng.choice(["good", "good", "good", "rebind", "mixed", "private"])
        host = f"{kind}-{rng.randrange(max(8, count // 4))}.example.org"
        store.reserve(digest, 60)
        job = store.create(
            new_job_id(), job_input, SubmissionOptions(webhook=f"http://{host}/hook"), QueueLimits()
        )
        started = time.monotonic()
        if number % 3 == 0:
            store.cancel(job.id)
        else:
            store.claim(job.id, "campaign")
            started = time.monotonic()
            if number % 3 == 1:
                store.succeed(job.id, job.id, output, ModelUsed(name="vgg16", sha256="0"), {})
            else:
                store.fail(job.id, job.id, errors.Diverged())
        seconds = time.monotonic() - started
        history.record(
            "ended", job=job.id, host=host, seconds=seconds, record=_record(store.get(job.id))
        )
        time.sleep(rng.uniform(0, 0.1))


def _record(job: Job) -> dict[str, Any]:
    return json.loads(job.model_dump_json())  # type: ignore[no-any-return]


def _run(seed: int, count: int, history: History, without: str) -> None:
    rng = random.Random(seed)
    canary = Receiver(history, seed, None)
    receiver = Receiver(history, seed, canary.port)
    with tempfile.TemporaryDirectory() as folder, Valkey(Path(folder)) as server:
        store, dispatchers = (
            JobStore(server.url),
            Dispatchers(server.url, receiver.port, canary.port, without),
        )
        try:
            ending = threading.Thread(
                target=_end_jobs, args=(store, history, random.Random(seed), count)
            )
            ending.start()
            while ending.is_alive():
                time.sleep(rng.uniform(0.1, 0.8))
                which = rng.randrange(DISPATCHERS)
                history.record("kill", which=which)
                dispatchers.kill(which)
            until = time.monotonic() + SETTLE_SECONDS
            while time.monotonic() < until and store._redis.zcard(f"{PREFIX}outbox"):
                time.sleep(0.1)
        finally:
            dispatchers.close()
        for name in [job.id for job in store.list_page(limit=count)[0]]:
            fields: Any = store._redis.hmget(f"{PREFIX}job:{name}", "webhook_end", "webhook_tries")
            end, tries = fields
            history.record(
                "last", job=name, end=end, tries=int(tries or 0), record=_record(store.get(name))
            )
        store.close()
    receiver.close()
    canary.close()


def _table(history: list[dict[str, Any]]) -> Iterator[tuple[str, int]]:
    def count(event: str, **values: Any) -> int:
        return sum(each["event"] == event and values.items() <= each.items() for each in history)

    yield "jobs ended", count("ended")
    yield "dispatchers killed", count("kill")
    yield "requests", count("post")
    for answer in sorted({*BEHAVIORS, "gone"}):
        yield f"  answered with {answer}", count("post", answer=answer)
    for end in ("delivered", "gone", "given_up", None):
        yield str(end or "open").replace("_", " "), count("last", end=end)
    yield "delivered more than once", _count_repeated(history)
    yield "connections to canaries", count("canary")


def _count_repeated(history: list[dict[str, Any]]) -> int:
    accepted = [
        event["job"]
        for event in history
        if event["event"] == "post" and event["answer"] in ACCEPTED
    ]
    return sum(accepted.count(name) > 1 for name in set(accepted))


@click.command()
@click.option("--seed", default=1)
@click.option("--count", default=300, help="Jobs.")
@click.option("--history", "path", type=click.Path(path_type=Path), default=None)
@click.option("--without", type=click.Choice(["", "guard", "lease"]), default="")
@click.option("--dispatch", hidden=True)
def main(seed: int, count: int, path: Path | None, without: str, dispatch: str | None) -> None:
    """Run the campaign and report violations."""
    if dispatch:
        _dispatch(json.loads(dispatch))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = path or Path(folder) / "history.jsonl"
        _run(seed, count, History(path), without)
        history = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for label, number in _table(history):
        click.echo(f"{label:<28}{number:>7}")
    report_violations(violations(history))


if __name__ == "__main__":
    main()
