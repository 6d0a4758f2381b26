"""Prometheus metrics: the requests of this process, and the store's figures for the whole service.

Each API process reports its own requests: Prometheus scrapes every process by its own address, and
a query adds them up. The figures of the service come from the store and are equal from every
process: a query takes the maximum. No label contains anything that identifies a caller, and each
has few values. The documentation's reference is made from these definitions.
"""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path

from prometheus_client import (
    PROCESS_COLLECTOR,
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from api import service_metrics
from core import errors
from core.jobs.store import JobStore
from core.log import trace_id

# They double the time series, and no query here uses them.
disable_created_metrics()  # type: ignore[no-untyped-call]
REQUESTS = CollectorRegistry()

_requests_total = Counter(
    "impasto_http_requests_total",
    "HTTP requests that were answered, by route template.",
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
_slot_wait = Histogram(
    "impasto_slot_wait_seconds",
    "Time that a request waited for a decoder, a list, a conversion or an estimate.",
    ["work"],
    buckets=(0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
    registry=REQUESTS,
)
_store_call = Histogram(
    "impasto_store_call_seconds",
    "Time of a call of the store, by its function.",
    ["function"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
    registry=REQUESTS,
)
_store_errors = Counter(
    "impasto_store_errors_total", "Calls of the store that have failed.", registry=REQUESTS
)
_refused_submissions = Counter(
    "impasto_submissions_refused_total",
    "Submissions that were refused because they would have waited too long.",
    registry=REQUESTS,
)
# The meaning of each label, also of those in service_metrics.py, for the reference.
LABELS = {
    "method": "The HTTP method; `other` for an unusual one.",
    "route": "The template of the path, such as `/v1/jobs/{job_id}`.",
    "status": "The status code of an answer; of `impasto_jobs_finished_total`, the job's status.",
    "work": "`pictures` (a decoder), `conversions` of pictures, `estimates`, `reads` (lists).",
    "function": "The store's function, of `core/jobs/scripts/`.",
    "version": "The version of Impasto.",
    "code": "The error code of a failed job.",
    "size": "The long side of the result is at most so many px.",
    "host": "The host name of the worker.",
    "device": "Its device: `cpu`, or a card's number or UUID.",
    "model": "The name of its card or processor.",
    "precision": "That of its network.",
    "network": "The network that it has loaded.",
}
METHODS = frozenset({"GET", "HEAD", "POST", "PATCH", "DELETE", "OPTIONS"})


def record_request(method: str, route: str, status: int, seconds: float) -> None:
    """Count one request.

    route: the path template, not the path: a client must not be able to create label values.
    """
    count, duration = _children(method if method in METHODS else "other", route, status)
    trace = trace_id.get()
    if trace is None:
        count.inc()
        duration.observe(seconds)
    else:
        exemplar = {"trace_id": trace}
        count.inc(1, exemplar)
        duration.observe(seconds, exemplar)


def record_repeats(method: str, route: str, status: int, count: int) -> None:
    """Count requests that were answered from the cache of responses; they have no duration."""
    _children(method, route, status)[0].inc(count)


@cache  # as many as there are time series; finding one by its labels takes longer than counting
def _children(method: str, route: str, status: int) -> tuple[Counter, Histogram]:
    return (
        _requests_total.labels(method, route, status),
        _request_duration.labels(method, route),
    )


def record_slot_wait(work: str, seconds: float) -> None:
    """Count a request that has waited for a slot. work: what for."""
    _slot_wait.labels(work).observe(seconds)


def record_refused_submission() -> None:
    """Count a submission that admission control has refused."""
    _refused_submissions.inc()


def record_store_call(function: str, seconds: float, has_succeeded: bool) -> None:
    """Count a call of the store."""
    _store_call.labels(function).observe(seconds)
    if not has_succeeded:
        _store_errors.inc()


def render(store: JobStore, data_dir: Path, accept: str) -> tuple[bytes, str]:
    """Return all metrics and their content type, in the format that the client accepts.

    Exemplars are in the OpenMetrics format only. While the store does not answer, the figures of
    the service are missing and `impasto_store_up` is 0.
    """
    encode, content_type = choose_encoder(accept)
    registry = CollectorRegistry()
    registry.register(_Families([*REQUESTS.collect(), *_collect(store, data_dir)]))
    return encode(registry), content_type


class _Families(Collector):
    """Metrics that are known already."""

    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families

    def describe(self) -> Iterable[Metric]:
        return []  # nothing to check: `collect` is called once


def _collect(store: JobStore, data_dir: Path) -> Iterator[Metric]:
    families: list[Metric] = []
    with suppress(errors.StoreUnavailable):
        families = [*service_metrics.collect(store)]
    yield from collect_process(data_dir, is_store_up=bool(families))
    yield from families


def collect_process(data_dir: Path, is_store_up: bool) -> Iterator[Metric]:
    """Yield the families of this process, other than its requests."""
    info = GaugeMetricFamily("impasto_build_info", "1, with the version.", labels=["version"])
    info.add_metric([version("impasto")], 1)
    yield info
    yield from PROCESS_COLLECTOR.collect()  # memory, CPU time and open files of this process
    disk = shutil.disk_usage(data_dir if data_dir.exists() else data_dir.anchor)
    yield service_metrics.gauge(
        "disk_total_bytes", "Size of the file system of IMPASTO_DATA_DIR.", disk.total
    )
    yield service_metrics.gauge("disk_free_bytes", "Its free space.", disk.free)
    yield service_metrics.gauge(
        "store_up", "1 if the store answers this process, else 0.", float(is_store_up)
    )
