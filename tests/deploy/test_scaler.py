"""The decisions of deploy/kubernetes/components/keda, on numbers and on a running service."""

import math
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from fleet import Fleet, Program
from kills import Caller
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[2]
FILE = ROOT / "deploy" / "kubernetes" / "components" / "keda" / "scaler.yaml"
SPEC: dict[str, Any] = next(yaml.safe_load_all(FILE.read_text()))["spec"]
JOBS = 6
PARAMETERS = {"size": "64", "iterations": "10", "scales": "1"}
COOLDOWN_SECONDS = 1.0  # instead of the five minutes of the file
TIMEOUT_SECONDS = 240


def _decide(values: dict[str, float], targets: dict[str, float] | None = None) -> int:
    """The number of workers for these metrics, as KEDA and its autoscaler compute it.

    A metric that is missing counts as 0. targets: instead of those of the file, by trigger.
    """
    wanted = [0]
    for trigger in SPEC["triggers"]:
        metadata = trigger["metadata"]
        target = (targets or {}).get(trigger["name"], float(metadata["targetValue"]))
        wanted.append(math.ceil(values.get(metadata["valueLocation"], 0) / target))
    return min(SPEC["maxReplicaCount"], max(SPEC["minReplicaCount"], *wanted))


@pytest.mark.parametrize(
    ("work_seconds", "queued", "running", "workers"),
    [
        (0, 0, 0, 0),
        (0, 1, 0, 1),  # its estimate is not known yet
        (1, 1, 0, 1),
        (900, 5, 0, 3),
        (900, 5, 3, 3),
        (10, 1, 3, 3),  # no worker with a job ends
        (0, 0, 1, 1),
        (1e6, 900, 8, 8),
    ],
)
def test_workers_follow_the_queued_work_and_never_fewer_than_run_jobs(
    work_seconds: float, queued: int, running: int, workers: int
) -> None:
    values = {
        "impasto_queue_work_seconds": work_seconds,
        "impasto_jobs_queued": queued,
        "impasto_jobs_running": running,
    }
    assert _decide(values) == workers


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
        self._quiet_since = time.monotonic()

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
        wanted = _decide(self.read(), {"queued": JOBS / 2})
        now = time.monotonic()
        if wanted >= len(self.workers):
            self._quiet_since = now
        while len(self.workers) < wanted:
            self._start()
        if now - self._quiet_since > COOLDOWN_SECONDS and len(self.workers) > wanted:
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

    assert (max(counts), counts[-1]) == (2, 0), counts
    assert ended == ["succeeded"] * JOBS
