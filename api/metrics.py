"""Prometheus metrics: the requests of this process, and the store's figures for the whole service.

No label contains anything that identifies a caller.
"""

from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from core.jobs.models import Status
from core.jobs.store import JobStore

# Each API process reports only its own requests: Prometheus scrapes every process by its own
# address.
REQUESTS = CollectorRegistry()

_requests_total = Counter(
    "impasto_http_requests_total",
    "HTTP requests that were answered.",
    ["method", "route", "status"],
    registry=REQUESTS,
)
_request_duration = Histogram(
    "impasto_http_request_duration_seconds",
    "Time from the request's headers to the response's headers.",
    ["method", "route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    registry=REQUESTS,
)
_METHODS = frozenset({"GET", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS"})


def record_request(method: str, route: str, status: int, seconds: float) -> None:
    """Count one request.

    route: the path template, not the path: a client must not be able to create label values.
    """
    count, duration = _children(method if method in _METHODS else "other", route, status)
    count.inc()
    duration.observe(seconds)


@cache  # as many as there are time series; finding one by its labels takes longer than counting
def _children(method: str, route: str, status: int) -> tuple[Counter, Histogram]:
    return (
        _requests_total.labels(method, route, status),
        _request_duration.labels(method, route),
    )


def render_service_metrics(store: JobStore) -> bytes:
    """Metrics of the whole service, equal from every API process. Raises StoreUnavailable."""
    load, workers = store.get_load(), store.list_workers()
    ended, pending_webhooks = store.get_counts()
    busy = sum(is_busy for _, is_busy in workers)
    registry = CollectorRegistry()
    for name, description, value in (
        ("jobs_queued", "Jobs that wait in the queue.", load.queued),
        ("jobs_running", "Jobs that run.", load.running),
        ("workers", "Live workers.", load.workers),
        ("workers_busy", "Live workers that run a job.", busy),
        (
            "job_duration_average_seconds",
            "Moving average of the time that a job runs.",
            load.average_job_seconds or 0,
        ),
        ("webhooks_pending", "Webhooks that wait to be sent.", pending_webhooks),
    ):
        Gauge(f"impasto_{name}", description, registry=registry).set(value)
    finished = Counter(
        "impasto_jobs_finished_total", "Jobs that have ended.", ["status"], registry=registry
    )
    for status in Status:
        if status.has_ended:
            finished.labels(status).inc(ended.get(status, 0))
    return generate_latest(registry)
