"""Compares the examples in the OpenAPI document with real responses: names, types and headers."""

import json
import re
from threading import Thread
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

from core.auth.api_keys import ApiKeyStore
from core.images import codec
from core.jobs.models import (
    EstimateResponse,
    Frame,
    JobProgress,
    ModelUsed,
    Output,
    ScaleEstimate,
    WorkerReport,
)
from core.jobs.store import JobStore
from core.storage.blobs import Blobs

# Every response may have these headers, so the document does not list them.
USUAL = {
    "content-type",
    "content-length",
    "content-disposition",
    "cache-control",
    "content-encoding",
    "vary",
    "accept-ranges",
}
USUAL |= {
    "last-modified",
    "content-security-policy",
    "x-content-type-options",
    "referrer-policy",
    "x-accel-buffering",
}
USUAL |= {"cross-origin-resource-policy", "cross-origin-opener-policy", "permissions-policy"}

WORKER = WorkerReport(
    id="gpu-1/cuda:0", device="cpu", precision="float32", network="vgg16", networks=["vgg16"]
)


class Recorder:
    """Sends requests and records the real responses by operation and status."""

    def __init__(self, client: TestClient) -> None:
        self.client, self.bodies, self.headers = client, dict[str, Any](), dict[str, set[str]]()
        self.document = client.get("/openapi.json").json()

    def __call__(self, method: str, path: str, **request: Any) -> Any:
        answer = self.client.request(method, path, **request)
        name = f"{self._operation(method, path)} {answer.status_code}"
        self.headers.setdefault(name, set()).update({*answer.headers.keys()} - USUAL)
        if answer.headers.get("content-type") == "application/json":
            self.bodies[name] = answer.json()
        elif answer.headers.get("content-type", "").startswith("text/event-stream"):
            self.bodies[name] = answer.text
        return answer

    def _operation(self, method: str, path: str) -> str:
        for known in sorted(self.document["paths"], key=lambda known: "{" in known):
            if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", known), path.partition("?")[0]):
                return f"{method} {known}"
        raise AssertionError(path)

    def documented(self, name: str) -> Any:
        """Return the response of the document for `METHOD PATH STATUS`."""
        method, path, status = name.split(" ")
        answers = self.document["paths"][path][method.lower()]["responses"]
        answer = answers.get(status) or answers["503" if status == "503" else f"{status[0]}XX"]
        if "$ref" in answer:
            answer = self.document["components"]["responses"][answer["$ref"].rpartition("/")[2]]
        return answer


@pytest.fixture
def recorded(
    client: TestClient,
    files: Any,
    notifications: Any,
    store: JobStore,
    blobs: Blobs,
    photo: Image.Image,
    keys: ApiKeyStore,
) -> Recorder:
    ask, data = Recorder(client), {"size": "64"}
    key = {"Idempotency-Key": "k"}
    for _ in range(2):
        job = ask("POST", "/v1/jobs", files=files, data=data, headers=key).json()
    own, digest = job["links"]["self"], job["input"]["content"]
    ask("POST", "/v1/jobs", files=files, data=data, headers={"Prefer": "wait=1"})
    ask("GET", own, headers={"Prefer": "wait=1"})
    ask("GET", own, headers={"Prefer": "wait=1", "If-None-Match": "*"})
    claimed = store.claim("t", "worker")
    assert claimed is not None
    picture, small = blobs.put(codec.encode(photo)), blobs.put(codec.encode(photo, "jpeg"))
    for one in (picture, small):
        store.reserve(one)
    losses = dict.fromkeys(("total", "content", "style", "tv"), 1.0)
    at = JobProgress(
        value=0.5,
        scale=1,
        scales=1,
        iteration=1,
        iterations=9,
        iterations_per_second=2.0,
        seconds_left=1.0,
        loss=losses,
    )
    store.add_frame(job["id"], "t", Frame(index=0, iteration=1, scale=1, seconds=0.1, digest=small))
    store.report_progress(job["id"], "t", at, small)
    output = Output(id=picture, content_type="image/png", width=96, height=72, size_bytes=1)
    metrics = dict.fromkeys(
        ("load_seconds", "run_seconds", "planned_seconds", "planned_bytes"), 1.0
    )
    metrics |= {f"loss_{name}": 1.0 for name in losses}
    store.succeed(job["id"], "t", output, ModelUsed(name="vgg16", sha256="w"), metrics)
    store.heartbeat("worker", WORKER)
    for path in (
        own,
        *(f"{own}/{part}" for part in ("result", "preview", "frames/0", "timelapse")),
        f"/v1/images/{digest}",
    ):
        tag = ask("GET", path).headers["etag"]
        ask("GET", path, headers={"If-None-Match": tag})
    ask("GET", f"{own}/frames")
    ask("GET", f"{own}/events")
    for _ in range(2):
        batch = ask(
            "POST",
            "/v1/batches",
            json={"contents": [digest], "styles": [digest]},
            headers={**key, "Idempotency-Key": "b"},
        )
        again = ask("POST", f"{own}/retry", json={}, headers={"Idempotency-Key": "r"}).json()[
            "links"
        ]
    ask("GET", batch.headers["location"], headers={"Prefer": "wait=1"})
    ask("GET", batch.headers["location"], headers={"Prefer": "wait=1", "If-None-Match": "*"})
    ask("PATCH", again["self"], json={"spec": {"strength": 0.7}})
    ask("POST", again["cancel"])
    ask("GET", "/v1/jobs?limit=1&status=succeeded")
    ask("POST", "/v1/images", files={"image": files["content"]})
    listening = Thread(target=_answer_estimate, args=(store,))
    listening.start()
    store.heartbeat("worker", WORKER)
    ask("POST", "/v1/estimate", json={"content": digest, "styles": [digest]})
    listening.join()
    store.heartbeat("worker", WORKER)
    for path in ("/v1/presets", "/v1/form", "/v1/system", "/v1/models", "/livez", "/readyz"):
        ask("GET", path)
    ask("GET", "/v1/jobs?limit=0")
    _operate(ask, keys, job["id"])
    ask("DELETE", own)
    ask("POST", batch.json()["links"]["cancel"])
    ask("DELETE", batch.headers["location"])
    return ask


def _operate(ask: Recorder, keys: ApiKeyStore, job_id: str) -> None:
    headers = {"Authorization": f"Bearer {keys.create('Operator', admin=True)[1]}"}
    created = ask("POST", "/v1/operator/keys", headers=headers, json={"name": "Ada"}).json()
    ask("POST", f"/v1/operator/keys/{created['key']['id']}/revoke", headers=headers)
    for part in (
        "status",
        "hours",
        "queue?limit=1",
        "workers",
        "keys",
        "audit?limit=1&log=callers",
    ):
        ask("GET", f"/v1/operator/{part}", headers=headers)
    queued = ask.client.get("/v1/jobs?status=queued").json()["jobs"][0]["id"]
    ask("POST", f"/v1/operator/jobs/{queued}/cancel", headers=headers)
    queued = ask.client.get("/v1/jobs?status=queued").json()["jobs"][0]["id"]
    ask("POST", f"/v1/operator/jobs/{queued}/move", headers=headers, json={"to": "first"})
    ask("POST", f"/v1/operator/jobs/{job_id}/move", headers=headers, json={"to": "last"})
    for action in ("pause", "resume"):
        ask("POST", f"/v1/operator/intake/{action}", headers=headers)
    for action in ("pause", "drain", "resume"):
        ask("POST", f"/v1/operator/workers/{action}", headers=headers, json={"id": "*"})


def _answer_estimate(store: JobStore) -> None:
    step = ScaleEstimate(
        width=96, height=72, iterations=1, seconds=1.0, memory_bytes=1, tile_px=None
    )
    for _ in range(40):  # 30 s at most
        store.heartbeat("worker", WORKER)
        if found := store.estimates.next_request():
            store.estimates.reply(
                found[0], EstimateResponse(device="cpu", network="vgg16", scales=[step])
            )
            return


def _types(value: Any) -> Any:
    """Return names and types, on which a program may rely, without the lengths of lists."""
    if isinstance(value, dict):
        return {name: _types(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_types(inner) for inner in value[:1]]
    return float if isinstance(value, int | float) and not isinstance(value, bool) else type(value)


def _find_differences(example: Any, real: Any) -> list[str]:
    """Return the paths where they differ. Null and the items of an empty list equal anything."""
    if isinstance(example, dict) and isinstance(real, dict):
        missing = [f".{name}" for name in example.keys() ^ real.keys()]
        return missing + [
            f".{name}{path}"
            for name in example.keys() & real
            for path in _find_differences(example[name], real[name])
        ]
    if isinstance(example, list) and isinstance(real, list):
        return [
            f"[]{path}"
            for path in (_find_differences(example[0], real[0]) if example and real else [])
        ]
    return [""] if type(None) not in (example, real) and example != real else []


def test_every_example_has_the_types_of_the_real_response(recorded: Recorder) -> None:
    compared = set()
    for name, real in recorded.bodies.items():
        if isinstance(real, dict):
            assert (
                _find_differences(
                    _types(recorded.documented(name)["content"]["application/json"]["example"]),
                    _types(real),
                )
                == []
            ), name
            compared.add(name)
    every = {
        f"{method.upper()} {path} {status}"
        for path, methods in recorded.document["paths"].items()
        for method, operation in methods.items()
        for status, answer in operation["responses"].items()
        if "application/json" in answer.get("content", {})
    }
    assert compared == every


def test_an_example_has_the_status_of_the_real_response(recorded: Recorder) -> None:
    for name, real in recorded.bodies.items():
        example = (
            recorded.documented(name)["content"].get("application/json", {}).get("example", {})
        )
        if "status" in example:
            assert example["status"] == real["status"], name


def test_the_example_of_the_stream_resembles_a_real_one(recorded: Recorder) -> None:
    name = "GET /v1/jobs/{job_id}/events 200"
    example = recorded.documented(name)["content"]["text/event-stream"]["example"]
    events, real = (
        re.findall(r"event: (\w+)\ndata: (.*)\n", text) for text in (example, recorded.bodies[name])
    )

    assert example.startswith("retry: 2000\n\n")
    assert [event for event, _ in events] == ["progress", "preview", "status"]
    assert (
        _find_differences(_types(json.loads(events[-1][1])), _types(json.loads(real[-1][1]))) == []
    )
    assert set(json.loads(events[0][1])) == {"version", "progress"}
    assert set(json.loads(events[1][1])) == {"version", "preview", "links"}


def test_the_document_lists_exactly_the_headers_of_the_real_responses(recorded: Recorder) -> None:
    for name, real in recorded.headers.items():
        example = {header.lower() for header in recorded.documented(name).get("headers", {})}
        refused = {"retry-after", "www-authenticate", "allow"} if name[-3] == "4" else set()
        assert real - refused == example - refused, name
