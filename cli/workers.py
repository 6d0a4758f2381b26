"""`impasto workers`: lists, pauses, drains and resumes workers, for the operator of the service.

It uses the service's API with an admin key.
"""

from collections.abc import Iterable
from pathlib import Path

import click

from cli.options import service_options
from cli.output import printable
from core import errors
from impasto import Client, WorkerState

ALL = "*"

worker_argument = click.argument("worker_id", metavar="[ID]", required=False)
all_option = click.option("--all", "is_all", is_flag=True, help="All workers.")


@click.group()
def workers() -> None:
    """Manage the workers of a service. IMPASTO_KEY must be an admin key."""


@workers.command("list")
@service_options
def list_workers(url: str | None, ca_file: Path | None) -> None:
    """List every worker: id, state, device, largest size, pools, job."""
    with Client(url, ca_file=ca_file) as client:
        _print_workers(client.workers())


@workers.command()
@worker_argument
@all_option
@service_options
def pause(worker_id: str | None, url: str | None, ca_file: Path | None, *, is_all: bool) -> None:
    """Let a worker take no new jobs until it is resumed, also after a restart."""
    with Client(url, ca_file=ca_file) as client:
        _print_workers(client.pause_worker(_choose(worker_id, is_all=is_all)))


@workers.command()
@worker_argument
@all_option
@click.option("--release", is_flag=True, help="Hand the running job to another worker at once.")
@service_options
def drain(
    worker_id: str | None, url: str | None, ca_file: Path | None, *, is_all: bool, release: bool
) -> None:
    """Let a worker end after its running job. If it is started again, it is paused."""
    with Client(url, ca_file=ca_file) as client:
        chosen = _choose(worker_id, is_all=is_all)
        _print_workers(client.drain_worker(chosen, release=release))


@workers.command()
@worker_argument
@all_option
@service_options
def resume(worker_id: str | None, url: str | None, ca_file: Path | None, *, is_all: bool) -> None:
    """Let a worker take jobs again, whatever has suspended it."""
    with Client(url, ca_file=ca_file) as client:
        _print_workers(client.resume_worker(_choose(worker_id, is_all=is_all)))


def _choose(worker_id: str | None, *, is_all: bool) -> str:
    if (worker_id is None) != is_all:
        raise errors.BadInput("Give either the ID of one worker (`impasto workers list`) or --all.")
    return worker_id or ALL


def _print_workers(found: Iterable[WorkerState]) -> None:
    states = list(found)
    if not states:
        click.echo("No worker is connected.", err=True)
    for worker in states:
        click.echo(printable("  ".join(_describe(worker))))


def _describe(worker: WorkerState) -> list[str]:
    state, info = "active", worker.info
    if suspension := worker.suspension:
        is_drained = suspension.kind == "draining" and not worker.name
        state = "drained" if is_drained else suspension.kind.replace("_", " ")
        state += f" ({suspension.reason})" if suspension.reason else ""
    parts = [worker.id or worker.name, state]
    if info is not None:
        parts += [info.device, f"up to {info.max_size_px} px" if info.max_size_px else ""]
    pools = [pool for pool in worker.pools if pool]
    parts.append(f"pools {', '.join(pools)}" if pools else "")
    parts.append(f"runs {worker.job_id}" if worker.job_id else "")
    return [part for part in parts if part]
