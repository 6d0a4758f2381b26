"""Does every response conform to the OpenAPI document? schemathesis sends the requests.

python tests/campaigns/contract.py --seed 1 [--count 500] [--history FILE] [--without validation]

`count` is the number of random examples for each operation, beside those that schemathesis derives
from the document. A request that is valid by the document may still be refused for reasons that the
document cannot express, such as a file that is no picture.
"""

import http.client
import io
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from api_process import ApiProcess
from history import report_violations
from PIL import Image

from core.images import validation
from core.jobs.store import JobStore

HERE = Path(__file__).parent
JOBS = 40

# A schema can express neither what a valid picture is nor which parameters fit together.
CONFIG = """
hooks = "{hooks}"
seed = {seed}
continue-on-failure = true

[generation]
max-examples = {count}
mode = "all"
no-shrink = true

[[operations]]
include-name = [
  "POST /v1/jobs", "POST /v1/jobs/{{job_id}}/retry", "PATCH /v1/jobs/{{job_id}}",
  "POST /v1/images", "POST /v1/batches",
]
checks.positive_data_acceptance.expected-statuses = [
  "2xx", "400", "404", "409", "410", "413", "415", "422",
]

[[operations]]
include-name = ["POST /v1/estimate", "GET /readyz"]
# There is no worker, so the answer is 503. `violations` finds every other server error.
checks.not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "503"]
checks.positive_data_acceptance.expected-statuses = ["2xx", "400", "404", "422", "503"]
"""


def run(seed: int, count: int, history: Path, without: str | None) -> None:
    """Run the campaign and write requests and responses to the history."""
    with tempfile.TemporaryDirectory() as folder, ApiProcess(Path(folder) / "api", without) as api:
        config, report = Path(folder) / "schemathesis.toml", Path(folder) / "report.ndjson"
        config.write_text(CONFIG.format(hooks=HERE / "contract_hooks.py", seed=seed, count=count))
        command = [
            sys.executable,
            "-c",
            "from schemathesis.cli import schemathesis; schemathesis()",
        ]
        command += [
            "--config-file",
            str(config),
            "run",
            f"{api.url}/openapi.json",
            "--checks",
            "all",
            "--request-timeout",
            "20",
        ]
        command += ["--report", "ndjson", "--report-ndjson-path", str(report)]
        environment = os.environ | _prepare_resources(api, seed)
        ended = subprocess.run(
            command, env=environment, cwd=folder, capture_output=True, text=True, check=False
        )
        if not report.exists():
            raise RuntimeError(ended.stdout + ended.stderr)
        with report.open() as lines, history.open("w") as out:
            for line in lines:
                for entry in _parse_cases(json.loads(line)):
                    out.write(json.dumps(entry) + "\n")
            out.write(
                json.dumps({"exit": ended.returncode, "log": _count_tracebacks(api.log)}) + "\n"
            )


def _prepare_resources(api: ApiProcess, seed: int) -> dict[str, str]:
    """Create pictures, uploads and jobs, and return them as environment variables for the hooks."""
    pictures = []
    for color in ("red", "blue"):
        file = io.BytesIO()
        Image.new("RGB", (48, 40), color).save(file, "PNG")
        pictures.append(file.getvalue())
    digests = [
        json.loads(_post(api, "/v1/images", _build_form(picture)))["id"] for picture in pictures
    ]
    body = json.dumps({"content": digests[0], "styles": [digests[1]]}).encode()
    *jobs, ended = [
        json.loads(_post(api, "/v1/jobs", body, "application/json"))["id"] for _ in range(JOBS + 1)
    ]
    store = JobStore(api.redis_url)
    store.cancel(ended)
    store.close()
    assert all(validation.detect_format(picture) == "png" for picture in pictures)
    resources = {
        "PICTURES": [picture.hex() for picture in pictures],
        "DIGESTS": digests,
        "JOBS": jobs,
        "ENDED": ended,
    }
    return {f"CONTRACT_{name}": json.dumps(value) for name, value in resources.items()} | {
        "CONTRACT_SEED": str(seed)
    }


def _build_form(picture: bytes) -> bytes:
    head = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    return head + picture + b"\r\n--x--\r\n"


def _post(
    api: ApiProcess, path: str, body: bytes, kind: str = "multipart/form-data; boundary=x"
) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", api.port, timeout=10)
    connection.request("POST", path, body, {"Content-Type": kind})
    answer = connection.getresponse()
    assert answer.status in (201, 202), answer.read()
    return answer.read()


def _parse_cases(event: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the cases of one event in schemathesis's report."""
    recorder = event.get("ScenarioFinished", {}).get("recorder", {})
    checks = recorder.get("checks", {})
    for case_id, interaction in recorder.get("interactions", {}).items():
        response = interaction.get("response") or {}
        failed = [check for check in checks.get(case_id, []) if check.get("status") == "failure"]
        yield {
            "operation": recorder.get("label"),
            "status": response.get("status_code"),
            "seconds": response.get("elapsed"),
            "broken": [_describe_check(check) for check in failed],
            **({"uri": interaction.get("request", {}).get("uri")} if failed else {}),
        }


def _describe_check(check: dict[str, Any]) -> str:
    failure = (check.get("failure_info") or {}).get("failure", {})
    return f"{check.get('name')}: {failure.get('message') or failure.get('title') or failure}"


def _count_tracebacks(log: Path) -> int:
    return log.read_text(errors="replace").count("Traceback")


def violations(history: Path) -> list[str]:
    """Return the violations that the history shows."""
    found = []
    entries = [json.loads(line) for line in history.read_text().splitlines()]
    cases = [entry for entry in entries if "operation" in entry]
    for case in cases:
        if case["status"] is None:
            found.append(f"{case['operation']}: no response")
        elif case["status"] >= 500 and case["status"] != 503:
            found.append(f"{case['operation']}: answered {case['status']}")
        found += [f"{case['operation']}: {failure}" for failure in case["broken"]]
    if not cases:
        found.append("there are no cases")
    end = entries[-1]
    if end["log"]:
        found.append(f"{end['log']} tracebacks in the log")
    if end["exit"] not in (0, 1) or (end["exit"] and not found):
        found.append(f"schemathesis ended with {end['exit']}")
    return found


@click.command()
@click.option("--seed", default=1, show_default=True)
@click.option("--count", default=500, show_default=True, help="Examples for each operation.")
@click.option(
    "--history", type=click.Path(path_type=Path), default=Path("contract.jsonl"), show_default=True
)
@click.option(
    "--without",
    type=click.Choice(["validation"]),
    help="Remove this guard: there must be violations.",
)
def main(seed: int, count: int, history: Path, without: str | None) -> None:
    """Run the campaign and check its history; exit code 1 if there are violations."""
    run(seed, count, history, without)
    entries = [json.loads(line) for line in history.read_text().splitlines()]
    cases = [entry for entry in entries if "operation" in entry]
    operations: dict[str, Counter[int]] = {}
    for case in cases:
        operations.setdefault(case["operation"], Counter())[case["status"]] += 1
    print(f"seed {seed}: {len(cases)} cases")
    for operation, statuses in sorted(operations.items()):
        print(f"{operation:36} {dict(sorted(statuses.items()))}")
    report_violations(sorted(set(violations(history))))


if __name__ == "__main__":
    main()
