"""`impasto up`, `api`, `worker`, `webhooks`: the service on one machine, or one of its processes."""

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


@click.command()
@host_option
@port_option
def up(host: str, port: int) -> None:
    """Serve everything on this machine until Ctrl-C."""
    with open_local_service(host, port) as service:
        click.echo(f"Impasto serves at {service.url}   (API: {service.url}/docs, Ctrl-C ends it)")
        _sleep_until_told(service)
        click.echo("\nStopping; accepted jobs and results are kept.")


def open_local_service(host: str, port: int) -> LocalService:
    """A service for this process to run; fetches the weights first. SIGTERM and SIGINT raise KeyboardInterrupt."""
    config = read_settings(Settings)
    _ensure_weights()
    for ending in (
        signal.SIGTERM,
        signal.SIGINT,
    ):  # a script's background job is born deaf to SIGINT
        signal.signal(ending, signal.default_int_handler)
    return LocalService(config, host, port)


def _sleep_until_told(service: LocalService) -> None:
    try:
        while True:
            service.restart_if_dead()
            time.sleep(0.2)
    except KeyboardInterrupt:
        pass


def _ensure_weights() -> None:
    """In a process of its own: this one stays small, without torch."""
    ran = subprocess.run([sys.executable, "-m", "cli", "weights", "fetch"], check=False)
    if ran.returncode:
        sys.exit(ran.returncode)


@click.command()
def api() -> None:
    """One API process, against IMPASTO_REDIS_URL."""
    os.execv(sys.executable, [sys.executable, "-m", "api"])  # noqa: S606 - our own program


@click.command()
def worker() -> None:
    """One worker, against IMPASTO_REDIS_URL."""
    os.execv(sys.executable, [sys.executable, "-m", "worker"])  # noqa: S606 - our own program


@click.command()
def webhooks() -> None:
    """One courier, which sends webhooks, against IMPASTO_REDIS_URL."""
    os.execv(sys.executable, [sys.executable, "-m", "worker.webhooks"])  # noqa: S606 - our own program


@click.command()
@click.option(
    "--owner",
    default=LOCAL_OWNER,
    show_default=True,
    help="Whose webhooks; without keys all jobs are of one.",
)
def webhook_secret(owner: str) -> None:
    """The secret to verify an owner's webhooks with."""
    click.echo(read_settings(Settings).webhook_signer.owner_secret(owner))
