"""The decisions of deploy/kubernetes/components/keda, on numbers and on a running service."""

import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
from autoscaler import SYNC_SECONDS, Autoscaler, read_spec
from fleet import Fleet, Program
from kills import Caller
from prometheus_client.parser import text_string_to_metric_families

SPEC = read_spec()
JOBS, MAX_WORKERS = 6, 2
PARAMETERS = {"size": "64", "iterations": "10", "scales": "1"}
SPEED = 30.0  # the scaler's clock runs so many times faster than that of the test
COOLDOWN_SECONDS = 2.0  # of the test's clock, instead of the five minutes of the file
TIMEOUT_SECONDS = 240


def _metrics(work_seconds: float, queued: int, running: int) -> dict[str, float]:
    return {
        "impasto_queue_work_seconds": work_seconds,
        "impasto_jobs_queued": queued,
        "impasto_jobs_running": running,
    }


@pytest.mark.parametrize(
    ("work_seconds", "queued", "running", "workers"),
    [
        (0, 0, 0, 0),
        (0, 1, 0, 1),  # its estimate is not known yet
        (1, 1, 0, 1),
        (900, 5, 0, 4),
        (890, 5, 3, 6),  # in addition to those that have a job
        (10, 1, 3, 4),
        (0, 0, 5, 5),
        (1e6, 900, 8, 8),
    ],
)
def test_the_queued_work_needs_workers_in_addition_to_those_that_run_jobs(
    work_seconds: float, queued: int, running: int, workers: int
) -> None:
    scaler = Autoscaler(SPEC, SPEC["minReplicaCount"], SPEC["maxReplicaCount"])
    scaler.decide(0, 0, _metrics(work_seconds, queued, running))  # up: in steps
    assert scaler._wanted[-1][1] == workers


def test_after_a_rush_a_tenth_of_the_workers_ends_at_a_time_and_none_that_has_a_job() -> None:
    """The decisions every 15 seconds."""
    scaler, workers, counts = Autoscaler(SPEC, 0, 100), 88, []
    for step in range(60):
        running = 80 if step < 2 else 5
        workers = scaler.decide(SYNC_SECONDS * step, workers, _metrics(0, 0, running))
        counts.append(workers)

    assert counts[:6] == [88, 88, 79, 79, 71, 71]  # with 80 of 88 busy, none ends
    assert counts[-1] == 5


def test_long_jobs_keep_their_workers_while_nothing_is_queued() -> None:
    scaler = Autoscaler(SPEC, 0, 100)
    counts = [
        scaler.decide(SYNC_SECONDS * step, 8, _metrics(0, 0, running=8)) for step in range(20)
    ]
    assert counts == [8] * 20


def test_all_triggers_read_the_metrics_of_the_api_with_a_key() -> None:
    for trigger in SPEC["triggers"]:
        metadata = trigger["metadata"]
        assert metadata["url"] == "http://api.impasto.svc.cluster.local:8000/metrics"
        assert (metadata["format"], metadata["authMode"]) == ("prometheus", "bearer")
        assert trigger["authenticationRef"] == {"name": "metrics"}
        assert trigger["metricType"] == "AverageValue"


class _Scaler:
    """Starts and stops real workers of a service by these decisions, like KEDA."""

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._environment = fleet.api._environment
        self.workers: list[Program] = []
        # These jobs are too short for their work to count.
        formula = f"running + queued / {JOBS // MAX_WORKERS}"
        modifiers = SPEC["advanced"]["scalingModifiers"] | {"formula": formula}
        spec: dict[str, Any] = SPEC | {
            "advanced": SPEC["advanced"] | {"scalingModifiers": modifiers}
        }
        self._autoscaler = Autoscaler(spec, 0, MAX_WORKERS)
        self.running_at_ends: list[float] = []
        self._active_at = 0.0

    def read(self) -> dict[str, float]:
        text = httpx2.get(f"{self._fleet.url}/metrics", timeout=5, trust_env=False).text
        return {
            sample.name: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if not sample.labels
        }

    def step(self) -> int:
        """Poll once; return the number of workers after it."""
        metrics, now = self.read(), time.monotonic()
        wanted = self._autoscaler.decide(SPEED * now, len(self.workers), metrics)
        if metrics["impasto_jobs_running"] or metrics["impasto_jobs_queued"]:
            self._active_at = now
        if now - self._active_at < COOLDOWN_SECONDS:  # KEDA keeps the last worker so long
            wanted = max(wanted, min(1, len(self.workers)))
        while len(self.workers) < wanted:
            self._start()
        while len(self.workers) > wanted:
            self.running_at_ends.append(metrics["impasto_jobs_running"] - wanted)
            self.workers.pop(0).stop()  # the oldest, whether it runs a job or not
        return len(self.workers)

    def _start(self) -> None:
        name = f"worker-{len(self.workers)}"
        python = self._fleet.api._command[0]
        log = self._fleet.folder / f"{name}.log"
        self.workers.append(Program(name, [python, "-m", "worker"], self._environment, log))
        self.workers[-1].start()

    def stop(self) -> None:
        for worker in self.workers:
            worker.stop()


@pytest.mark.e2e
@pytest.mark.reliability
def test_the_workers_of_a_service_scale_from_zero_and_back_without_losing_a_job(
    tmp_path: Path,
) -> None:
    with Fleet(tmp_path / "fleet", workers=0, tiny=True) as fleet, Caller(fleet.url) as caller:
        scaler = _Scaler(fleet)
        try:
            assert scaler.step() == 0
            jobs = [caller.submit(PARAMETERS, f"job-{number}") for number in range(JOBS)]
            counts, deadline = [scaler.step()], time.monotonic() + TIMEOUT_SECONDS
            while counts[-1] and time.monotonic() < deadline:
                time.sleep(0.2)
                counts.append(scaler.step())
        finally:
            scaler.stop()
        ended = [caller.ask("GET", f"/v1/jobs/{job}").json()["status"] for job in jobs]

    assert (counts[0], max(counts), counts[-1]) == (MAX_WORKERS, MAX_WORKERS, 0), counts
    assert max(scaler.running_at_ends) <= 0, "fewer workers than running jobs"
    assert ended == ["succeeded"] * JOBS
