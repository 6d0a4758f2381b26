"""`impasto status`: one screen about a running service, through its API.

Without an admin key it shows what every client may see.
"""

import json
import sys
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from cli.options import service_options
from cli.output import printable
from core import errors
from impasto import Client

_LABEL_WIDTH = 10
_NO_ACCESS = (errors.Unauthorized, errors.AdminRequired)


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@service_options
def status(url: str | None, ca_file: Path | None, *, as_json: bool) -> None:
    """Show whether the service is ready, its workers, queue, waits, failures and disk.

    Exits with 0 if the service is ready, else with 1. With an admin key in IMPASTO_KEY it also
    shows the workers' jobs, the last hours and the disk.
    """
    with Client(url, ca_file=ca_file, retry_seconds=0) as client:
        seen = read_status(client)
    if as_json:
        click.echo(json.dumps(seen, indent=2))
    else:
        for line in describe_status(seen):
            click.echo(printable(line))
    sys.exit(0 if seen["ready"] else 1)


def read_status(client: Client) -> dict[str, Any]:
    """Return what this client may see of the service; null where it may not, or cannot."""
    seen: dict[str, Any] = {"url": client.url, "reachable": False, "ready": False, "reason": None}
    seen |= {"checks": {}, "warnings": [], "system": None, "operator": None, "hours": None}
    try:
        seen |= {"reachable": True, **asdict(client.readiness())}
        system = asdict(client.system())
        del system["limits"]
        seen["system"] = json.loads(json.dumps(system, default=datetime.isoformat))
        seen["operator"] = client.operator("status")
        seen["hours"] = client.operator("hours", count=2)["total"]
    except _NO_ACCESS:
        pass
    except errors.ServiceUnreachable as error:
        seen |= {"reachable": False, "ready": False, "reason": error.message}
    except errors.ImpastoError as error:  # the store does not answer
        seen["reason"] = seen["reason"] or error.message
    return seen


def describe_status(seen: dict[str, Any]) -> list[str]:
    """Return the lines of the screen."""
    ready = "ready" if seen["ready"] else "not ready" if seen["reachable"] else "not reachable"
    version = f", version {seen['system']['version']}" if seen["system"] else ""
    rows = [("service", f"{seen['url']}: {ready}{version}")]
    failing = [f"{name}: {text}" for name, text in seen["checks"].items() if text != "ok"]
    if not failing and seen["reason"]:
        failing = [seen["reason"]]
    rows += [("", text) for text in failing]
    rows += [("warning", text) for text in seen["warnings"]]
    if seen["system"] is not None:
        rows += _describe_queue(seen["system"])
        rows += _describe_workers(seen["system"], seen["operator"])
    if seen["operator"] is not None:
        rows += _describe_operator(seen["operator"], seen["hours"])
    elif seen["reachable"]:
        rows.append(("more", "with an admin key in IMPASTO_KEY: jobs of workers, failures, disk"))
    return [f"{label:<{_LABEL_WIDTH}}{text}" for label, text in rows]


def _describe_queue(system: dict[str, Any]) -> list[tuple[str, str]]:
    work = system["queue_work_seconds"]
    about = "" if work is None else f", about {_seconds(work)} of work for one worker"
    rows = [("queue", f"{system['queued']} queued, {system['running']} running{about}")]
    if since := system["intake_paused_at"]:
        rows.append(("", f"paused since {since}: no new jobs are accepted"))
    return rows


def _describe_workers(
    system: dict[str, Any], operator: dict[str, Any] | None
) -> list[tuple[str, str]]:
    workers = system["workers"]
    busy = sum(worker["busy"] for worker in workers)
    rows = [("workers", f"{len(workers)} live, {busy} busy")]
    for worker in operator["workers"] if operator else workers:
        info = worker["info"] or {"device": "starting", "precision": ""}
        parts = [f"{info['device']} {info['precision']}".rstrip()]
        if "name" in worker:
            parts.insert(0, worker["name"].partition(":")[0])
            progress = worker["progress"]
            share = "" if progress is None else f" ({100 * progress:.0f} %)"
            parts.append(f"runs {worker['job_id']}{share}" if worker["job_id"] else "idle")
        else:
            parts.append("busy" if worker["busy"] else "idle")
        rows.append(("", ", ".join(parts)))
    return rows


def _describe_operator(
    operator: dict[str, Any], hours: dict[str, Any] | None
) -> list[tuple[str, str]]:
    rows = []
    if hours is not None:
        ends = [f"{hours[status]} {status}" for status in ("succeeded", "failed", "canceled")]
        codes = ", ".join(f"{code} {count}" for code, count in hours["failures"].items())
        rows.append((f"{hours['start'][11:16]} on", ", ".join(ends)))
        if codes:
            rows.append(("", f"failures: {codes}"))
        if hours["started"]:
            median, most = hours["wait_p50_seconds"], hours["wait_p95_seconds"]
            text = f"waits: {_seconds(median)} in the median, 95 % within {_seconds(most)}"
            rows.append(("", text))
    disk = operator["disk"]
    share = 100 * disk["free_bytes"] / disk["total_bytes"]
    rows.append(("disk", f"{disk['free_bytes'] / 1e9:.1f} GB free ({share:.0f} %)"))
    rows.append(("webhooks", f"{operator['webhooks_pending']} pending"))
    return rows


def _seconds(seconds: float) -> str:
    """Return a duration with two digits."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
