"""A trace collector, and what the tests know of the service that they observe."""

import gzip
import shutil
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2
import pytest
from fleet import Fleet
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from PIL import Image

from core.images import codec
from impasto import Client

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
CLIENT_SPAN = "00f067aa0ba902b7"
needs_prometheus = pytest.mark.skipif(
    not (shutil.which("promtool") and shutil.which("prometheus")),
    reason="Debian's package prometheus is missing; `make browser` installs it",
)


@dataclass(frozen=True)
class Span:
    """A span as the collector received it."""

    service: str
    process: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]


class Collector:
    """Receives OTLP over HTTP on loopback."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector._add(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1/traces"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def _add(self, request: Any) -> None:
        for resource_spans in request.resource_spans:
            resource = _to_dict(resource_spans.resource.attributes)
            for scope_spans in resource_spans.scope_spans:
                for span in scope_spans.spans:
                    self.spans.append(
                        Span(
                            resource["service.name"],
                            resource.get("service.instance.id", ""),
                            span.name,
                            span.trace_id.hex(),
                            span.span_id.hex(),
                            span.parent_span_id.hex(),
                            span.start_time_unix_nano,
                            span.end_time_unix_nano,
                            _to_dict(span.attributes),
                        )
                    )

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _to_dict(attributes: Any) -> dict[str, Any]:
    return {
        one.key: getattr(one.value, one.value.WhichOneof("value") or "string_value")
        for one in attributes
    }


@dataclass(frozen=True)
class Service:
    """The running service, and the job that it has run."""

    fleet: Fleet
    urls: list[str]  # of both API processes
    admin_key: str
    job_id: str
    collector: Collector

    def scrape(self, url: str, accept: str = "text/plain") -> str:
        """Return the metrics; without the store's only if it answers late again and again."""
        for _ in range(10):
            text = httpx2.get(f"{url}/metrics", headers={"Accept": accept}, trust_env=False).text
            if "impasto_attempts" in text:
                break
            time.sleep(0.5)
        return text


def is_up(url: str) -> bool:
    try:
        return httpx2.get(f"{url}/livez", timeout=1, trust_env=False).status_code == 200
    except httpx2.HTTPError:
        return False


def run_job(url: str) -> str:
    """Run a small job at two scales, as part of a client's trace; return its id."""
    picture = codec.encode(Image.effect_noise((160, 120), 60).convert("RGB"), "png")
    answer = httpx2.post(
        f"{url}/v1/jobs",
        files={"content": ("a.png", picture), "style": ("b.png", picture)},
        data={"size": "160", "scales": "2", "iterations": "4"},
        headers={"traceparent": f"00-{TRACE}-{CLIENT_SPAN}-01"},
        trust_env=False,
    )
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["id"]
    with Client(url, "") as client:
        job = client.wait(job_id, timeout_seconds=120)
        assert job.status == "succeeded", job.error
        client.result(job_id)
    return job_id
