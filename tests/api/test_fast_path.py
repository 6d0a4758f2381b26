"""The fast path answers as the usual way does, and never with an old state of a job."""

import logging
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from api import fast_path, metrics
from api.app import create_app
from api.fair_queue import FairQueue
from api.fast_path import FastPath
from api.http import problems
from api.http.shared_response import SharedResponse
from api.settings import ApiSettings
from core import errors
from core.auth.api_keys import ApiKeyStore
from core.config import Settings
from core.images import codec
from core.jobs.models import JobInput, ModelUsed, Output, SubmissionContext, new_job_id
from core.jobs.store import JobStore
from core.storage.blobs import Blobs, digest_of

Requests = list[tuple[str, str, list[tuple[str, str]]]]
OWN = {"date", "x-request-id"}  # headers that differ between two requests


def _spy_on(monkeypatch: pytest.MonkeyPatch, name: str) -> list[bool]:
    """Whether this method of the fast path has returned a response, for each of its calls."""
    calls: list[bool] = []
    method = getattr(FastPath, name)

    async def spy(self: FastPath, *args: Any) -> Any:
        response = await method(self, *args)
        calls.append(response is not None)
        return response

    monkeypatch.setattr(FastPath, name, spy)
    return calls


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether the fast path has answered, for each request that it has looked at."""
    return _spy_on(monkeypatch, "_respond")


@pytest.fixture
def secret(valkey: Any) -> Iterator[tuple[str, str]]:
    """The id of a key, and its secret."""
    keys = ApiKeyStore(valkey.url)
    key, text = keys.create("a")
    yield key.id, text
    keys.close()


def _new_job(store: JobStore, owner: str = "local") -> str:
    for digest in ("sha256:a", "sha256:b"):
        store.reserve(digest)
    job_input = JobInput(content="sha256:a", styles=["sha256:b"], spec={})
    return store.create(new_job_id(), job_input, context=SubmissionContext(owner=owner)).id


def _finish(store: JobStore, blobs: Blobs, data: bytes) -> None:
    """Run the next job: its result is `data`."""
    job = store.claim("t", "worker")
    assert job is not None
    store.reserve(digest_of(data))
    output = Output(
        id=blobs.put(data), content_type="image/png", width=96, height=72, size_bytes=len(data)
    )
    store.succeed(job.id, "t", output, ModelUsed(name="vgg16", sha256="0"), {})


def _requests(job_id: str, ended_id: str, done_id: str, tag: str) -> Requests:
    result = f"/v1/jobs/{done_id}/result"
    job, events = f"/v1/jobs/{job_id}", f"/v1/jobs/{ended_id}/events"
    return [
        *(
            ("GET", job, headers)
            for headers in (
                [],
                [("If-None-Match", tag)],
                [("If-None-Match", 'W/"0-"')],
                [("If-None-Match", 'W/"0-"'), ("If-None-Match", tag.removeprefix("W/"))],
                [("If-None-Match", "*")],
                [("X-Request-Id", "abc")],
                [("X-Request-Id", "a b")],
                [("Host", "evil.example")],
                [("Host", "localhost"), ("Host", "localhost")],
                [("Content-Encoding", "gzip")],
                [("Origin", "https://page.example")],
                [("Origin", "https://other.example")],
                [("Prefer", "wait=1"), ("If-None-Match", 'W/"0-"')],
                [("X-Forwarded-Prefix", "/paint"), ("X-Forwarded-For", "192.0.2.1")],
                [("X-Forwarded-Prefix", "no path")],
            )
        ),
        ("HEAD", job, []),
        ("GET", f"{job}?a=b", []),
        ("GET", f"{job}/", []),
        ("DELETE", f"{job}/events", []),
        ("GET", f"/v1/jobs/{new_job_id()}", []),
        ("GET", "/v1/jobs/job_x", []),
        ("GET", f"/v1/jobs/{ended_id}", []),
        ("GET", events, []),
        ("GET", events, [("Last-Event-ID", "1")]),
        ("GET", events, [("Last-Event-ID", "2")]),
        ("GET", events, [("Last-Event-ID", "no id")]),
        ("GET", f"{events}?after=2", []),
        ("HEAD", events, []),
        ("GET", f"/v1/jobs/{new_job_id()}/events", []),
        ("GET", result, []),
        ("GET", result, []),
        ("GET", result, [("Range", "bytes=1-3")]),
        ("GET", result, [("If-None-Match", "*")]),
        ("GET", f"{result}?format=webp", []),
        ("HEAD", result, []),
        ("GET", f"{job}/result", []),
        ("GET", f"/v1/jobs/{new_job_id()}/result", []),
    ]


def _measure(
    client: TestClient, requests: Requests, caplog: pytest.LogCaptureFixture
) -> list[tuple[Any, ...]]:
    """What a client, the log and the metrics see of each request."""
    seen: list[tuple[Any, ...]] = []
    for method, path, headers in requests:
        caplog.clear()
        counts = _read_counts()
        with caplog.at_level(logging.INFO, "api.middleware.access_log"):
            answer = client.request(method, path, headers=headers)
        fields = [{**record.fields, "ms": 0} for record in caplog.records]  # type: ignore[attr-defined]
        own = {name: value for name, value in answer.headers.items() if name not in OWN}
        changed = {name: n - counts.get(name, 0) for name, n in _read_counts().items()}
        counted = {name: n for name, n in changed.items() if n}
        seen.append((method, path, headers, answer.status_code, own, answer.content))
        seen[-1] += (fields, counted, len(answer.headers["x-request-id"]))
    return seen


def _read_counts() -> dict[str, float]:
    samples = [sample for family in metrics.REQUESTS.collect() for sample in family.samples]
    return {
        f"{sample.name} {sample.labels}": sample.value
        for sample in samples
        if re.fullmatch("impasto_http_.*_(total|count)", sample.name)
    }


@pytest.mark.parametrize(
    "settings",
    [{}, {"cors_origins": ["https://page.example"]}, {"root_path": "/under"}, {"keys": "required"}],
    ids=str,
)
def test_both_ways_give_the_same_answers_log_lines_and_metrics(
    settings: dict[str, Any],
    valkey: Any,
    tmp_path: Path,
    store: JobStore,
    connect: Callable[..., TestClient],
    secret: tuple[str, str],
    photo: Image.Image,
    answered: list[bool],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    needs_key = "keys" in settings
    owner = secret[0] if needs_key else "local"
    done_id = _new_job(store, owner)
    _finish(store, Blobs(tmp_path / "blobs"), codec.encode(photo))
    job_id, ended_id = _new_job(store, owner), _new_job(store, owner)
    store.cancel(ended_id, owner)
    shared = Settings(redis_url=valkey.url, data_dir=tmp_path)
    client = connect(create_app(shared, ApiSettings(**settings)))
    if needs_key:
        client.headers["Authorization"] = f"Bearer {secret[1]}"
    tag = client.get(f"/v1/jobs/{job_id}").headers["etag"]
    requests = _requests(job_id, ended_id, done_id, tag)
    if needs_key:
        other = f"/v1/jobs/{_new_job(store, 'another')}"
        for path in (other, f"{other}/events"):
            requests.append(("GET", path, []))
        for wrong in ("", "Bearer x", f"Bearer impasto_{'a' * 52}"):
            requests.append(("GET", f"/v1/jobs/{job_id}", [("Authorization", wrong)]))
    answered.clear()

    fast = _measure(client, requests, caplog)

    assert answered.count(True) >= 8
    assert answered.count(False) >= 3
    answered.clear()
    monkeypatch.setattr(fast_path, "_PATH", re.compile("(?!)"))
    usual = _measure(client, requests, caplog)
    assert answered == []
    for one, other_one in zip(fast, usual, strict=True):
        assert one == other_one


@pytest.mark.parametrize("code", ["unavailable", "retry_later"])
@pytest.mark.parametrize("settings", [{}, {"keys": "required"}], ids=str)
def test_both_ways_refuse_reads_in_the_same_way(
    settings: dict[str, Any],
    code: str,
    valkey: Any,
    tmp_path: Path,
    connect: Callable[..., TestClient],
    secret: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shared = Settings(redis_url=valkey.url, data_dir=tmp_path)
    client = connect(create_app(shared, ApiSettings(**settings)))
    error = {"unavailable": errors.Unavailable, "retry_later": errors.RetryLater}[code]
    monkeypatch.setattr(FairQueue, "is_crowded", True)
    monkeypatch.setattr(FairQueue, "find_refusal", lambda *_: error("Come again."))
    requests: Requests = [
        *(("GET", path, []) for path in ("/v1/jobs", "/v1/jobs?limit=5", "/v1/system", "/livez")),
        ("HEAD", "/v1/jobs", []),
        ("GET", "/v1/jobs", [("Host", "evil.example")]),
        ("GET", "/v1/jobs", [("Authorization", "Bearer x")]),
        ("GET", "/v1/operator/queue", []),
        ("GET", "/v1/jobs?limit=x", [("X-Request-Id", "abc")]),
    ]
    if settings:
        client.headers["Authorization"] = f"Bearer {secret[1]}"
    refused = _spy_on(monkeypatch, "_refuse")

    fast = _measure(client, requests, caplog)

    assert refused.count(True) >= 4
    assert {one[3] for one in fast} >= {problems.STATUS[error], 200}
    refused.clear()
    monkeypatch.setattr(fast_path, "is_read", lambda _: False)
    usual = _measure(client, requests, caplog)
    assert refused == []
    for one, other_one in zip(fast, usual, strict=True):
        assert one == other_one


@pytest.mark.parametrize(("max_wait", "seconds"), [(0.4, 0.2), (60, 0.5)])
def test_a_refusal_may_be_repeated_and_each_repetition_counts(
    max_wait: float,
    seconds: float,
    valkey: Any,
    tmp_path: Path,
    connect: Callable[..., TestClient],
    store: JobStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shared = Settings(redis_url=valkey.url, data_dir=tmp_path)
    client = connect(create_app(shared, ApiSettings(max_wait_seconds=max_wait)))
    monkeypatch.setattr(FairQueue, "is_crowded", True)
    monkeypatch.setattr(FairQueue, "find_refusal", lambda *_: errors.Unavailable("Come again."))
    given: list[Any] = []
    send_to = SharedResponse.send_to

    async def spy(self: SharedResponse, *args: Any) -> None:
        given.append(args[-1])
        await send_to(self, *args)

    monkeypatch.setattr(SharedResponse, "send_to", spy)
    assert client.get(f"/v1/jobs/{_new_job(store)}").status_code == 200
    assert client.get("/v1/jobs").status_code == 503
    own, policy = given
    assert own is None
    assert policy.seconds == seconds
    assert policy.is_valid()
    before = _read_counts()
    with caplog.at_level(logging.INFO, "api.middleware.access_log"):
        policy.on_expired(0)
        policy.on_expired(3)

    changes = {n - before.get(name, 0) for name, n in _read_counts().items()}
    assert changes == {0, 3}
    (record,) = caplog.records
    assert record.fields["repeats"] == 3  # type: ignore[attr-defined]
    assert record.getMessage() == "GET - 503 3 more times"
    client.get("/v1/jobs", headers={"X-Request-Id": "abc"})
    assert given[-1] is None, "the answer has this request's own id"
    monkeypatch.setattr(FairQueue, "is_crowded", False)
    assert not policy.is_valid(), "requests have their turns"


@pytest.mark.parametrize("path", ["/v1/jobs/{}", "/v1/jobs/job_" + "a" * 26])
def test_each_request_counts_once_against_the_limit(
    path: str,
    valkey: Any,
    tmp_path: Path,
    store: JobStore,
    connect: Callable[..., TestClient],
    secret: tuple[str, str],
) -> None:
    own = ApiSettings(keys="required", requests_per_minute=5)
    client = connect(create_app(Settings(redis_url=valkey.url, data_dir=tmp_path), own))
    path = path.format(_new_job(store, secret[0]))
    headers = {"Authorization": f"Bearer {secret[1]}"}

    codes = [client.get(path, headers=headers).status_code for _ in range(7)]

    assert 429 not in codes[:5]
    assert codes[5:] == [429, 429]


def test_each_wrong_key_counts_once(
    valkey: Any, tmp_path: Path, connect: Callable[..., TestClient]
) -> None:
    own = ApiSettings(keys="required", auth_failures_per_minute=3)
    client = connect(create_app(Settings(redis_url=valkey.url, data_dir=tmp_path), own))
    headers = {"Authorization": f"Bearer impasto_{'a' * 52}"}

    codes = [client.get(f"/v1/jobs/{new_job_id()}", headers=headers).status_code for _ in range(5)]

    assert codes == [401, 401, 401, 429, 429]


def test_no_process_answers_with_an_older_state_than_another_has_reported(
    valkey: Any, tmp_path: Path, store: JobStore, connect: Callable[..., TestClient]
) -> None:
    """One API process reports changes; another is busy with requests for the same job."""
    shared = Settings(redis_url=valkey.url, data_dir=tmp_path)
    changing, reading = (connect(create_app(shared, ApiSettings())) for _ in range(2))
    job_id = _new_job(store)
    path, is_over = f"/v1/jobs/{job_id}", False

    def poll() -> None:
        while not is_over:
            reading.get(path)

    with ThreadPoolExecutor(4) as pool:
        polls = [pool.submit(poll) for _ in range(4)]
        try:
            for number in range(30):
                changed = changing.patch(path, json={"pinned": number % 2 == 0}).json()
                answer = reading.get(path)
                assert answer.json()["version"] >= changed["version"]
                # The tag of an older state is no longer that of the job.
                old = f'W/"{changed["version"] - 1}-0"'
                assert reading.get(path, headers={"If-None-Match": old}).status_code == 200
        finally:
            is_over = True
        for each in polls:
            each.result()
