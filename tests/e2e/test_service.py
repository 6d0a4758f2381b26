"""Real processes, real weights, real kill -9: an accepted job always ends."""

import socket
import subprocess
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from standardwebhooks import Webhook

from core.images import codec
from core.jobs.models import Job, Status
from core.webhooks.signing import Signer

pytestmark = pytest.mark.e2e

Submit = Callable[..., str]
Until = Callable[..., None]


def _painting(service: Any, job_id: str) -> Callable[[], bool]:
    return lambda: service.client.job(job_id).progress is not None


def _end(service: Any, job_id: str) -> Job:
    return list(service.client.follow(job_id))[-1]


def test_upload_to_result(service: Any, submit: Submit) -> None:
    """Progress on the way, a picture at the end, in every format, with its record."""
    job_id = submit(size="96", iterations="40")
    seen = list(service.client.follow(job_id))

    assert seen[-1].status is Status.SUCCEEDED
    assert any(job.progress and job.progress.iteration for job in seen)
    assert codec.decode(service.client.result(job_id)).size == (96, 72)
    record = codec.read_provenance(service.client.result(job_id))
    assert record is not None
    assert (record["spec"]["size"], record["model"]["name"]) == (96, "vgg16")
    assert codec.detect_format(service.client.result(job_id, "webp")) == "webp"


def _second(service: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cli", "up", "--port", str(service.port)]
    given = {**service.environment, **environment}
    return subprocess.run(
        command, env=given, capture_output=True, text=True, check=False, timeout=60
    )


def test_a_second_one_on_the_same_folder_or_port_is_refused_and_harms_nothing(
    service: Any, submit: Submit, until: Until, tmp_path: Path
) -> None:
    same_folder, same_port = (
        _second(service),
        _second(service, IMPASTO_DATA_DIR=str(tmp_path / "other")),
    )
    (valkey,) = service.find("valkey-server")
    valkey.kill()

    assert (same_folder.returncode, same_port.returncode) == (2, 2)
    assert "Another `impasto up` uses" in same_folder.stderr
    assert "is taken by another program" in same_port.stderr
    until(service.client.ready, "back after the kill", 20)
    assert _end(service, submit(size="64", iterations="5")).status is Status.SUCCEEDED


def test_the_api_never_loads_torch(service: Any) -> None:
    (api,) = service.find("-m", "api")

    assert not [
        line for line in Path(f"/proc/{api.pid}/maps").read_text().splitlines() if "torch" in line
    ]


@pytest.mark.parametrize("victim", ["the whole worker", "its painting child"])
def test_kill_9_of_the_worker_and_the_job_ends_on_its_second_attempt(
    service: Any, submit: Submit, until: Until, victim: str
) -> None:
    job_id = submit()
    until(_painting(service, job_id), "painting")
    (worker,) = service.find("-m", "worker")
    children = [
        child for child in worker.children(recursive=True) if "multiprocessing" not in child.name()
    ]
    busy = max(children, key=lambda child: child.memory_info().rss)
    for process in [worker, *children] if victim == "the whole worker" else [busy]:
        process.kill()
    killed_at = time.monotonic()

    until(lambda: service.client.job(job_id).attempt == 2, "second attempt", 15)
    until(_painting(service, job_id), "painting again", 15 - (time.monotonic() - killed_at))
    ended = _end(service, job_id)

    assert (ended.status, ended.attempt) == (Status.SUCCEEDED, 2)


def test_kill_9_of_the_store_and_nothing_is_lost(
    service: Any, submit: Submit, until: Until
) -> None:
    """The running job goes on, the waiting one is still there, and both end at their first attempt."""
    running, waiting = submit(), submit(size="64", iterations="5")
    until(_painting(service, running), "painting")
    (valkey,) = service.find("valkey-server")
    valkey.kill()

    until(lambda: service.find("valkey-server") and service.client.ready(), "the store is back", 20)
    ends = [_end(service, job_id) for job_id in (running, waiting)]

    assert [(job.status, job.attempt) for job in ends] == [(Status.SUCCEEDED, 1)] * 2


def test_kill_9_of_the_api_and_it_is_back_with_every_job(
    service: Any, submit: Submit, until: Until
) -> None:
    job_id = submit()
    until(_painting(service, job_id), "painting")
    (api,) = service.find("-m", "api")
    api.kill()
    api.wait()
    until(service.client.ready, "the API is back", 20)

    ended = _end(service, job_id)
    assert (ended.status, ended.attempt) == (Status.SUCCEEDED, 1)


def test_jobs_and_results_survive_ctrl_c_and_a_new_start(
    service: Any, submit: Submit, until: Until
) -> None:
    """The running job is handed back within seconds, not counted as an attempt, and everything stops."""
    done, running, waiting = (
        submit(size="64", iterations="5"),
        submit(iterations="200"),
        submit(size="64", iterations="5"),
    )
    _end(service, done)
    until(_painting(service, running), "painting")
    before, began, log_length = service.processes(), time.monotonic(), len(service.log)

    assert service.stop() == 0
    assert time.monotonic() - began < 10
    assert not psutil.wait_procs(before, 5)[1]
    assert "Traceback" not in service.log[log_length:]
    service.start()

    assert codec.detect_format(service.client.result(done)) == "png"
    ends = [_end(service, job_id) for job_id in (running, waiting)]
    assert [(job.status, job.attempt) for job in ends] == [(Status.SUCCEEDED, 1)] * 2


def test_kill_9_of_impasto_itself_leaves_no_process_behind(
    service: Any, submit: Submit, until: Until
) -> None:
    job_id = submit()
    until(_painting(service, job_id), "painting")
    before = service.processes()
    service.kill()

    assert not psutil.wait_procs(before, 10)[1]
    service.start()
    ended = _end(service, job_id)
    assert ended.status is Status.SUCCEEDED


def test_cancel_stops_a_running_job_within_seconds_and_the_next_one_runs(
    service: Any, submit: Submit, until: Until
) -> None:
    long, short = submit(iterations="5000"), submit(size="64", iterations="5")
    until(_painting(service, long), "painting")
    service.client.cancel(long)

    until(lambda: service.client.job(long).status is Status.CANCELED, "canceled", 5)
    assert _end(service, short).status is Status.SUCCEEDED


def test_a_webhook_comes_through_a_kill_of_its_courier(
    service: Any, submit: Submit, until: Until
) -> None:
    """From `impasto up` with a secret to a receiver that is not there at first."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    secret = "whsec_" + "A" * 32
    allowed = {
        "IMPASTO_WEBHOOK_PORTS": str(port),
        "IMPASTO_WEBHOOK_ALLOW_HTTP": "1",
        "IMPASTO_WEBHOOK_ALLOW_PRIVATE": "1",
    }
    service.stop()
    service.environment |= {"IMPASTO_WEBHOOK_SECRET": secret, **allowed}
    service.start()
    (courier,) = service.find("-m", "worker.webhooks")
    courier.kill()
    courier.wait()
    job_id = submit(size="64", iterations="5", webhook=f"http://localhost:{port}/hook")
    assert _end(service, job_id).status is Status.SUCCEEDED
    until(lambda: service.find("-m", "worker.webhooks"), "another courier")
    log = Path(service.environment["IMPASTO_DATA_DIR"]) / "logs" / "webhooks.log"
    until(lambda: f"{job_id}: webhook, try 1" in log.read_text(), "a try in vain")

    came: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            came.append(
                Webhook(Signer(secret).owner_secret("local")).verify(
                    body, dict(self.headers)
                )
            )
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", port), Handler) as server:
        server.timeout = 20
        server.handle_request()
    until(lambda: f"{job_id}: webhook, try 2: answered 204" in log.read_text(), "told")

    assert [(told["type"], told["data"]["id"]) for told in came] == [("job.succeeded", job_id)]
    assert service.stop() == 0
