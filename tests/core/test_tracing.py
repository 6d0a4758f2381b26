"""Traces are off at no cost, and a collector that does not answer disturbs nobody."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import SpanExportResult

from core import errors, tracing
from core.log import trace_id

TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def collector_answers() -> Iterator[threading.Event]:
    """Set while the collector answers; an export waits for it."""
    event = threading.Event()
    event.set()
    yield event
    event.set()


@pytest.fixture
def traced(collector_answers: threading.Event, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Traces are on; exports reach no network."""

    def export(*_: Any) -> SpanExportResult:
        collector_answers.wait()
        return SpanExportResult.SUCCESS

    monkeypatch.setattr(OTLPSpanExporter, "export", export)
    tracing.configure("http://127.0.0.1:9/v1/traces", "test")
    provider = tracing._provider
    yield
    collector_answers.set()
    assert provider is not None
    provider.shutdown()
    tracing.configure("", "test")


def test_without_a_url_nothing_is_imported_and_nothing_happens() -> None:
    program = (
        "import sys\n"
        "from core import tracing\n"
        "tracing.configure('', 'x')\n"
        "with tracing.span('a', None, 'SERVER', a=1) as span:\n"
        "    span.add(b=2); span.fail('c'); span.name('d')\n"
        "    assert tracing.traceparent() is None\n"
        "tracing.begin('s', 1).end(); tracing.flush()\n"
        "assert not tracing.is_enabled()\n"
        "assert not any(name.startswith('opentelemetry') for name in sys.modules)"
    )

    subprocess.run([sys.executable, "-c", program], check=True)


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)

    with pytest.raises(errors.BadSettings, match=r"pip install 'impasto\[traces\]'"):
        tracing.configure("http://127.0.0.1:9/v1/traces", "test")
    assert not tracing.is_enabled()


def test_a_span_continues_the_trace_of_its_parent(traced: None) -> None:
    with tracing.span("a", TRACEPARENT):
        inside = (trace_id.get(), tracing.traceparent())
        with tracing.span("b"):
            below = tracing.traceparent()
    outside = (trace_id.get(), tracing.traceparent())

    trace = TRACEPARENT.split("-")[1]
    assert inside[0] == trace
    assert str(inside[1]).split("-")[1] == str(below).split("-")[1] == trace
    assert inside[1] != below
    assert outside == (None, None)


@pytest.mark.parametrize("parent", ["", "00-0-0-01", "x" * 5000, TRACEPARENT.replace("4", "0x", 1)])
def test_a_bad_traceparent_starts_a_new_trace(traced: None, parent: str) -> None:
    with tracing.span("a", parent):
        assert tracing.traceparent() is not None
        assert trace_id.get() != TRACEPARENT.split("-")[1]


def test_a_trace_that_the_client_does_not_sample_is_not_kept(traced: None) -> None:
    with tracing.span("a", TRACEPARENT[:-1] + "0"):
        assert tracing.traceparent() is None
        assert trace_id.get() is None


def test_a_collector_that_does_not_answer_delays_no_end(
    traced: None, collector_answers: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector_answers.clear()
    monkeypatch.setattr(tracing, "FLUSH_SECONDS", 0.2)
    with tracing.span("a"):
        pass
    began = time.monotonic()
    tracing.flush()

    assert time.monotonic() - began < 2
