"""One job's spans from two processes form one tree, below the client's own span."""

from collections.abc import Callable
from typing import Any

import httpx2
from observed_service import CLIENT_SPAN, TRACE, Service


def _tree(service: Service) -> dict[str, list[str]]:
    """The names of the spans of the job's trace, by the name of their parent."""
    spans = {span.span_id: span for span in service.collector.spans if span.trace_id == TRACE}
    tree: dict[str, list[str]] = {}
    for span in sorted(spans.values(), key=lambda span: span.start_ns):
        parent = spans.get(span.parent_id)
        tree.setdefault(parent.name if parent else span.parent_id, []).append(span.name)
    return tree


def test_the_trace_of_a_job_reaches_from_the_request_to_each_scale(
    service: Service, until: Callable[..., None]
) -> None:
    until(lambda: "attempt" in str(_tree(service)), "the worker has sent its spans")
    steps = ["decode pictures", "load network", "scale 1/2", "scale 2/2", "write result"]

    assert _tree(service) == {
        CLIENT_SPAN: ["POST /v1/jobs"],
        "POST /v1/jobs": ["queue", "attempt"],
        "attempt": steps,
    }
    spans = {span.name: span for span in service.collector.spans if span.trace_id == TRACE}
    assert {name: span.service for name, span in spans.items()} == {
        "POST /v1/jobs": "impasto-api",
        **dict.fromkeys(("queue", "attempt", *steps), "impasto-worker"),
    }
    assert spans["POST /v1/jobs"].attributes["http.response.status_code"] == 202
    attempt = spans["attempt"].attributes
    assert (attempt["impasto.job"], attempt["impasto.outcome"]) == (service.job_id, "succeeded")
    last = spans["scale 2/2"].attributes
    assert (last["impasto.width"], last["impasto.height"]) == (160, 120)
    for earlier, later in (("scale 1/2", "scale 2/2"), ("decode pictures", "load network")):
        assert spans[earlier].end_ns <= spans[later].start_ns
    assert spans["attempt"].start_ns <= spans["scale 1/2"].start_ns


def test_polls_are_traced_only_if_they_belong_to_a_trace(
    service: Service, until: Callable[..., None]
) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    url = f"{service.urls[0]}/v1/jobs/{service.job_id}"
    headers: list[dict[str, Any]] = [{}, {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}]
    answers = [httpx2.get(url, headers=one, trust_env=False) for one in headers]

    def polls() -> list[str]:
        named = (span for span in service.collector.spans if span.name.startswith("GET /v1/jobs/"))
        return [span.trace_id for span in named]

    until(polls, "the poll's span has arrived")
    assert {answer.status_code for answer in answers} == {200}
    assert polls() == [trace]
