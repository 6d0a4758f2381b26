"""Each alert fires for what it is about, for nothing else, and not before its time.

promtool runs the rules over made-up time series; no service runs.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from observed_service import needs_prometheus

RULES = Path(__file__).parents[2] / "deploy" / "prometheus" / "alerts.yml"
INTERVAL_MINUTES = 1
LENGTH = 90  # of each series, in intervals

_STATUS_TIME = (
    "impasto_http_request_duration_seconds_bucket"
    '{{method="GET",route="/v1/jobs/{{job_id}}",le="{}"}}'
)

# A healthy service with two API processes, in promtool's notation: start+step x count.
HEALTHY = {
    'up{job="impasto",instance="a"}': "1x90",
    'up{job="impasto",instance="b"}': "1x90",
    'impasto_store_up{instance="a"}': "1x90",
    'impasto_store_up{instance="b"}': "1x90",
    "impasto_store_problems": "0x90",
    "impasto_jobs_queued": "5x90",
    "impasto_jobs_running": "2x90",
    "impasto_workers": "2x90",
    "impasto_workers_busy": "2x90",
    "impasto_iterations_total": "0+600x90",
    "impasto_queue_work_seconds": "300x90",
    "impasto_queue_head_age_seconds": "60x90",
    "impasto_intake_paused": "0x90",
    'impasto_jobs_finished_total{status="succeeded"}': "0+10x90",
    'impasto_jobs_finished_total{status="failed"}': "0x90",
    "impasto_leases_lost_total": "0x90",
    'impasto_http_requests_total{status="200"}': "0+1000x90",
    'impasto_http_requests_total{status="503"}': "0+1x90",
    _STATUS_TIME.format("0.1"): "0+1000x90",
    _STATUS_TIME.format("2.5"): "0+1000x90",
    _STATUS_TIME.format("+Inf"): "0+1000x90",
    'impasto_slot_wait_seconds_bucket{work="pictures",le="1"}': "0+100x90",
    'impasto_slot_wait_seconds_bucket{work="pictures",le="30"}': "0+100x90",
    'impasto_slot_wait_seconds_bucket{work="pictures",le="+Inf"}': "0+100x90",
    'impasto_store_call_seconds_bucket{function="claim",le="0.01"}': "0+1000x90",
    'impasto_store_call_seconds_bucket{function="claim",le="1"}': "0+1000x90",
    'impasto_store_call_seconds_bucket{function="claim",le="+Inf"}': "0+1000x90",
    "impasto_store_memory_bytes": "50x90",
    "impasto_store_memory_limit_bytes": "100x90",
    'impasto_disk_free_bytes{instance="a"}': "50x90",
    'impasto_disk_total_bytes{instance="a"}': "100x90",
    "impasto_webhooks_pending": "0x90",
}
# What goes wrong after 30 minutes: the alert, minutes until it fires, and the series that change.
CASES: list[tuple[str, int, dict[str, str]]] = [
    ("ImpastoDown", 1, {'up{job="impasto",instance="b"}': "1x29 0x60"}),
    (
        "ImpastoStoreDown",
        1,
        {
            'impasto_store_up{instance="a"}': "1x29 0x60",
            'impasto_store_up{instance="b"}': "1x29 0x60",
        },
    ),
    ("ImpastoStoreUnsafe", 2, {"impasto_store_problems": "0x29 1x60"}),
    (
        "ImpastoNoWorker",
        5,
        {
            "impasto_workers": "2x29 0x60",
            "impasto_workers_busy": "2x29 0x60",
            "impasto_jobs_running": "2x29 0x60",
        },
    ),
    (
        "ImpastoQueueStalled",
        5,
        {"impasto_workers_busy": "2x29 0x60", "impasto_jobs_running": "2x29 0x60"},
    ),
    # rate() looks back for 5 minutes before the alert's own 10.
    ("ImpastoRunsStalled", 15, {"impasto_iterations_total": "0+600x29 17400x60"}),
    ("ImpastoBacklog", 10, {"impasto_queue_work_seconds": "300x29 3700x60"}),
    ("ImpastoWaitLong", 5, {"impasto_queue_head_age_seconds": "60x29 1801x60"}),
    ("ImpastoJobsFail", 9, {'impasto_jobs_finished_total{status="failed"}': "0x29 0+10x60"}),
    ("ImpastoWorkersLost", 5, {"impasto_leases_lost_total": "0x29 0+1x60"}),
    ("ImpastoApiErrors", 6, {'impasto_http_requests_total{status="503"}': "0+1x29 29+100x60"}),
    (
        "ImpastoApiSlow",
        11,
        {_STATUS_TIME.format("0.1"): "0+1000x29 29000x60"},
    ),
    (
        "ImpastoDecodersBusy",
        11,
        {'impasto_slot_wait_seconds_bucket{work="pictures",le="1"}': "0+100x29 2900x60"},
    ),
    (
        "ImpastoStoreSlow",
        11,
        {'impasto_store_call_seconds_bucket{function="claim",le="0.01"}': "0+1000x29 29000x60"},
    ),
    ("ImpastoStoreMemory", 5, {"impasto_store_memory_bytes": "50x29 86x60"}),
    ("ImpastoDiskFull", 5, {'impasto_disk_free_bytes{instance="a"}': "50x29 9x60"}),
    ("ImpastoWebhooksPending", 15, {"impasto_webhooks_pending": "0x29 101x60"}),
    ("ImpastoIntakePaused", 60, {"impasto_intake_paused": "0x29 1x65"}),
]


def _firing(at_minutes: int, *alerts: str) -> dict[str, Any]:
    return {
        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
        "eval_time": f"{at_minutes}m",
        "exp_samples": [{"labels": f'{{alertname="{alert}"}}', "value": 1} for alert in alerts],
    }


def _tests() -> Iterator[dict[str, Any]]:
    yield {"name": "healthy", "changes": {}, "expected": [_firing(30), _firing(90)]}
    # A memory without a limit, or a service without jobs and workers, is no reason to alert.
    idle = dict.fromkeys(("impasto_jobs_queued", "impasto_jobs_running", "impasto_workers"), "0x90")
    idle |= {"impasto_workers_busy": "0x90", "impasto_queue_work_seconds": "0x90"}
    idle |= {"impasto_iterations_total": "0x90", "impasto_store_memory_limit_bytes": "0x90"}
    yield {"name": "scaled to zero", "changes": idle, "expected": [_firing(90)]}
    for alert, minutes, changes in CASES:
        begins = 30 + minutes
        expected = [_firing(begins - 2), _firing(begins + 1, alert)]
        yield {"name": alert, "changes": changes, "expected": expected}


def _write(path: Path) -> None:
    groups = []
    for test in _tests():
        series = [
            {"series": name, "values": values}
            for name, values in {**HEALTHY, **test["changes"]}.items()
        ]
        groups.append(
            {
                "name": test["name"],
                "interval": f"{INTERVAL_MINUTES}m",
                "input_series": series,
                "promql_expr_test": test["expected"],
            }
        )
    content = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": groups}
    path.write_text(yaml.safe_dump(content))


@needs_prometheus
def test_each_alert_fires_for_its_cause_alone(tmp_path: Path) -> None:
    _write(tmp_path / "test.yml")
    ran = subprocess.run(
        ["promtool", "test", "rules", str(tmp_path / "test.yml")],
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
    rules = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"][0]["rules"]
    assert {alert for alert, _, _ in CASES} == {rule["alert"] for rule in rules}


@needs_prometheus
@pytest.mark.parametrize("command", [["rules", "alerts.yml"], ["config", "prometheus.yml"]])
def test_promtool_accepts_the_files(command: list[str]) -> None:
    kind, name = command
    ran = subprocess.run(
        ["promtool", "check", kind, str(RULES.with_name(name))],
        capture_output=True,
        text=True,
        check=False,
    )

    assert ran.returncode == 0, ran.stdout + ran.stderr
