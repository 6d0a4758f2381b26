"""The figures of the whole service as Prometheus metrics, equal from every API process.

The reference of the documentation is made from `build_families`: docs/site/reference.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    Exemplar,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from core.jobs.models import ServiceLoad, Status, WorkerUse
from core.jobs.statistics import LIMITS_SECONDS, Example, LiveWorker, ServiceStatistics
from core.jobs.store import JobStore

_WORKER_GAUGES = {
    "iterations_per_second": "Iterations per second of the current run; 0 without one.",
    "memory_used_bytes": "Memory in use: of the card, or of the process on a CPU.",
    "memory_total_bytes": "Memory of the card or of the machine.",
    "utilization": "Of the card, by its driver; on a CPU, its cores that the process uses.",
}


@dataclass(frozen=True)
class Figures:
    """What the store says of the service at one moment."""

    load: ServiceLoad
    busy_workers: int
    ended: Mapping[Status, int]
    pending_webhooks: int
    statistics: ServiceStatistics
    store_problems: int


def collect(store: JobStore) -> Iterator[Metric]:
    """Return all families. Raises StoreUnavailable."""
    load, workers = store.get_load(), store.list_workers()
    ended, pending_webhooks = store.get_counts()
    return build_families(
        Figures(
            load=load,
            busy_workers=sum(is_busy for _, is_busy in workers),
            ended=ended,
            pending_webhooks=pending_webhooks,
            statistics=store.get_statistics(),
            store_problems=len(store.monitor.check().problems),
        )
    )


def build_families(figures: Figures) -> Iterator[Metric]:
    """Yield all families with these figures."""
    load, statistics = figures.load, figures.statistics
    for name, description, value in (
        ("jobs_queued", "Jobs that wait in the queue.", load.queued),
        ("jobs_running", "Jobs that run.", load.running),
        (
            "queue_work_seconds",
            "Estimated seconds that one worker would take for all queued jobs.",
            statistics.queue_work_seconds,
        ),
        (
            "queue_head_age_seconds",
            "Time since the submission of the job that starts next; 0 without one.",
            statistics.queue_head_age_seconds,
        ),
        ("intake_paused", "1 while the operator accepts no jobs.", statistics.is_intake_paused),
        ("workers", "Workers with a heartbeat within 5 s.", load.workers),
        ("workers_busy", "Those of them that run a job.", figures.busy_workers),
        (
            "job_duration_average_seconds",
            "Moving average of the time that a job runs.",
            load.average_job_seconds or 0,
        ),
        ("webhooks_pending", "Webhooks that wait to be sent.", figures.pending_webhooks),
        ("store_problems", "Settings of the store that may lose jobs.", figures.store_problems),
        (
            "store_memory_bytes",
            "Memory that the store uses; 0 if it does not tell.",
            statistics.memory_bytes,
        ),
        (
            "store_memory_limit_bytes",
            "Memory that the store may use, its maxmemory; 0: no limit.",
            statistics.memory_limit_bytes,
        ),
    ):
        yield gauge(name, description, value)
    yield from _collect_workers(statistics.workers)
    yield from _collect_totals(statistics, figures.ended)


def _collect_totals(statistics: ServiceStatistics, ended: Mapping[Status, int]) -> Iterator[Metric]:
    finished = _family(CounterMetricFamily, "jobs_finished", "Jobs that have ended.", "status")
    for status in Status:
        if status.has_ended:
            finished.add_metric([status], ended.get(status, 0))
    yield finished
    failed = _family(CounterMetricFamily, "jobs_failed", "Failed jobs by error code.", "code")
    for field in sorted(statistics.totals):
        if field.startswith("error:"):
            failed.add_metric([field.removeprefix("error:")], statistics.count(field))
    yield failed
    for name, description, field in (
        ("jobs_submitted", "Jobs that were accepted.", "submitted"),
        ("attempts", "Attempts at jobs: claims by workers.", "queued>running"),
        ("requeues", "Attempts that ended with the job back in the queue.", "running>queued"),
        ("leases_lost", "Attempts whose worker was lost.", "lost"),
        ("iterations", "Iterations of all runs.", "iterations"),
        ("evaluations", "Forward and backward passes of the network.", "evaluations"),
        ("evaluated_pixels", "Pixels of all evaluations.", "evaluated_pixels"),
    ):
        yield CounterMetricFamily(f"impasto_{name}", description, value=statistics.count(field))
    for name, description in (
        ("wait", "Time from a job's submission to its first start."),
        ("run", "Time that an attempt held a job."),
    ):
        yield _collect_histogram(statistics, name, description)


def _collect_histogram(
    statistics: ServiceStatistics, name: str, description: str
) -> HistogramMetricFamily:
    family: HistogramMetricFamily = _family(
        HistogramMetricFamily, f"job_{name}_seconds", description, "size"
    )
    limits = [*map(str, map(float, LIMITS_SECONDS)), "+Inf"]
    for size in statistics.sizes:
        histogram = statistics.histogram(name, size)
        buckets: list[Any] = [
            (limit, count) if example is None else (limit, count, _exemplar(example))
            for limit, count, example in zip(
                limits, accumulate(histogram.counts), histogram.examples, strict=True
            )
        ]
        family.add_metric([size], buckets, histogram.sum_seconds)
    return family


def _exemplar(example: Example) -> Exemplar:
    return Exemplar({"trace_id": example.trace_id}, example.seconds)


def _collect_workers(workers: Sequence[LiveWorker]) -> Iterator[Metric]:
    labels = ("host", "device")
    info = _family(
        GaugeMetricFamily,
        "worker_info",
        "1 for each live worker, with its card, precision and network.",
        *labels,
        "model",
        "precision",
        "network",
    )
    uses: dict[tuple[str, str], list[WorkerUse]] = {}
    described = set()
    for worker in workers:
        if worker.use is not None:
            uses.setdefault((worker.host, worker.use.device), []).append(worker.use)
            if (about := worker.info) is not None:
                row = (about.device, about.precision, about.network)
                described.add((worker.host, worker.use.device, *row))
    for values in sorted(described):
        info.add_metric(values, 1)
    yield info
    for name, description in _WORKER_GAUGES.items():
        family = _family(GaugeMetricFamily, f"worker_{name}", description, *labels)
        for key, of_device in sorted(uses.items()):
            family.add_metric(key, _combine(name, key[1], of_device))
        yield family


def _combine(name: str, device: str, uses: Sequence[WorkerUse]) -> float:
    """Return one value for the workers on one device of a host, so that they share a time series.

    Each process sees the whole card, and on a CPU only itself.
    """
    values = [float(getattr(use, name) or 0) for use in uses]
    is_sum = name == "iterations_per_second" or (device == "cpu" and name != "memory_total_bytes")
    return sum(values) if is_sum else max(values)


def gauge(name: str, description: str, value: float) -> GaugeMetricFamily:
    """Return a gauge with one value."""
    return GaugeMetricFamily(f"impasto_{name}", description, value=value)


def _family(kind: Any, name: str, description: str, *labels: str) -> Any:
    return kind(f"impasto_{name}", description, labels=labels)
