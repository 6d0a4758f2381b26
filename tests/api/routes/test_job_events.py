"""The event stream of a job, with real processes, a real store and real sockets."""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from api.job_feed import JobSnapshot
from api.routes import job_events
from cli.local_service import free_port
from core.auth.api_keys import ApiKeyStore
from core.images import codec, validation
from core.jobs.models import (
    Frame,
    Job,
    JobInput,
    JobProgress,
    ModelUsed,
    Output,
    SubmissionContext,
    new_job_id,
)
from core.jobs.store import JobStore
from core.storage.blobs import Blobs, digest_of

Event = tuple[str, str | None, dict[str, Any]]  # name, id, data

PROGRESS = JobProgress(
    value=0.1,
    scale=1,
    scales=1,
    iteration=1,
    iterations=9,
    iterations_per_second=None,
    seconds_left=None,
    loss={},
)

MAIN = "from api.__main__ import main; main()"


class Api:
    """A real API process, and a client of its store."""

    def __init__(self, redis_url: str, folder: Path, code: str = MAIN, **settings: str) -> None:
        self.port, self.store = free_port(), JobStore(redis_url)
        self.opened: list[Any] = []
        own = {
            "REDIS_URL": redis_url,
            "DATA_DIR": str(folder),
            "API_PORT": str(self.port),
        } | settings
        environment = os.environ | {f"IMPASTO_{name}": value for name, value in own.items()}
        with (folder / "api.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code], env=environment, stdout=log, stderr=log
            )
        until = time.monotonic() + 60
        while not self._is_ready():
            assert self.process.poll() is None, (folder / "api.log").read_text()
            assert time.monotonic() < until, "the API does not answer"
            time.sleep(0.05)

    def ask(self, path: str, **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(
                "GET",
                path,
                headers={name.replace("_", "-"): text for name, text in headers.items()},
            )
            answer = connection.getresponse()
        finally:
            self.opened.append(connection)
        self.opened.append(answer)
        return answer

    def _is_ready(self) -> bool:
        try:
            return self.ask("/livez").status == 200
        except ConnectionRefusedError:
            return False

    def stream(self, job_id: str, query: str = "", **headers: str) -> "Stream":
        return Stream(self.ask(f"/v1/jobs/{job_id}/events{query}", **headers))

    def new_job(self, owner: str = "local") -> Job:
        for digest in ("sha256:a", "sha256:b"):
            self.store.reserve(digest)
        return self.store.create(
            new_job_id(),
            JobInput(content="sha256:a", styles=["sha256:b"], spec={}),
            context=SubmissionContext(owner=owner),
        )

    def claim(self, token: str = "t") -> Job:
        job = self.store.claim(token, "worker")
        assert job is not None
        return job

    def progress(
        self, job: Job, value: float, preview: str | None = None, token: str = "t", **loss: float
    ) -> None:
        progress = JobProgress(
            value=value,
            scale=1,
            scales=2,
            iteration=1,
            iterations=9,
            iterations_per_second=None,
            seconds_left=None,
            loss=loss,
        )
        if preview:
            self.store.reserve(preview)
        assert self.store.report_progress(job.id, token, progress, preview) == "ok"

    def succeed(self, job: Job, digest: str = "sha256:r", token: str = "t") -> None:
        self.store.reserve(digest)
        output = Output(id=digest, content_type="image/png", width=1600, height=1600, size_bytes=1)
        assert (
            self.store.succeed(job.id, token, output, ModelUsed(name="vgg16", sha256="w"), {})
            == "ok"
        )

    def stop(self) -> float:
        """Terminate the process and return the seconds that this took."""
        began = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        return time.monotonic() - began

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.store.close()
        for one in self.opened:
            one.close()


class Stream:
    """Parses the events of a stream."""

    def __init__(self, answer: http.client.HTTPResponse) -> None:
        self.answer, self.status, self.headers = answer, answer.status, answer.headers
        self.comments: list[str] = []
        self.retry: str | None = None

    def next(self) -> Event | None:
        """Return the next event, or None at the end of the stream."""
        name, own_id, data = "", None, ""
        while line := self.answer.readline().decode():
            field, _, value = line.rstrip("\n").partition(": ")
            if field == "event":
                name = value
            elif field == "id":
                own_id = value
            elif field == "data":
                data += value
            elif field == "retry":
                self.retry = value
            elif line.startswith(":"):
                self.comments.append(value)
            elif not field and data:
                return name, own_id, json.loads(data)
        return None

    def comment(self, sought: str) -> None:
        """Read until this comment arrives; fail if an event arrives first."""
        while sought not in self.comments:
            line = self.answer.readline().decode()
            assert line, "the stream has ended"
            assert not line.startswith("data"), line
            if line.startswith(":"):
                self.comments.append(line[2:].rstrip("\n"))

    def rest(self) -> list[Event]:
        return list(iter(self.next, None))

    def close(self) -> None:
        self.answer.close()


Serve = Callable[..., Api]


@pytest.fixture
def serve(valkey: Any, tmp_path: Path) -> Iterator[Serve]:
    started: list[Api] = []

    def start(url: str = valkey.url, code: str = MAIN, **settings: str) -> Api:
        started.append(Api(url, tmp_path, code, **settings))
        return started[-1]

    yield start
    for api in started:
        api.close()


def _patched(line: str) -> str:
    return f"import api.routes.job_events, api.job_feed, core.jobs.async_reader; {line}; {MAIN}"


def test_the_stream_sends_every_change_of_a_job(serve: Serve) -> None:
    """The merged data of all events equals the job."""
    api = serve()
    job = api.new_job()
    stream = api.stream(job.id)
    assert (stream.status, stream.headers["Content-Type"]) == (
        200,
        "text/event-stream; charset=utf-8",
    )
    assert (stream.headers["Cache-Control"], stream.headers["X-Accel-Buffering"]) == (
        "no-store",
        "no",
    )
    received = [stream.next()]
    api.claim()
    received.append(stream.next())
    api.progress(job, 0.25, style=1.0)
    received.append(stream.next())
    api.progress(job, 0.5, "sha256:p", style=0.5)
    received += [stream.next(), stream.next()]
    api.succeed(job)
    received += stream.rest()

    lines = [(event[0], event[1]) for event in received if event]
    expected = [
        ("status", "1"),
        ("status", "2"),
        ("progress", "3"),
        ("progress", None),
        ("preview", "4"),
    ]
    assert lines == [*expected, ("status", "5")], (
        "one id for the events of one change, on the last of them"
    )
    known: dict[str, Any] = {}
    for event in received:
        assert event is not None
        known |= event[2]
    assert known == json.loads(api.ask(f"/v1/jobs/{job.id}").read())
    assert stream.retry == "2000"
    assert f"/v1/jobs/{job.id}/events" == known["links"]["events"]


def test_a_client_resumes_from_any_event(serve: Serve) -> None:
    api = serve()
    job = api.new_job()
    api.claim()
    api.progress(job, 0.25)
    for after in (0, 1, 2, 99):  # the store never reached 99: it was restored from a backup
        first = api.stream(job.id, Last_Event_ID=str(after)).next()
        assert first is not None
        assert (*first[:2], first[2]["progress"]["value"]) == ("status", "3", 0.25)
    stream = api.stream(job.id, f"?after={3}")
    api.progress(job, 0.5)
    following = stream.next()
    assert following is not None
    assert (*following[:2], following[2]["progress"]["value"]) == ("progress", "4", 0.5), (
        "the client knew version 3"
    )
    api.succeed(job)
    assert [event[:2] for event in stream.rest()] == [("status", "5")]

    for after in range(5):
        assert [event[:2] for event in api.stream(job.id, f"?after={after}").rest()] == [
            ("status", "5")
        ]
    assert api.stream(job.id, Last_Event_ID="5").status == 204, (
        "204 stops a browser from reconnecting"
    )
    assert api.stream(job.id, "?after=0", Last_Event_ID="5").status == 204, (
        "the header is newer than the URL"
    )
    assert api.stream(job.id, "?after=x").status == 422
    for strange in ("9" * 5000, "-1", "x", "²"):
        first = api.stream(job.id, Last_Event_ID=strange).next()
        assert (first or ())[:2] == ("status", "5"), strange[:9]


def test_frames_are_sent_as_progress_and_the_first_one_changes_the_links_once(
    serve: Serve,
) -> None:
    """As a worker does: a frame per report, without a new version, and then a spec update."""
    api = serve()
    job = api.new_job()
    api.claim()
    stream = api.stream(job.id)
    assert stream.next()
    received = []
    for number in range(1, 4):
        digest = f"sha256:f{number}"
        api.store.reserve(digest)
        frame = Frame(index=0, iteration=number, scale=1, seconds=0.1, digest=digest)
        assert api.store.add_frame(job.id, "t", frame) == 0
        api.progress(job, number / 10, "sha256:p" if number == 3 else None)
        received.append(stream.next())
    received.append(stream.next())
    api.store.update_spec(
        job.id, lambda job_input: job_input.model_copy(update={"spec": {"strength": 1}})
    )
    received.append(stream.next())

    assert [event[0] for event in received if event] == [
        "status",
        "progress",
        "progress",
        "preview",
        "status",
    ]
    known: dict[str, Any] = {}
    for event in received:
        assert event is not None
        known |= event[2]
    assert known == json.loads(api.ask(f"/v1/jobs/{job.id}").read())
    assert {"frames", "timelapse"} <= set(known["links"])


def test_all_streams_of_a_job_receive_its_changes_and_end_with_its_deletion(serve: Serve) -> None:
    api = serve()
    job, other = api.new_job(), api.new_job()
    streams = [api.stream(job.id), api.stream(job.id)]
    elsewhere = api.stream(other.id)
    for stream in (*streams, elsewhere):
        stream.next()
    api.claim()
    assert [event[:2] for event in (stream.next() for stream in streams) if event] == [
        ("status", "2"),
        ("status", "2"),
    ]
    moved = elsewhere.next()
    assert moved is not None
    assert (*moved[:2], moved[2]["queue"]) == (
        "status",
        "1",
        {"position": 0, "start_seconds": None, "waits_for": None, "has_worker": False},
    )

    streams[0].close()
    api.progress(job, 0.5)
    assert (streams[1].next() or ())[:2] == ("progress", "3")
    api.store.delete(job.id)
    assert streams[1].rest() == []
    assert "the job is deleted" in streams[1].comments
    assert api.stream(job.id).status == 404


def test_polling_finds_a_change_without_a_notification(serve: Serve) -> None:
    """Without notifications, the poll finds every state that persists."""
    api = serve(code=_patched("core.jobs.async_reader.CHANGES = 'elsewhere'"))
    job = api.new_job()
    stream = api.stream(job.id)
    stream.next()
    api.claim()
    assert (stream.next() or ())[:2] == ("status", "2")
    api.progress(job, 0.5)
    assert (stream.next() or ())[:2] == ("progress", "3")


def test_notifications_are_sufficient_without_polling(serve: Serve) -> None:
    api = serve(code=_patched("api.job_feed.POLL_SECONDS = 1000"))
    job = api.new_job()
    stream = api.stream(job.id)
    stream.next()
    began = time.monotonic()
    api.claim()
    assert (stream.next() or ())[:2] == ("status", "2")
    assert time.monotonic() - began < 5


def test_a_stream_survives_a_restart_of_the_store(serve: Serve, own_valkey: Any) -> None:
    api = serve(own_valkey.url, _patched("api.routes.job_events.HEARTBEAT_SECONDS = 0.3"))
    job = api.new_job()
    streams = [api.stream(job.id), api.stream(job.id)]
    for stream in streams:
        assert stream.next()
    streams[0].comment("heartbeat")
    own_valkey.kill()
    for stream in streams:
        stream.comment("the store does not answer")
    assert api.stream(job.id).status == 503
    own_valkey.start()
    api.claim()
    api.progress(job, 0.5)
    for stream in streams:
        while (event := stream.next()) and event[1] != "3":
            pass
        assert event is not None
        assert event[2]["progress"]["value"] == 0.5
    api.succeed(job)
    assert [[event[1] for event in stream.rest()] for stream in streams] == [["4"], ["4"]]


def test_a_client_that_does_not_read_costs_no_memory_and_is_disconnected(serve: Serve) -> None:
    """16 MB of changes for each of 20 clients: the API does not buffer them."""
    api = serve(API_CLIENT_TIMEOUT_SECONDS="3")
    job = api.new_job()
    api.claim()
    for _ in range(20):
        line = socket.socket()
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.connect(("127.0.0.1", api.port))
        line.sendall(f"GET /v1/jobs/{job.id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        api.opened.append(line)
    reader = api.stream(job.id)
    assert reader.next()
    before = psutil.Process(api.process.pid).memory_info().rss
    with ThreadPoolExecutor() as reading:
        events = reading.submit(reader.rest)
        for number in range(150):
            assert api.store.renew(job.id, "t") == "ok"
            api.progress(
                job, number / 150, **{f"{name:0100}": float(number) for name in range(1000)}
            )
        api.succeed(job)
        assert events.result()[-1][2]["status"] == "succeeded"
    after = psutil.Process(api.process.pid).memory_info().rss
    assert after - before < 40e6, f"{(after - before) / 1e6:.0f} MB"
    until = time.monotonic() + 30
    while (left := _connections(api)) and time.monotonic() < until:
        time.sleep(0.1)
    assert left == 0


def test_a_slow_client_of_a_large_conversion_costs_no_memory(serve: Serve, blobs: Blobs) -> None:
    """The cache is off, so each request converts the result again."""
    # On a busy machine, 16 conversions take longer than the default timeout of 15 s.
    api = serve(
        code=f"from api.http import image_response as r; r._cache = r.create_cache(0); {MAIN}",
        API_CLIENT_TIMEOUT_SECONDS="120",
    )
    job = api.new_job()
    api.claim()
    noise = Image.frombytes("RGB", (1600, 1600), os.urandom(1600 * 1600 * 3))
    api.succeed(job, blobs.put(codec.encode(noise)))
    path = f"/v1/jobs/{job.id}/result?width=1500"
    data = api.ask(path).read()
    assert validation.detect_format(data) == "png"
    before = psutil.Process(api.process.pid).memory_info().rss
    answers = [api.ask(path) for _ in range(16)]
    assert {answer.read(4) for answer in answers} == {data[:4]}
    after = psutil.Process(api.process.pid).memory_info().rss

    assert after - before < 60e6 < 10 * len(data), f"{(after - before) / 1e6:.0f} MB"
    assert all(answer.read() == data[4:] for answer in answers)
    # The last file is deleted after its last byte is sent.
    until = time.monotonic() + 30
    while (left := _files(blobs._folder / "parts")) and time.monotonic() < until:
        time.sleep(0.1)
    assert left == []


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_file()]


def test_a_slow_client_of_a_large_result_costs_no_memory(serve: Serve, blobs: Blobs) -> None:
    """48 MB for each of 10 clients. All receive it whole, although the job is deleted meanwhile."""
    api = serve()
    job, picture = api.new_job(), b"\x89PNG\r\n\x1a\n" + os.urandom(48_000_000)
    api.claim()
    api.succeed(job, blobs.put(picture))
    assert api.ask(f"/v1/jobs/{job.id}").status == 200
    before = psutil.Process(api.process.pid).memory_info().rss
    answers = [api.ask(f"/v1/jobs/{job.id}/result") for _ in range(10)]
    assert {answer.read(4) for answer in answers} == {b"\x89PNG"}
    api.store.delete(job.id)
    blobs.delete(digest_of(picture))
    after = psutil.Process(api.process.pid).memory_info().rss

    assert after - before < 32e6, f"{(after - before) / 1e6:.0f} MB"
    assert all(answer.read() == picture[4:] for answer in answers)


def _connections(api: Api) -> int:
    found = psutil.Process(api.process.pid).net_connections()
    return sum(one.laddr.port == api.port and one.status == "ESTABLISHED" for one in found)


def test_streams_end_when_the_process_shuts_down(serve: Serve) -> None:
    api = serve()
    job = api.new_job()
    streams = [api.stream(job.id) for _ in range(3)]
    for stream in streams:
        stream.next()
    seconds = api.stop()
    for stream in streams:
        assert stream.rest() == [], "a stream that is cut off raises IncompleteRead"
        assert "reconnect" in stream.comments
    assert seconds < 5, "uvicorn waits 10 s for open responses"


def test_only_the_owner_can_stream_a_job(serve: Serve, valkey: Any) -> None:
    api = serve(API_KEYS="required", API_MAX_STREAMS_PER_CALLER="2")
    keys = ApiKeyStore(valkey.url)
    (ada, adas), (_, bobs) = keys.create("ada"), keys.create("bob")
    keys.close()
    job = api.new_job(ada.id)

    assert api.stream(job.id).status == 401
    assert (stream := api.stream(job.id, Authorization=f"Bearer {adas}")).status == 200
    answers = [
        api.ask(f"/v1/jobs/{one}/events", Authorization=f"Bearer {bobs}")
        for one in (job.id, new_job_id(), "x")
    ]
    assert [answer.status for answer in answers] == [404, 404, 404]
    assert len({answer.read() for answer in answers}) == 1

    second = api.stream(job.id, Authorization=f"Bearer {adas}")
    refused = api.ask(f"/v1/jobs/{job.id}/events", Authorization=f"Bearer {adas}")
    assert (refused.status, json.loads(refused.read())["code"]) == (429, "too_many_streams")
    assert api.stream(job.id, Authorization=f"Bearer {bobs}").status == 404, (
        "each caller has its own limit"
    )
    second.next()
    second.answer.fp.raw._sock.shutdown(socket.SHUT_RDWR)  # type: ignore[attr-defined]
    second.close()
    until = time.monotonic() + 20
    while (again := api.stream(job.id, Authorization=f"Bearer {adas}")).status == 429:
        assert time.monotonic() < until, "a disconnected stream still counts"
        time.sleep(0.05)
    assert (again.next() or ())[:2] == ("status", "1")
    assert stream.next()


def test_a_revoked_key_ends_its_own_streams_only(serve: Serve, valkey: Any) -> None:
    """Streams end for a job without changes and for one that changes constantly."""
    api = serve(code=_patched("api.routes.job_events.HEARTBEAT_SECONDS = 0.3"), API_KEYS="required")
    keys = ApiKeyStore(valkey.url)
    (ada, adas), (bob, bobs) = keys.create("ada"), keys.create("bob")
    waiting, running = api.new_job(ada.id), api.new_job(bob.id)
    lasting = api.stream(running.id, Authorization=f"Bearer {bobs}")
    silent = api.stream(waiting.id, Authorization=f"Bearer {adas}")
    for stream in (lasting, silent):
        assert stream.next()
    silent.comment("heartbeat")
    keys.revoke(ada.id)
    began, lines = time.monotonic(), [b""]
    while line := silent.answer.readline():
        assert time.monotonic() - began < 10, "a stream without changes does not end"
        lines.append(line)
    assert b": reconnect\n" in lines
    assert api.stream(waiting.id, Authorization=f"Bearer {adas}").status == 401

    lasting.comment("heartbeat")
    job = api.claim()
    while job.id != running.id:
        job = api.claim("other")
    keys.revoke(bob.id)
    keys.close()
    with ThreadPoolExecutor() as reading:
        events = reading.submit(lasting.rest)
        until = time.monotonic() + 20
        while not events.done() and time.monotonic() < until:
            api.store.renew(running.id, "other")
            api.store.renew(running.id, "t")
            for token in ("t", "other"):
                api.store.report_progress(running.id, token, PROGRESS)
            time.sleep(0.1)
        assert events.done(), "a stream with changes does not end"


def test_a_page_of_an_allowed_origin_may_stream(serve: Serve) -> None:
    api = serve(API_CORS_ORIGINS="https://example.org")
    answer = api.stream(api.new_job().id, Origin="https://example.org")
    assert answer.headers["Access-Control-Allow-Origin"] == "https://example.org"


def test_a_change_that_clients_cannot_see_sends_no_event(serve: Serve, store: JobStore) -> None:
    for digest in ("sha256:a", "sha256:b"):
        store.reserve(digest)
    job = store.create(new_job_id(), JobInput(content="sha256:a", styles=["sha256:b"], spec={}))
    for unseen in (
        {"checkpoint": "c"},
        {"frame_thinnings": 1},
        {"spec_update_count": 1},
        {"owner": "x"},
    ):
        assert (
            job_events.encode_events(
                JobSnapshot(job.model_copy(update={**unseen, "version": 2})), JobSnapshot(job)
            )
            == b""
        ), unseen
    assert job_events.encode_events(
        JobSnapshot(job.model_copy(update={"pinned": True})), JobSnapshot(job)
    ).startswith(b"event: status\n")
