"""OpenTelemetry traces of requests, jobs and attempts, sent to a collector by OTLP over HTTP.

Off unless `configure` gets a URL: then nothing is imported, and each call here returns at once. The
SDK reads its own variables (OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS, ...). A trace crosses
processes as a W3C traceparent. Knows no HTTP and no job.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from time import time_ns
from typing import TYPE_CHECKING, Any, Literal

from core import errors
from core.log import trace_id

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

FLUSH_SECONDS = 3.0  # at the end of a process

Kind = Literal["INTERNAL", "SERVER", "PRODUCER", "CONSUMER"]
Attribute = str | int | float | bool

_provider: "TracerProvider | None" = None
_tracer: "Tracer | None" = None


class Span:
    """A span, or nothing where traces are off."""

    def __init__(self, span: Any = None) -> None:
        self._span = span

    def name(self, name: str) -> None:
        """Rename it."""
        if self._span is not None:
            self._span.update_name(name)

    def add(self, **attributes: Attribute | None) -> None:
        """Set attributes; `__` in a name stands for a dot. None sets nothing."""
        if self._span is not None:
            self._span.set_attributes(_named(attributes))

    def fail(self, code: str) -> None:
        """Mark it as failed with an error code."""
        if self._span is not None:
            from opentelemetry.trace import StatusCode

            self._span.set_status(StatusCode.ERROR, code)
            self._span.set_attribute("error.type", code)

    def end(self, at_ns: int | None = None) -> None:
        """End it, now or at this time."""
        if self._span is not None:
            self._span.end(at_ns)


_NO_SPAN = Span()


def configure(url: str, service: str) -> None:
    """Send the spans of this process, as those of the service, to this URL; empty: no traces.

    Raises BadSettings if the packages are missing.
    """
    global _provider, _tracer  # noqa: PLW0603 - one collector per process, as for the logs
    _provider = _tracer = None
    if not url:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise errors.BadSettings(
            "IMPASTO_TRACES_URL needs more packages: pip install 'impasto[traces]'."
        ) from error
    name = os.environ.get("OTEL_SERVICE_NAME", service)
    resource = Resource.create({"service.name": name, "service.version": version("impasto")})
    _provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    _provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(url)))
    _tracer = _provider.get_tracer("impasto")


def is_enabled() -> bool:
    """Whether this process sends spans."""
    return _tracer is not None


def flush() -> None:
    """Send what waits, for at most FLUSH_SECONDS. Call it before the process ends."""
    if _provider is not None:
        # Its own timeout does not hold while the exporter retries.
        thread = threading.Thread(target=_provider.force_flush, name="traces", daemon=True)
        thread.start()
        thread.join(FLUSH_SECONDS)


@contextmanager
def span(
    name: str,
    parent: str | None = None,
    kind: Kind = "INTERNAL",
    **attributes: Attribute | None,
) -> Iterator[Span]:
    """A span around a block, below the current one, or below a traceparent.

    An exception marks it as failed. The block's log lines and metrics carry its trace.
    """
    if _tracer is None:
        yield _NO_SPAN
        return
    from opentelemetry.trace import format_trace_id, use_span

    started = _start(name, parent, kind, attributes)
    context = started.get_span_context()
    token = trace_id.set(format_trace_id(context.trace_id) if context.trace_flags else None)
    try:
        with use_span(started, end_on_exit=True, record_exception=False):
            yield Span(started)
    finally:
        trace_id.reset(token)


def begin(name: str, start_ns: int, **attributes: Attribute | None) -> Span:
    """Return a span below the current one that its owner ends."""
    if _tracer is None:
        return _NO_SPAN
    return Span(_start(name, None, "INTERNAL", attributes, start_ns))


def record(
    name: str, parent: str | None, start: datetime, end: datetime, **attributes: Attribute | None
) -> None:
    """Record a span that is over."""
    if _tracer is not None:
        start_ns, end_ns = (int(time.timestamp() * 1e6) * 1000 for time in (start, end))
        _start(name, parent, "INTERNAL", attributes, start_ns).end(end_ns)


def traceparent() -> str | None:
    """Return the current span's traceparent; None without one, or if it is not sampled."""
    if _tracer is None:
        return None
    from opentelemetry import trace

    context = trace.get_current_span().get_span_context()
    if not context.is_valid or not context.trace_flags.sampled:
        return None
    ids = trace.format_trace_id(context.trace_id), trace.format_span_id(context.span_id)
    return f"00-{'-'.join(ids)}-01"


def now_ns() -> int:
    """Return the time in the unit of spans."""
    return time_ns()


def _start(
    name: str,
    parent: str | None,
    kind: Kind,
    attributes: dict[str, Attribute | None],
    start_ns: int | None = None,
) -> Any:
    from opentelemetry.trace import SpanKind
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    assert _tracer is not None, "the caller has checked it"
    context = None
    if parent is not None:  # an invalid one starts a new trace
        context = TraceContextTextMapPropagator().extract({"traceparent": parent})
    return _tracer.start_span(
        name, context, SpanKind[kind], _named(attributes), start_time=start_ns
    )


def _named(attributes: dict[str, Attribute | None]) -> dict[str, Attribute]:
    return {
        name.replace("__", "."): value for name, value in attributes.items() if value is not None
    }
