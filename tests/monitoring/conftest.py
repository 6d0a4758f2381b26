"""A service of real processes that has run a job: two API processes, a worker, a collector."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fleet import Fleet, Program
from observed_service import Collector, Service, is_up, run_job
from processes import environment

from cli.local_service import free_port
from core.auth.api_keys import ApiKeyStore


@pytest.fixture(scope="session")
def service(
    tmp_path_factory: pytest.TempPathFactory, until: Callable[..., None]
) -> Iterator[Service]:
    collector = Collector()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        fleet = Fleet(
            tmp_path_factory.mktemp("seen"), workers=1, tiny=True, TRACES_URL=collector.url
        )
        port = free_port()
        variables = {**fleet.api._environment, "IMPASTO_API_PORT": str(port)}
        second = Program("api-2", [sys.executable, "-m", "api"], variables, fleet.folder / "2.log")
        with fleet:
            second.start()
            urls = [fleet.url, f"http://127.0.0.1:{port}"]
            keys = ApiKeyStore(f"redis://127.0.0.1:{fleet.store_port}/0")
            _, admin_key = keys.create("Operator", admin=True)
            keys.close()
            job_id = run_job(fleet.url)
            until(lambda: is_up(urls[1]), "the second API process answers")
            yield Service(fleet, urls, admin_key, job_id, collector)
            second.stop()
    collector.close()


@pytest.fixture(scope="session")
def prometheus(
    service: Service, tmp_path_factory: pytest.TempPathFactory, until: Callable[..., None]
) -> Iterator[Callable[..., Any]]:
    """A real Prometheus with the alerts that scrapes the service; a function that asks it."""
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port()
    rules = Path(__file__).parents[2] / "deploy" / "prometheus" / "alerts.yml"
    targets = ", ".join(f'"{url.removeprefix("http://")}"' for url in service.urls)
    (folder / "prometheus.yml").write_text(
        "global: {scrape_interval: 500ms, evaluation_interval: 1s}\n"
        f"rule_files: [{rules}]\n"
        "scrape_configs:\n"
        "  - job_name: impasto\n"
        f"    static_configs: [{{targets: [{targets}]}}]\n"
    )
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--enable-feature=exemplar-storage",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment())

    def ask(path: str, **parameters: str) -> Any:
        url = f"http://127.0.0.1:{port}/api/v1/{path}"
        answer = httpx2.get(url, params=parameters, trust_env=False).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def has_samples() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        try:
            query = "min(count_over_time(impasto_workers[1m])) >= 3"
            found = ask("query", query=f"{query} and count(up == 1) == 2")
        except (httpx2.HTTPError, ValueError):
            return False
        return bool(found["result"])

    try:
        until(has_samples, "Prometheus has scraped both processes three times")
        yield ask
    finally:
        process.terminate()
        process.wait()
