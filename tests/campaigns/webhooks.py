"""Webhooks to receivers that fail, hang, reset and redirect, by couriers that are killed, past names that lie.

    python tests/campaigns/webhooks.py --seed 1 [--count N] [--history FILE] [--without guard|lease]

A real store, real couriers (processes, killed with SIGKILL), a real receiver. Only the names and the roads are made:
names are looked up in a table of our own, public addresses lead to the receiver, and every other address leads to a
canary, which nobody must reach. `--without guard`: couriers connect to whatever a name says; `--without lease`: what
one has taken is at once due for the others.
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
from worker.webhooks.dispatcher import WebhookDispatcher
from worker.webhooks.sender import WebhookSender

POLICY = WebhookPolicy("whsec_" + "A" * 32, frozenset({80}), allow_http=True)
SECONDS, LEASE_SECONDS = 0.8, 0.4
DELAYS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
COURIERS = 3
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
TAKEN = {"ok", "drip", "endless"}  # answered with 2xx


# ---------------------------------------------------------------------- the checker


def violations(history: list[dict[str, Any]]) -> list[str]:
    """What must not be, from the history alone."""
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
        found.append("nothing happened")
    found += [f"{name}: lost" for name in jobs.keys() ^ last.keys()]
    for name in jobs.keys() & last.keys():
        found += [
            f"{name}: {words}" for words in _wrong(jobs[name], last[name], posts.pop(name, []))
        ]
    found += [f"{name}: told without a job" for name in posts]
    return found


def _wrong(job: dict[str, Any], last: dict[str, Any], posts: list[dict[str, Any]]) -> Iterator[str]:
    answers = {post["answer"] for post in posts}
    if job["record"] != last["record"]:
        yield "the job was changed"
    if job["seconds"] > 1:
        yield "the job's end was delayed"
    if last["end"] is None:
        yield "neither delivered nor given up"
    if last["end"] == "delivered" and not answers & TAKEN:
        yield "said to be delivered, but nobody took it"
    if last["end"] == "gone" and "gone" not in answers:
        yield "said to be gone, but nobody said so"
    if last["end"] == "given_up" and last["tries"] < len(DELAYS):
        yield f"given up after {last['tries']} tries"
    if job["host"].startswith(("private", "mixed")) and posts:
        yield "told, though its name has a private address"
    if len({post["id"] for post in posts}) > 1:
        yield "its id changed"
    if not all(post["verified"] for post in posts):
        yield "a signature does not verify"
    spans = sorted((post["from"], post["to"]) for post in posts)
    if any(later[0] < earlier[1] for earlier, later in pairwise(spans)):
        yield "sent twice at the same time"


# ---------------------------------------------------------------------- the world


def resolve(host: str, _: int) -> Sequence[Address]:
    """good: one public address. mixed: a private one behind it. rebind: now the one, now the other. private."""
    kind, _, number = host.partition(".")[0].partition("-")
    public, hostile = f"93.184.216.{int(number) % 250}", HOSTILE[int(number) % len(HOSTILE)]
    answers = {"good": [public], "mixed": [public, hostile], "private": [hostile]}
    answers["rebind"] = random.choice([[public], [hostile]])
    return [ip_address(address) for address in answers[kind]]


class Roads(httpcore2.SyncBackend):
    """Where an address, or a name that was left unresolved, leads."""

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
    """Meets each request as chance has it, and writes down how. `canary`: only that somebody came."""

    def __init__(self, history: History, seed: int, canary: int | None) -> None:
        self._history, self._chance, self._canary = history, random.Random(seed), canary
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=200)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Nobody is met any more."""
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
                    threading.Thread(target=self._meet, args=(connection,), daemon=True).start()

    def _meet(self, connection: socket.socket) -> None:
        began = time.monotonic()
        with connection, connection.makefile("rb") as stream:
            headers = {}
            stream.readline()
            while row := stream.readline().decode().strip():
                name, _, value = row.partition(":")
                headers[name.lower()] = value.strip()
            body = stream.read(int(headers.get("content-length", 0)))
            if not body:
                return  # its courier was killed before it had said anything
            told = json.loads(body)["data"]
            answer = "gone" if told["id"].endswith(("a", "b")) else self._chance.choice(BEHAVIORS)
            with suppress(OSError):
                self._answer(connection, answer)
        verified = _verifies(body, headers)
        span = {"from": began, "to": time.monotonic()}
        self._history.record(
            "post",
            job=told["id"],
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
            where = f"Location: http://127.0.0.1:{self._canary}/\r\nContent-Length: 0\r\n"
            connection.sendall(f"HTTP/1.1 307 X\r\n{where}\r\n".encode())
        elif answer == "reset":
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        while answer == "endless":
            connection.sendall(b"a" * 10_000)
        for _ in range(
            10 if answer == "drip" else 0
        ):  # a courier that is killed now will send it again
            connection.sendall(b"a")
            time.sleep(0.05)
        if answer == "hang":
            connection.settimeout(20)
            connection.recv(1)


def _verifies(body: bytes, headers: dict[str, str]) -> bool:
    with suppress(WebhookVerificationError):
        Webhook(POLICY.owner_secret("local")).verify(body, headers)
        return True
    return False


class Couriers:
    """Processes that are killed and started again."""

    def __init__(self, url: str, receiver: int, canary: int, without: str) -> None:
        world = {"url": url, "receiver": receiver, "canary": canary, "without": without}
        self._command = [sys.executable, __file__, "--courier", json.dumps(world)]
        self._running = [subprocess.Popen(self._command) for _ in range(COURIERS)]

    def kill(self, which: int) -> None:
        """With SIGKILL; another takes its place."""
        self._running[which].kill()
        self._running[which].wait()
        self._running[which] = subprocess.Popen(self._command)

    def close(self) -> None:
        """End them all."""
        for process in self._running:
            process.kill()
            process.wait()


def _carry(world: dict[str, Any]) -> None:
    """What a courier's process does: the product's own courier, on our roads."""
    logging.disable()
    if world["without"] == "guard":
        WebhookPolicy.may_reach = lambda *_: True  # type: ignore[method-assign]
    roads = Roads(world["receiver"], world["canary"])
    delivery = WebhookSender(POLICY, seconds=SECONDS, resolve=resolve, network=roads)
    lease_seconds = (
        0.001 - SECONDS if world["without"] == "lease" else LEASE_SECONDS
    )  # beyond the delivery's
    WebhookDispatcher(
        JobStore(world["url"]), POLICY, delivery, delays=DELAYS, lease_seconds=lease_seconds
    ).run()


# ---------------------------------------------------------------------- the run


def _end_jobs(store: JobStore, history: History, chance: random.Random, count: int) -> None:
    """Some twenty a second."""
    digest = "sha256:" + "a" * 64
    job_input = JobInput(content=digest, styles=[digest], spec=StyleSpec().model_dump())
    output = Output(id=digest, content_type="image/png", width=4, height=3, size_bytes=9)
    for number in range(count):
        kind = chance.choice(["good", "good", "good", "rebind", "mixed", "private"])
        host = f"{kind}-{chance.randrange(max(8, count // 4))}.example.org"
        store.reserve(digest, 60)
        job = store.create(
            new_job_id(), job_input, SubmissionOptions(webhook=f"http://{host}/hook"), QueueLimits()
        )
        began = time.monotonic()
        if number % 3 == 0:
            store.cancel(job.id)
        else:
            store.claim(job.id, "campaign")
            began = time.monotonic()
            if number % 3 == 1:
                store.succeed(job.id, job.id, output, ModelUsed(name="vgg16", sha256="0"), {})
            else:
                store.fail(job.id, job.id, errors.Diverged())
        seconds = time.monotonic() - began
        history.record(
            "ended", job=job.id, host=host, seconds=seconds, record=_shown(store.get(job.id))
        )
        time.sleep(chance.uniform(0, 0.1))


def _shown(job: Job) -> dict[str, Any]:
    return json.loads(job.model_dump_json())  # type: ignore[no-any-return]


def _run(seed: int, count: int, history: History, without: str) -> None:
    chance = random.Random(seed)
    canary = Receiver(history, seed, None)
    receiver = Receiver(history, seed, canary.port)
    with tempfile.TemporaryDirectory() as folder, Valkey(Path(folder)) as server:
        store, couriers = (
            JobStore(server.url),
            Couriers(server.url, receiver.port, canary.port, without),
        )
        try:
            ending = threading.Thread(
                target=_end_jobs, args=(store, history, random.Random(seed), count)
            )
            ending.start()
            while ending.is_alive():
                time.sleep(chance.uniform(0.1, 0.8))
                which = chance.randrange(COURIERS)
                history.record("kill", which=which)
                couriers.kill(which)
            until = time.monotonic() + SETTLE_SECONDS
            while time.monotonic() < until and store._redis.zcard(f"{PREFIX}outbox"):
                time.sleep(0.1)
        finally:
            couriers.close()
        for name in [job.id for job in store.list_page(limit=count)[0]]:
            end, tries = store._redis.hmget(f"{PREFIX}job:{name}", "webhook_end", "webhook_tries")  # type: ignore[misc]
            history.record(
                "last", job=name, end=end, tries=int(tries or 0), record=_shown(store.get(name))
            )
        store.close()
    receiver.close()
    canary.close()


def _table(history: list[dict[str, Any]]) -> Iterator[tuple[str, int]]:
    def count(event: str, **values: Any) -> int:
        return sum(each["event"] == event and values.items() <= each.items() for each in history)

    yield "jobs ended", count("ended")
    yield "couriers killed", count("kill")
    yield "requests", count("post")
    for answer in sorted({*BEHAVIORS, "gone"}):
        yield f"  met with {answer}", count("post", answer=answer)
    for end in ("delivered", "gone", "given_up", None):
        yield str(end or "open").replace("_", " "), count("last", end=end)
    yield "delivered more than once", _twice(history)
    yield "connections to canaries", count("canary")


def _twice(history: list[dict[str, Any]]) -> int:
    taken = [
        event["job"] for event in history if event["event"] == "post" and event["answer"] in TAKEN
    ]
    return sum(taken.count(name) > 1 for name in set(taken))


@click.command()
@click.option("--seed", default=1)
@click.option("--count", default=300, help="Jobs.")
@click.option("--history", "path", type=click.Path(path_type=Path), default=None)
@click.option("--without", type=click.Choice(["", "guard", "lease"]), default="")
@click.option("--courier", hidden=True)
def main(seed: int, count: int, path: Path | None, without: str, courier: str | None) -> None:
    """Run, judge, and tell."""
    if courier:
        _carry(json.loads(courier))
        return
    with tempfile.TemporaryDirectory() as folder:
        path = path or Path(folder) / "history.jsonl"
        _run(seed, count, History(path), without)
        history = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for words, number in _table(history):
        click.echo(f"{words:<28}{number:>7}")
    report_violations(violations(history))


if __name__ == "__main__":
    main()
