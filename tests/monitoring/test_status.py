"""`impasto status` against a running service, with and without an admin key."""

import json
import subprocess
from collections.abc import Callable

from observed_service import Service

Command = Callable[..., subprocess.CompletedProcess[str]]


def test_an_operator_sees_workers_queue_failures_and_disk(
    service: Service, run_command: Command
) -> None:
    variables = {"IMPASTO_URL": service.urls[0], "IMPASTO_KEY": service.admin_key}
    shown = run_command("status", **variables)
    seen = json.loads(run_command("status", "--json", **variables).stdout)

    assert shown.returncode == 0
    assert f"{service.urls[0]}: ready, version" in shown.stdout
    for part in ("0 queued, 0 running, about 0 s of work", "1 live, 0 busy", ", idle", "GB free"):
        assert part in shown.stdout
    assert "1 succeeded, 0 failed, 0 canceled" in shown.stdout
    assert "waits: " in shown.stdout
    assert seen["ready"] is True
    assert seen["operator"]["workers"][0]["info"]["network"] == "vgg16"
    assert seen["hours"]["succeeded"] == 1


def test_without_an_admin_key_the_rest_is_shown(service: Service, run_command: Command) -> None:
    shown = run_command("status", IMPASTO_URL=service.urls[0])

    assert shown.returncode == 0
    assert "1 live, 0 busy" in shown.stdout
    assert "with an admin key in IMPASTO_KEY" in shown.stdout
    assert "disk " not in shown.stdout


def test_a_script_learns_that_no_service_answers(run_command: Command) -> None:
    shown = run_command("status", IMPASTO_URL="http://127.0.0.1:9")
    as_json = run_command("status", "--json", IMPASTO_URL="http://127.0.0.1:9")

    assert (shown.returncode, as_json.returncode) == (1, 1)
    assert "http://127.0.0.1:9: not reachable" in shown.stdout
    assert json.loads(as_json.stdout)["reachable"] is False
