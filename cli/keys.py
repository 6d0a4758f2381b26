"""`impasto keys`: creates, lists and revokes API keys, for the operator of the service.

It uses the service's store, not its API.
"""

import getpass
import os
import socket
from datetime import datetime

import click

from cli.store_location import find_store_url, is_store_named
from core import errors
from core.auth.api_keys import ApiKeyStore
from core.config import Settings, read_settings
from core.jobs import audit
from core.jobs.audit import Actor
from core.jobs.models import Priority


@click.group()
def keys() -> None:
    """Manage the API keys of the running `impasto up`, or of the service at IMPASTO_REDIS_URL."""


@keys.command()
@click.argument("name")
@click.option(
    "--priority",
    type=click.Choice([priority.value for priority in Priority]),
    default="normal",
    show_default=True,
    help="The highest priority that its jobs may have.",
)
@click.option("--admin", is_flag=True, help="It may also operate the service: /operator.")
@click.option("--pool", metavar="LABEL", help="Only workers with this label run its jobs.")
def create(name: str, priority: str, *, admin: bool, pool: str | None) -> None:
    """Create a key. It is printed on standard output, only this once."""
    key, secret = _open_store().create(name, Priority(priority), admin=admin, pool=pool)
    click.echo(secret)
    click.echo(f"This is the key of {name} ({key.id}); it is not shown again.", err=True)


@keys.command("list")
def list_keys() -> None:
    """List every key: id, highest priority, creation, last use (UTC), name."""
    all_keys = _open_store().list()
    if not all_keys:
        click.echo("There are no keys; `impasto keys create NAME` makes one.", err=True)
    for key in all_keys:
        used = f"used {_format_time(key.last_used_at)}" if key.last_used_at else "never used"
        notes = f"  pool {key.pool}" if key.pool else ""
        notes += ("  admin" if key.admin else "") + ("  revoked" if key.revoked else "")
        click.echo(
            f"{key.id}  {key.priority}  created {_format_time(key.created_at)}  "
            f"{used}  {key.name}{notes}"
        )


def _format_time(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M} UTC"


@keys.command()
@click.argument("key_id", metavar="ID")
def revoke(key_id: str) -> None:
    """Refuse a key from now on. Its jobs are not affected."""
    _open_store().revoke(key_id)
    click.echo(f"{key_id} is revoked.")


def _open_store() -> ApiKeyStore:
    audit.actor.set(Actor(f"terminal:{_find_user()}", socket.gethostname(), is_operator=True))
    config = read_settings(Settings)
    store = ApiKeyStore(find_store_url(config))
    if not is_store_named(config):
        try:
            store.list()
        except errors.StoreUnavailable:
            raise errors.StoreUnavailable(
                "`impasto up` does not run here; start it, or set IMPASTO_REDIS_URL."
            ) from None
    return store


def _find_user() -> str:
    """Return the name of the user at this terminal; a container may know only the number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
