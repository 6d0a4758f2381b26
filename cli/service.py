"""`impasto up`, `api`, `worker`, `webhooks`: runs the whole service or one of its processes."""

import os
import signal
import subprocess
import sys
import time

import click

from cli.local_service import LocalService
from cli.options import host_option, port_option
from core.config import Settings, read_settings
from core.jobs.models import LOCAL_OWNER

ROOM_POLL_SECONDS = 1.0
DISK_FULL = (
    "The disk of IMPASTO_DATA_DIR is full or read-only, and a process has ended for it. "
    "The service continues by itself when there is room."
)


devices_option = click.option(
    "--devices",
    metavar="LIST",
    help="One worker per device: all cards, or numbers of nvidia-smi and cpu, as in 0,1,cpu.",
)


@click.command()
@host_option
@port_option
@devices_option
def up(host: str, port: int, devices: str | None) -> None:
    """Run the whole service on this machine until Ctrl-C."""
    _set_environment(IMPASTO_WORKER_DEVICES=devices)
    with open_local_service(host, port) as service:
        click.echo(f"Impasto runs at {service.url}   (API: {service.url}/docs, Ctrl-C stops it)")
        _supervise(service)
        click.echo("\nStopping; jobs and results are kept.")


def _set_environment(**variables: str | None) -> None:
    """An option overrides its variable, which the worker's process reads."""
    os.environ.update({name: value for name, value in variables.items() if value is not None})


def open_local_service(host: str, port: int) -> LocalService:
    """Return a service for this process to run, after the weights are fetched.

    From then on, SIGTERM and SIGINT raise KeyboardInterrupt.
    """
    config = read_settings(Settings)
    _ensure_weights()
    # SIGINT too, because a shell starts background jobs of a script with SIGINT ignored.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    return LocalService(config, host, port)


def _supervise(service: LocalService) -> None:
    """Restart dead processes until Ctrl-C; while the disk is full, wait for room."""
    had_room = True
    try:
        while True:
            has_room = service.has_room()
            if has_room:
                service.restart_if_dead()
            if has_room != had_room:
                text = "There is room again." if has_room else DISK_FULL
                click.echo(text, err=True)
            had_room = has_room
            time.sleep(0.2 if has_room else ROOM_POLL_SECONDS)
    except KeyboardInterrupt:
        pass


def _ensure_weights() -> None:
    """Fetch the weights in a child process, so that this process never loads torch."""
    ran = subprocess.run([sys.executable, "-m", "cli", "weights", "fetch"], check=False)
    if ran.returncode:
        sys.exit(ran.returncode)


@click.command()
def api() -> None:
    """Run one API process against IMPASTO_REDIS_URL."""
    os.execv(sys.executable, [sys.executable, "-m", "api"])  # noqa: S606 - our own program


@click.command()
@devices_option
@click.option(
    "--label",
    "labels",
    metavar="NAME[=VALUE]",
    multiple=True,
    help="A pool whose jobs it takes, too; may be repeated.",
)
@click.option("--dedicated", is_flag=True, help="It takes the jobs of these pools only.")
def worker(devices: str | None, labels: tuple[str, ...], *, dedicated: bool) -> None:
    """Run one worker against IMPASTO_REDIS_URL, or one per device."""
    _set_environment(
        IMPASTO_WORKER_DEVICES=devices,
        IMPASTO_WORKER_LABELS=",".join(labels) or None,
        IMPASTO_WORKER_DEDICATED="true" if dedicated else None,
    )
    os.execv(sys.executable, [sys.executable, "-m", "worker"])  # noqa: S606 - our own program


@click.command()
def webhooks() -> None:
    """Run one webhook dispatcher against IMPASTO_REDIS_URL."""
    os.execv(sys.executable, [sys.executable, "-m", "worker.webhooks"])  # noqa: S606 - our own program


@click.command()
@click.option(
    "--owner",
    default=LOCAL_OWNER,
    show_default=True,
    help="Owner of the jobs; without API keys there is only one.",
)
def webhook_secret(owner: str) -> None:
    """Print the secret that verifies the webhooks of one owner."""
    click.echo(read_settings(Settings).webhook_signer.owner_secret(owner))
