"""Forged messages in the broker: none is executed, none kills a process, and jobs go on.

python tests/campaigns/forged.py --seed 1 --count 1000
python tests/campaigns/forged.py --seed 1 --count 40 --without transport

A client that can write to the store can delete it, too. But a message must not execute code in a
worker.
"""

import base64
import json
import pickle
import random
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import psutil
from fleet import Fleet, Program
from history import History, events, report_violations
from kills import Caller

from core.celery_app import QUEUE, STYLIZE

PARAMETERS = {"size": "64", "iterations": "20", "scales": "1"}
TIMEOUT_SECONDS = 60.0
# Celery replaces a child after 500 tasks. Here that would look like a death, so it is disabled.
_NO_REPLACEMENT = """
import core.celery_app as q
make_celery = q.make_celery
def without_replacement(*url, **options):
    app = make_celery(*url, **options)
    app.conf.worker_max_tasks_per_child = None
    return app
q.make_celery = without_replacement
"""
_STOCK_TRANSPORT = """
import os, core.celery_app as q
os.environ["C_FORCE_ROOT"] = "1"
ours = q.make_celery
def stock(*url, **options):
    app = ours(*url, **options)
    app.conf.update(broker_transport=None, accept_content={accepted})
    return app
q.make_celery = stock
"""
CONTROLS = {
    # The stock transport: Celery parses every message.
    "transport": _STOCK_TRANSPORT.format(accepted=["json"]),
    "json": _STOCK_TRANSPORT.format(accepted=["json", "pickle", "yaml"]),
}


class Canary:
    """An object that creates a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.file,)


def _message(
    body: bytes, kind: str = "application/json", task: object = STYLIZE, **headers: Any
) -> dict[str, Any]:
    """Return a message as Celery writes it to Redis."""
    tag = str(uuid.uuid4())
    properties = {
        "correlation_id": tag,
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": QUEUE},
        "priority": 0,
        "body_encoding": "base64",
        "delivery_tag": tag,
    }
    return {
        "body": base64.b64encode(body).decode(),
        "content-encoding": "utf-8",
        "content-type": kind,
        "headers": {
            "lang": "py",
            "task": task,
            "id": tag,
            "root_id": tag,
            "argsrepr": "()",
            **headers,
        },
        "properties": properties,
    }


def _arguments(*args: Any, **kwargs: Any) -> bytes:
    return json.dumps(
        [args, kwargs, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]
    ).encode()


def _without(message: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in message.items() if key != name}


def kinds(rng: random.Random, canary: Path) -> dict[str, Callable[[], Any]]:
    """The forgeries by name: messages, and text that is no message."""
    sound = _arguments()
    pickled = pickle.dumps([[Canary(canary)], {}, {}])
    yaml = f'!!python/object/apply:os.system ["touch {canary}"]'.encode()
    chained = json.dumps(
        [[], {}, {"chain": [{"task": "celery.backend_cleanup", "args": []}]}]
    ).encode()
    return {
        "pickle": lambda: _message(pickled, "application/x-python-serialize"),
        "pickle called json": lambda: _message(pickled),
        "yaml": lambda: _message(yaml, "application/x-yaml"),
        "unknown kind": lambda: _message(sound, "application/x-nobody"),
        "another task": lambda: _message(
            sound, task=rng.choice(["celery.backend_cleanup", "celery.map", "os.system"])
        ),
        "task of no name": lambda: _message(sound, task=rng.choice([None, 7, [], "", "é" * 1000])),
        "job's id": lambda: _message(_arguments(f"job_{rng.randrange(10**9)}")),
        "arguments by name": lambda: _message(_arguments(owner="other", path="/etc/passwd")),
        "ten megabytes": lambda: _message(_arguments("x" * 10_000_000)),
        "deep": lambda: _message(b"[" * 100_000),
        "another schema": lambda: _message(
            rng.choice([b"{}", b"[]", b"null", b"[[],{}]", b"", b"7", b"\xff\xfe"])
        ),
        "chain": lambda: _message(chained),
        "next year": lambda: _message(sound, eta="2099-01-01T00:00:00+00:00"),
        "no time": lambda: _message(sound, eta="never", expires="never"),
        "time limit": lambda: _message(sound, timelimit=[0.001, 0.001]),
        "no headers": lambda: _without(_message(sound), "headers"),
        "no properties": lambda: _without(_message(sound), "properties"),
        "no body": lambda: _without(_message(sound), "body"),
        "no envelope": lambda: rng.choice(
            ["", "{", "null", "[]", "7", "\x00\xff", '{"body": {}}', "[" * 100_000]
        ),
    }


def _processes(worker: Program) -> list[int]:
    return sorted([worker.pid, *(child.pid for child in worker.children())])


def campaign(
    folder: Path, history: History, *, seed: int, count: int, without: str | None = None
) -> None:
    """Run the campaign and write its history."""
    rng, canary = random.Random(seed), folder.absolute() / "canary"
    history.record("begin", seed=seed, count=count, without=without)
    fleet = Fleet(folder, workers=1, changed=_NO_REPLACEMENT + CONTROLS.get(without or "", ""))
    with fleet, fleet.redis() as store, Caller(fleet.url) as caller:
        worker = fleet.workers[0]
        initial = _processes(worker)
        forged = kinds(rng, canary)
        names = [
            *forged,
            *rng.choices([name for name in forged if name != "ten megabytes"], k=count),
        ][:count]
        for number, name in enumerate(names):
            message = forged[name]()
            store.lpush(QUEUE, message if isinstance(message, str) else json.dumps(message))
            if number % 10 == 0:  # a real job in between
                _run_job(caller, history, f"job-{number}")
            if _processes(worker) != initial:
                history.record("died", after=name, alive=_processes(worker))
                return
        until = time.monotonic() + TIMEOUT_SECONDS
        while store.llen(QUEUE) and time.monotonic() < until:
            time.sleep(0.05)
        _run_job(caller, history, "last")
        memory = psutil.Process(worker.pid).memory_info().rss // 2**20
        history.record(
            "end", forged=len(names), left=store.llen(QUEUE), canary=canary.exists(), mib=memory
        )


def _run_job(caller: Caller, history: History, key: str) -> None:
    job_id, until = caller.submit(PARAMETERS, key), time.monotonic() + TIMEOUT_SECONDS
    while (status := caller.ask("GET", f"/v1/jobs/{job_id}").json()["status"]) in {
        "queued",
        "running",
    }:
        if time.monotonic() > until:
            break
        time.sleep(0.05)
    history.record("job", id=job_id, status=status)


def violations(file: Path) -> list[str]:
    """Return the violations that the history shows."""
    found = [f"a process died after {event['after']}" for event in events(file, "died")]
    found += [
        f"{event['id']}: {event['status']}"
        for event in events(file, "job")
        if event["status"] != "succeeded"
    ]
    ends = [*events(file, "end")]
    found += ["a message was executed" for event in ends if event["canary"]]
    found += [f"{event['left']} messages were never consumed" for event in ends if event["left"]]
    return found if ends else [*found, "the campaign did not finish"]


@click.command()
@click.option("--seed", default=1)
@click.option("--count", default=1000, help="Messages.")
@click.option("--history", "file", type=click.Path(path_type=Path), default=None)
@click.option("--without", type=click.Choice([*CONTROLS]), default=None)
def main(seed: int, count: int, file: Path | None, without: str | None) -> None:
    """Forge messages and check that jobs go on."""
    with tempfile.TemporaryDirectory(prefix="impasto-forged-") as folder:
        history = History(file or Path(folder) / "history.jsonl")
        campaign(Path(folder) / "fleet", history, seed=seed, count=count, without=without)
        for event in events(history.file, "end"):
            click.echo(f"| {event} |")
        report_violations(violations(history.file))


if __name__ == "__main__":
    main()
