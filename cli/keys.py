"""`impasto keys`: API keys, made and taken back by whoever runs the service. Asks its store, not its API."""

import os
from datetime import datetime
from pathlib import Path

import click

from core.auth.api_keys import ApiKeyStore
from core.config import Settings, read_settings
from core.jobs.models import Priority


@click.group()
def keys() -> None:
    """API keys, of the running `impasto up` or the service at IMPASTO_REDIS_URL."""


@keys.command()
@click.argument("name")
@click.option(
    "--priority",
    type=click.Choice([priority.value for priority in Priority]),
    default="normal",
    show_default=True,
    help="The highest that it may ask for.",
)
def create(name: str, priority: str) -> None:
    """Make a key. It is shown this once, on standard output; keep it."""
    ring = _opened()
    key, secret = ring.create(name, Priority(priority))
    click.echo(secret)
    click.echo(f"This is the key of {name} ({key.id}); it is not shown again.", err=True)


@keys.command("list")
def list_keys() -> None:
    """Every key: id, highest priority, when made, when last used (UTC), name."""
    for key in _opened().list():
        used = f"used {_shown(key.last_used_at)}" if key.last_used_at else "never used"
        revoked = "  revoked" if key.revoked else ""
        click.echo(
            f"{key.id}  {key.priority}  made {_shown(key.created_at)}  {used}  {key.name}{revoked}"
        )


def _shown(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"


@keys.command()
@click.argument("key_id", metavar="ID")
def revoke(key_id: str) -> None:
    """Refuse a key from now on. Its jobs stay as they are."""
    _opened().revoke(key_id)
    click.echo(f"{key_id} is revoked.")


def _opened() -> ApiKeyStore:
    config = read_settings(Settings)
    left = store_file(config.data_dir)
    if "IMPASTO_REDIS_URL" not in os.environ and left.exists():
        return ApiKeyStore(left.read_text(encoding="utf-8"))
    return ApiKeyStore(config.redis_url)


def store_file(data_dir: Path) -> Path:
    """Where `impasto up` leaves the address of its store while it runs, for its own user's eyes only."""
    return data_dir / "store.url"
