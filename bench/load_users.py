"""A locustfile: clients of bench/load.py overload.

Some submit photos or list their jobs, the others poll jobs.

It runs as a process of its own, because locust replaces the sockets and threads of its process.
The file named by IMPASTO_LOAD says what to do, and gets what the clients saw in `answers`.
"""

import json
import os
import random
import time
from pathlib import Path
from typing import Any

import gevent
from locust import FastHttpUser, events, task

PLAN_FILE = Path(os.environ["IMPASTO_LOAD"])
PLAN: dict[str, Any] = json.loads(PLAN_FILE.read_text())
os.sched_setaffinity(0, PLAN["cores"])
PHOTO, PAINTING = (Path(PLAN[name]).read_bytes() for name in ("photo", "painting"))
REQUEST, STATUS = "request", "status"

_PART = (
    '--load\r\nContent-Disposition: form-data; name="{0}"; filename="a"\r\n'
    "Content-Type: image/jpeg\r\n\r\n"
)
_answers: list[tuple[str, float, float, int]] = []  # name, time of the answer, seconds, status


def _body() -> bytes:
    """Return a form with a photo of its own: a comment in the JPEG changes the digest."""
    comment = b"\xff\xfe\x00\x22" + random.randbytes(16).hex().encode()
    photo = PHOTO[:2] + comment + PHOTO[2:]
    content, style = (_PART.format(name).encode() for name in ("content", "style"))
    return b"".join((content, photo, b"\r\n", style, PAINTING, b"\r\n--load--\r\n"))


class _Client(FastHttpUser):
    abstract = True
    network_timeout = connection_timeout = PLAN["timeout_seconds"]
    max_retries = 0
    pacing = 0.0  # seconds from the beginning of one request to the next; 0: at once

    def on_start(self) -> None:
        self.key = random.choice(PLAN["keys"])
        gevent.sleep(random.random() * self.pacing)
        self._due = time.monotonic()

    def wait_time(self) -> float:
        """Requests are due at fixed times, however long an answer takes (open loop)."""
        self._due = max(self._due + self.pacing, time.monotonic())
        return self._due - time.monotonic()

    @property
    def authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


class Requester(_Client):
    """Submits one photo after another, or lists its jobs again and again."""

    pacing = PLAN["pacing"]
    fixed_count = PLAN["requesters"]

    @task
    def request(self) -> None:
        """List the jobs, or submit one; the body is as most clients send it."""
        self.key = random.choice(PLAN["keys"])  # so few clients send for all callers, too
        if PLAN["listed"]:
            path = f"/v1/jobs?limit={PLAN['listed']}"
            self.client.get(path, headers=self.authorization, name=REQUEST)
            return
        headers = {**self.authorization, "Content-Type": "multipart/form-data; boundary=load"}
        # geventhttpclient sends bytes as they are; the annotation does not say so.
        data: Any = _body()
        self.client.post("/v1/jobs", data=data, headers=headers, name=REQUEST)


class Poller(_Client):
    """Polls running jobs."""

    pacing = PLAN["status_pacing"]
    fixed_count = PLAN["pollers"]

    @task
    def poll(self) -> None:
        """Get the status of a job."""
        job_id, self.key = random.choice(PLAN["jobs"])
        self.client.get(f"/v1/jobs/{job_id}", headers=self.authorization, name=STATUS)


@events.request.add_listener  # type: ignore[untyped-decorator]
def _record(name: str, response_time: float, response: Any, **_: Any) -> None:
    status = 0 if response is None else int(response.status_code or 0)
    _answers.append((name, time.time(), response_time / 1000, status))


@events.quitting.add_listener  # type: ignore[untyped-decorator]
def _write(**_: Any) -> None:
    PLAN_FILE.write_text(json.dumps({**PLAN, "answers": _answers}))
