"""Figures for Prometheus: requests of this process, and what the store tells of the whole service. Names no caller."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from core.jobs.models import Status
from core.jobs.store import JobStore

# Each API process tells of its own requests: one is asked by its own address.
REQUESTS = CollectorRegistry()

_answered = Counter(
    "impasto_http_requests_total", "Answers.", ["method", "route", "status"], registry=REQUESTS
)
_seconds = Histogram(
    "impasto_http_request_duration_seconds",
    "From a request's head to its answer's.",
    ["method", "route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    registry=REQUESTS,
)
_METHODS = frozenset({"GET", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS"})


def answered(method: str, route: str, status: int, seconds: float) -> None:
    """Count one request. route: the path of a route, not what a caller made up."""
    method = method if method in _METHODS else "other"
    _answered.labels(method, route, status).inc()
    _seconds.labels(method, route).observe(seconds)


def of_service(store: JobStore) -> bytes:
    """The same from every API process. Raises StoreUnavailable."""
    registry, load, crew, (ended, webhooks) = (
        CollectorRegistry(),
        store.get_load(),
        store.list_workers(),
        store.get_counts(),
    )
    for name, words, value in (
        ("jobs_queued", "Jobs that wait.", load.queued),
        ("jobs_running", "Jobs that run.", load.running),
        ("workers", "Live workers.", load.workers),
        ("workers_busy", "Live workers that run a job.", sum(busy for _, busy in crew)),
        (
            "job_duration_average_seconds",
            "Seconds that a job runs: a moving average.",
            load.average_job_seconds or 0,
        ),
        ("webhooks_pending", "Webhooks that wait to be sent.", webhooks),
    ):
        Gauge(f"impasto_{name}", words, registry=registry).set(value)
    ends = Counter(
        "impasto_jobs_finished_total", "Jobs that have ended.", ["status"], registry=registry
    )
    for status in Status:
        if status.has_ended:
            ends.labels(status).inc(ended.get(status, 0))
    return generate_latest(registry)
