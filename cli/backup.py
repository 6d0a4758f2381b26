"""`impasto backup` and `impasto restore`: copy the store and the pictures, also to another host.

They use the service's store and storage, not its API.
"""

import sys
import time
from pathlib import Path

import click

from cli.store_location import find_store_url
from core import errors
from core.backup.archive import Archive, Transfer
from core.config import Settings, read_settings
from core.jobs.store import JobStore
from core.storage.location import open_storage

MAX_NAMED = 5  # missing pictures


@click.command()
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--keep",
    type=click.IntRange(min=1),
    default=7,
    show_default=True,
    help="How many backups to keep in the folder.",
)
def backup(folder: Path, keep: int) -> None:
    """Copy jobs, keys and pictures to FOLDER, while the service runs.

    Copies only the pictures that FOLDER does not have yet. Exits with 1 if pictures are missing.
    """
    config, start = read_settings(Settings), time.monotonic()
    url = find_store_url(config)
    store = JobStore(url)
    try:
        transfer = Archive(folder).backup(store, url, open_storage(config).blobs, keep)
    finally:
        store.close()
    click.echo(f"Backup {transfer.name}: {_describe(transfer, start)}.")
    _report_missing(transfer)


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--at", "name", help="The name of a backup; by default the newest.")
@click.option("--force", is_flag=True, help="Replace the jobs that the store has.")
def restore(folder: Path, name: str | None, *, force: bool) -> None:
    """Restore a backup of FOLDER to an empty store, and add its pictures.

    If it is interrupted, the service accepts no jobs until it is repeated.
    """
    config, start = read_settings(Settings), time.monotonic()
    url, archive = find_store_url(config), Archive(folder)
    names = archive.names()
    if not names:
        raise errors.BadBackup(f"There is no complete backup in {folder}.")
    store = JobStore(url)
    try:
        transfer = archive.restore(store, url, open_storage(config), name or names[-1], force=force)
    finally:
        store.close()
    click.echo(f"Restored {transfer.name}: {_describe(transfer, start)}.")
    _report_missing(transfer)


def _describe(transfer: Transfer, start: float) -> str:
    seconds = time.monotonic() - start
    return (
        f"{transfer.keys} keys, {transfer.blobs} pictures copied ({transfer.bytes / 1e6:.1f} MB), "
        f"{transfer.known_blobs} were there; {seconds:.1f} s"
    )


def _report_missing(transfer: Transfer) -> None:
    if not transfer.missing:
        return
    named = ", ".join(transfer.missing[:MAX_NAMED])
    click.echo(
        f"{len(transfer.missing)} pictures of jobs are missing or damaged; these jobs answer 410: "
        f"{named}{', ...' if len(transfer.missing) > MAX_NAMED else ''}",
        err=True,
    )
    sys.exit(1)
