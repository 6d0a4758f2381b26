"""Real processes, real weights, real kill -9: an accepted job always ends.

The tests share one service and any order works: the fixture restarts a service that a test stopped,
and each test refers only to its own jobs.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from standardwebhooks import Webhook

from core.images import codec, validation
from core.webhooks.signing import Signer
from impasto import Job, Status

pytestmark = pytest.mark.e2e

Submit = Callable[..., str]
Until = Callable[..., None]


def _has_progress(service: Any, job_id: str) -> Callable[[], bool]:
    return lambda: service.client.job(job_id).progress is not None


def _wait(service: Any, job_id: str) -> Job:
    return service.client.wait(job_id)


def test_upload_to_result(service: Any, submit: Submit) -> None:
    """The job shows progress and ends with a picture in several formats, with its record."""
    job_id = submit(size="96", iterations="40")
    seen = list(service.client.follow(job_id))

    assert seen[-1].status is Status.SUCCEEDED
    assert any(job.progress and job.progress.iteration for job in seen)
    assert codec.decode(service.client.result(job_id)).size == (96, 72)
    record = codec.read_provenance(service.client.result(job_id))
    assert record is not None
    assert (record["spec"]["size"], record["model"]["name"]) == (96, "vgg19")
    assert validation.detect_format(service.client.result(job_id, "webp")) == "webp"


def _run_second(service: Any, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cli", "up", "--port", str(service.port)]
    settings = {**service.environment, **environment}
    return subprocess.run(
        command, env=settings, capture_output=True, text=True, check=False, timeout=60
    )


def test_a_second_service_on_the_same_folder_or_port_is_refused_and_harms_nothing(
    service: Any, submit: Submit, until: Until, tmp_path: Path
) -> None:
    same_folder = _run_second(service)
    same_port = _run_second(service, IMPASTO_DATA_DIR=str(tmp_path / "other"))
    (valkey,) = service.find("valkey-server")
    valkey.kill()

    assert (same_folder.returncode, same_port.returncode) == (2, 2)
    assert "Another `impasto up` uses" in same_folder.stderr
    assert "is used by another program" in same_port.stderr
    until(service.client.ready, "ready after the kill", 20)
    assert _wait(service, submit(size="64", iterations="5")).status is Status.SUCCEEDED


def test_the_embedded_store_has_the_settings_that_keep_jobs(service: Any) -> None:
    system = httpx2.get(f"{service.url}/v1/system", trust_env=False).json()
    assert system["store"] == {
        "problems": [],
        "risks": [],
        "unchecked": [],
        "identity": "same",
    }


def test_the_api_never_loads_torch(service: Any) -> None:
    (api,) = service.find("-m", "api")

    assert not [
        line for line in Path(f"/proc/{api.pid}/maps").read_text().splitlines() if "torch" in line
    ]


@pytest.mark.parametrize("victim", ["the whole worker", "its child"])
def test_after_kill_9_of_the_worker_the_job_succeeds_on_its_second_attempt(
    service: Any, submit: Submit, until: Until, victim: str
) -> None:
    job_id = submit()
    until(_has_progress(service, job_id), "running")
    (worker,) = service.find("-m", "worker")
    children = [
        child for child in worker.children(recursive=True) if "multiprocessing" not in child.name()
    ]
    busy = max(children, key=lambda child: child.memory_info().rss)
    for process in [worker, *children] if victim == "the whole worker" else [busy]:
        process.kill()
    killed_at = time.monotonic()

    until(lambda: service.client.job(job_id).attempt == 2, "second attempt", 15)
    seconds_left = 15 - (time.monotonic() - killed_at)
    until(_has_progress(service, job_id), "running again", seconds_left)
    ended = _wait(service, job_id)

    assert (ended.status, ended.attempt) == (Status.SUCCEEDED, 2)


def test_after_kill_9_of_the_store_no_job_is_lost(
    service: Any, submit: Submit, until: Until
) -> None:
    """The running job goes on, the queued one remains, and both succeed on their first attempt."""
    running, waiting = submit(), submit(size="64", iterations="5")
    until(_has_progress(service, running), "running")
    (valkey,) = service.find("valkey-server")
    valkey.kill()

    until(lambda: service.find("valkey-server") and service.client.ready(), "the store is up", 20)
    ends = [_wait(service, job_id) for job_id in (running, waiting)]

    assert [(job.status, job.attempt) for job in ends] == [(Status.SUCCEEDED, 1)] * 2


def test_after_kill_9_the_api_restarts_and_the_job_goes_on(
    service: Any, submit: Submit, until: Until
) -> None:
    job_id = submit()
    until(_has_progress(service, job_id), "running")
    (api,) = service.find("-m", "api")
    api.kill()
    api.wait()
    until(service.client.ready, "the API is ready", 20)

    ended = _wait(service, job_id)
    assert (ended.status, ended.attempt) == (Status.SUCCEEDED, 1)


def test_jobs_and_results_survive_ctrl_c_and_a_new_start(
    service: Any, submit: Submit, until: Until
) -> None:
    """Everything stops within seconds; the released job does not lose an attempt."""
    done, running, waiting = (
        submit(size="64", iterations="5"),
        submit(iterations="200"),
        submit(size="64", iterations="5"),
    )
    _wait(service, done)
    until(_has_progress(service, running), "running")
    before, began, log_length = service.processes(), time.monotonic(), len(service.log)

    assert service.stop() == 0
    assert time.monotonic() - began < 10
    assert not psutil.wait_procs(before, 5)[1]
    assert "Traceback" not in service.log[log_length:]
    service.start()

    assert validation.detect_format(service.client.result(done)) == "png"
    ends = [_wait(service, job_id) for job_id in (running, waiting)]
    assert [(job.status, job.attempt) for job in ends] == [(Status.SUCCEEDED, 1)] * 2


def test_kill_9_of_impasto_itself_leaves_no_process_behind(
    service: Any, submit: Submit, until: Until
) -> None:
    job_id = submit()
    until(_has_progress(service, job_id), "running")
    before = service.processes()
    service.kill()

    assert not psutil.wait_procs(before, 10)[1]
    service.start()
    ended = _wait(service, job_id)
    assert ended.status is Status.SUCCEEDED


def test_cancel_stops_a_running_job_within_seconds_and_the_next_one_runs(
    service: Any, submit: Submit, until: Until
) -> None:
    long, short = submit(iterations="5000"), submit(size="64", iterations="5")
    until(_has_progress(service, long), "running")
    service.client.cancel(long)

    until(lambda: service.client.job(long).status is Status.CANCELED, "canceled", 5)
    assert _wait(service, short).status is Status.SUCCEEDED


def test_a_webhook_is_delivered_after_a_kill_of_the_dispatcher(
    service: Any, submit: Submit, until: Until
) -> None:
    """The receiver starts late, so the first delivery attempt fails."""
    port, secret = service.webhook_port, service.environment["IMPASTO_WEBHOOK_SECRET"]
    (dispatcher,) = service.find("-m", "worker.webhooks")
    dispatcher.kill()
    dispatcher.wait()
    job_id = submit(size="64", iterations="5", webhook=f"http://localhost:{port}/hook")
    assert _wait(service, job_id).status is Status.SUCCEEDED
    until(lambda: service.find("-m", "worker.webhooks"), "another dispatcher")
    log = Path(service.environment["IMPASTO_DATA_DIR"]) / "logs" / "webhooks.log"
    until(lambda: f"{job_id}: webhook, try 1" in log.read_text(), "a failed attempt")

    received: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            webhook = Webhook(Signer(secret).owner_secret("local"))
            received.append(webhook.verify(body, dict(self.headers)))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", port), Handler) as server:
        server.timeout = 20
        server.handle_request()
    until(lambda: f"{job_id}: webhook, try 2: status 204" in log.read_text(), "delivered")

    assert [(event["type"], event["data"]["id"]) for event in received] == [
        ("job.succeeded", job_id)
    ]
