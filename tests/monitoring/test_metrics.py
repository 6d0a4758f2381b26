"""The metrics of a running service, and what dashboard, alerts and docs make of them."""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from observed_service import TRACE, Service, needs_prometheus

ROOT = Path(__file__).parents[2]
OPENMETRICS = "application/openmetrics-text; version=1.0.0"
# Queries without a result as long as nothing fails, or the store's memory has no limit.
MAY_BE_EMPTY = ("impasto_jobs_failed_total", "impasto_store_memory_limit_bytes) > 0", '"[45]..')
_NAME = re.compile(r"\b(?:impasto|process)_[a-z_]+")


def _panels() -> Iterator[Any]:
    dashboard = json.loads((ROOT / "deploy/grafana/impasto.json").read_text(encoding="utf-8"))
    yield from (panel for panel in dashboard["panels"] if panel["type"] != "row")


def _queries() -> list[str]:
    return [
        target["expr"].replace("$__rate_interval", "1m")
        for panel in _panels()
        for target in panel["targets"]
    ]


def _rules() -> list[dict[str, Any]]:
    text = (ROOT / "deploy/prometheus/alerts.yml").read_text(encoding="utf-8")
    rules: list[dict[str, Any]] = yaml.safe_load(text)["groups"][0]["rules"]
    return rules


def _families(text: str) -> dict[str, str]:
    """The metrics of a scrape and their types, by the names that queries use."""
    found = {}
    for name, kind in re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE):
        if kind == "histogram":
            found |= dict.fromkeys((f"{name}_bucket", f"{name}_sum", f"{name}_count"), kind)
        else:
            found[name] = kind
    return found


def _values(text: str) -> dict[str, float]:
    rows = re.findall(r"^(impasto_\S+) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in rows}


def test_a_job_that_has_run_is_in_the_metrics(service: Service, until: Callable[..., None]) -> None:
    until(lambda: _values(service.scrape(service.urls[0]))["impasto_iterations_total"] >= 8, "8")
    values = _values(service.scrape(service.urls[0]))

    assert values["impasto_jobs_submitted_total"] == values["impasto_attempts_total"] == 1
    assert values['impasto_jobs_finished_total{status="succeeded"}'] == 1
    assert values['impasto_job_run_seconds_count{size="256"}'] == 1
    assert values['impasto_job_wait_seconds_bucket{le="+Inf",size="256"}'] == 1
    assert values["impasto_iterations_total"] == 8
    assert values["impasto_evaluations_total"] >= 8
    assert values["impasto_evaluated_pixels_total"] >= 4 * 160 * 120
    assert (values["impasto_queue_work_seconds"], values["impasto_leases_lost_total"]) == (0, 0)
    assert values['impasto_slot_wait_seconds_count{work="pictures"}'] == 2
    assert values['impasto_store_call_seconds_count{function="create"}'] == 1
    polls = 'method="GET",route="/v1/jobs/{job_id}",status="200"'
    assert values[f"impasto_http_requests_total{{{polls}}}"] >= 1
    used = [value for name, value in values.items() if "worker_memory_used_bytes{" in name]
    assert len(used) == 1
    assert used[0] > 50_000_000


def test_all_api_processes_report_the_same_service(service: Service) -> None:
    ours = ("impasto_http", "impasto_slot", "impasto_store_call", "impasto_disk")
    ours += ("impasto_store_errors", "impasto_store_memory_bytes")
    changing = ("impasto_worker_", "impasto_queue_head")
    seen = [
        {
            name: value
            for name, value in _values(service.scrape(url)).items()
            if not name.startswith(ours + changing)
        }
        for url in service.urls
    ]

    assert seen[0] == seen[1]
    assert seen[0]["impasto_jobs_submitted_total"] == 1


def test_exemplars_lead_from_a_slow_bucket_to_its_trace(service: Service) -> None:
    text = service.scrape(service.urls[0], OPENMETRICS)
    exemplars = re.findall(r'^(\S+) \S+ # \{trace_id="(\w+)"\}', text, re.MULTILINE)
    names = {name.partition("{")[0] for name, trace in exemplars if trace == TRACE}

    assert text.endswith("# EOF\n")
    assert {
        "impasto_http_request_duration_seconds_bucket",
        "impasto_job_wait_seconds_bucket",
        "impasto_job_run_seconds_bucket",
    } <= names


def test_dashboard_and_alerts_use_metrics_that_exist(service: Service) -> None:
    families = _families(service.scrape(service.urls[0]))
    queries = [*_queries(), *(rule["expr"] for rule in _rules())]
    used = {name for query in queries for name in _NAME.findall(query)}

    assert len(used) > 30
    assert used - set(families) == set()


def test_the_reference_has_what_the_service_answers_and_nothing_else(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "site"))
    import reference  # the generator of the reference

    page = reference.render_metrics()
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.+?) \| (.+?) \| .+ \|$", page, re.MULTILINE)
    documented = {name: (kind, set(re.findall(r"\w+", labels))) for name, kind, labels, _ in rows}
    described = set(re.findall(r"^\| `(\w+)` \| [^|]+ \|$", page, re.MULTILINE))
    units = {name: unit for name, _, _, unit in rows}

    text = service.scrape(service.urls[0])
    answered = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
    assert {name: kind for name, (kind, _) in documented.items()} == answered
    seen: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^(\w+)\{(.+)\} ", text, re.MULTILINE):
        family = re.sub(r"_(bucket|sum|count)$", "", name)
        found = set(re.findall(r'(\w+)="', labels)) - {"le"}
        seen.setdefault(name if name in answered else family, set()).update(found)
    assert len(seen) > 10
    for name, labels in seen.items():
        assert labels == documented[name][1], name
        assert labels <= described, name
    assert units["impasto_worker_memory_used_bytes"] == "B"
    assert units["impasto_job_wait_seconds"] == "s"


def test_no_label_has_many_values_or_identifies_a_caller(service: Service) -> None:
    text = service.scrape(service.urls[0])

    assert service.job_id not in text
    assert "key_" not in text
    assert "127.0.0.1" not in text
    assert len(text) < 100_000


@needs_prometheus
def test_prometheus_evaluates_every_panel(
    prometheus: Callable[..., Any], until: Callable[..., None]
) -> None:
    for query in _queries():
        if any(part in query for part in MAY_BE_EMPTY):
            prometheus("query", query=query)
        else:  # a scrape on a busy machine may miss the store
            until(lambda query=query: prometheus("query", query=query)["result"], query)


@needs_prometheus
def test_prometheus_loads_the_alerts_and_none_fires(prometheus: Callable[..., Any]) -> None:
    (group,) = prometheus("rules")["groups"]

    assert {rule["name"] for rule in group["rules"]} == {rule["alert"] for rule in _rules()}
    assert [rule["name"] for rule in group["rules"] if rule["health"] == "err"] == []
    assert prometheus("alerts")["alerts"] == []


@pytest.mark.parametrize("rule", _rules(), ids=lambda rule: rule["alert"])
def test_each_alert_has_a_runbook(rule: dict[str, Any]) -> None:
    page = (ROOT / "docs/monitoring.md").read_text(encoding="utf-8")
    section = re.search(rf"^### {rule['alert']}\n(.*?)(?=^##|\Z)", page, re.MULTILINE | re.DOTALL)

    assert section, "docs/monitoring.md has a section of this name"
    assert "**Means.**" in section[1]
    assert "**Do.**" in section[1]
    assert rule["annotations"]["runbook"] == f"docs/monitoring.md#{rule['alert'].lower()}"
