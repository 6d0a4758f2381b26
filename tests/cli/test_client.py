"""The client of the commands, before a service that has its troubles."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cli import client
from cli.client import Client
from core import errors
from core.jobs import Job, JobInput, new_job_id
from core.spec import StyleSpec
from core.store import JobStore

Trouble = int | str  # a status; "cut": no answer


class Troubled(ThreadingHTTPServer):
    """Meets each request with the next trouble, then takes the job."""

    def __init__(self, job: Job, *troubles: Trouble) -> None:
        self.job, self.troubles, self.keys = job, [*troubles], []  # type: ignore[var-annotated]
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Troubled

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.keys.append(self.headers["Idempotency-Key"])
        trouble = self.server.troubles.pop(0) if self.server.troubles else 202
        if trouble == "cut":
            self.close_connection = True
            return
        problem = {"code": "unavailable", "detail": "Later."}
        body = self.server.job.model_dump_json() if trouble == 202 else json.dumps(problem)
        self.send_response(int(trouble))
        self.send_header("Retry-After", "1")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def serve(store: JobStore) -> Iterator[Callable[..., Troubled]]:
    digests = [f"sha256:{digit * 64}" for digit in "ab"]
    for digest in digests:
        store.hold(digest)
    wanted = JobInput(content=digests[0], styles=digests[1:], spec=StyleSpec().model_dump())
    job = store.create(new_job_id(), wanted)
    servers: list[Troubled] = []

    def start(*troubles: Trouble) -> Troubled:
        servers.append(Troubled(job, *troubles))
        threading.Thread(target=servers[-1].serve_forever, args=(0.05,), daemon=True).start()
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def submit(tmp_path: Path, photo: Image.Image) -> Callable[[str], Job]:
    photo.save(tmp_path / "photo.png")

    def send(url: str) -> Job:
        with Client(url) as opened:
            return opened.submit(tmp_path / "photo.png", [tmp_path / "photo.png"], {})

    return send


def test_a_submission_whose_answer_is_lost_is_sent_again_under_its_key(
    serve: Callable[..., Troubled], submit: Callable[[str], Job]
) -> None:
    server = serve("cut", 503)
    began = time.monotonic()

    assert server.job == submit(server.url)
    assert time.monotonic() - began >= 1, "the service said when to come back"
    assert (3, 1) == (len(server.keys), len(set(server.keys)))
    submit(server.url)
    assert 2 == len(set(server.keys)), "another submission is another job"


def test_nobody_is_asked_for_ever(
    serve: Callable[..., Troubled], submit: Callable[[str], Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client.time, "sleep", lambda _: None)
    busy, silent = serve(*[503] * 9), serve(*["cut"] * 9)

    with pytest.raises(errors.Unavailable, match="Later"):
        submit(busy.url)
    with pytest.raises(errors.ServiceUnreachable):
        submit(silent.url)
    assert [client.TRIES] * 2 == [len(server.keys) for server in (busy, silent)]


def test_what_is_refused_is_not_sent_again(serve: Callable[..., Troubled], submit: Callable[[str], Job]) -> None:
    server = serve(422)

    with pytest.raises(errors.BadInput):
        submit(server.url)
    assert 1 == len(server.keys)
