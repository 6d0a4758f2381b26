"""`impasto backup` and `impasto restore`. Killed in the middle, they are repeated."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis

from core import errors
from core.backup import store_dump
from core.config import Settings
from core.jobs.models import JobInput, new_job_id
from core.jobs.store import JobStore
from core.redis_client import PREFIX
from core.storage.files import SmallFile
from core.storage.location import open_storage
from core.style.spec import StyleSpec

JOBS, PADDING = 40, 3000
Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def source(valkey: Any, tmp_path: Path) -> dict[str, str]:
    """The settings of a service with jobs, each with two pictures of its own."""
    folder = tmp_path / "source"
    blobs = open_storage(Settings(data_dir=folder)).blobs
    store = JobStore(valkey.url)
    for number in range(JOBS):
        digests = [blobs.put(f"{kind} {number}".encode() * 99) for kind in ("photo", "painting")]
        for digest in digests:
            store.reserve(digest)
        spec = StyleSpec().model_dump()
        store.create(new_job_id(), JobInput(content=digests[0], styles=digests[1:], spec=spec))
    store.close()
    with redis.Redis(port=valkey.port) as client, client.pipeline() as pipe:
        for number in range(PADDING):  # so that a restore takes a while
            pipe.set(f"{PREFIX}padding:{number}", os.urandom(8000))
        pipe.execute()
    return {"IMPASTO_REDIS_URL": valkey.url, "IMPASTO_DATA_DIR": str(folder)}


@pytest.fixture
def target(own_valkey: Any, tmp_path: Path) -> dict[str, str]:
    """The settings of an empty host."""
    return {"IMPASTO_REDIS_URL": own_valkey.url, "IMPASTO_DATA_DIR": str(tmp_path / "target")}


def _kill_when(condition: Callable[[], object], words: list[str], settings: dict[str, str]) -> bool:
    """Run the command, kill it with -9 once the condition holds; False: it was quicker."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cli", *words], env={**os.environ, **settings}
    )
    deadline = time.monotonic() + 60
    while process.poll() is None and not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    process.kill()
    return process.wait() != 0


def _keys(url: str) -> dict[bytes, bytes]:
    with store_dump.connect(url) as client:
        return {
            key: client.get(key) if b"padding" in key else b""
            for key in client.scan_iter(f"{PREFIX}*", count=1000)
            if not key.startswith((*store_dump._VOLATILE, f"{PREFIX}identity".encode()))
        }


def test_kill_9_in_a_backup_and_in_a_restore_loses_nothing_and_accepts_no_half(
    source: dict[str, str],
    target: dict[str, str],
    run_command: Command,
    own_valkey: Any,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "backup"
    copies = folder / "blobs"
    for enough in (0, 20):  # in the copy of the store, and among the pictures

        def is_midway(enough: int = enough) -> bool:
            if not enough:
                return any(folder.glob("*.pending*"))
            return len([*copies.glob("??/*")]) >= enough

        assert _kill_when(is_midway, ["backup", str(folder)], source)
        refused = run_command("restore", folder, **target)
        assert (refused.returncode, "no complete backup" in str(refused.stderr)) == (2, True), (
            refused.stderr
        )
    begun = len([*copies.glob("??/*")])
    assert 20 <= begun < 2 * JOBS
    made = run_command("backup", folder, **source)
    assert made.returncode == 0
    assert f"{2 * JOBS - begun} pictures copied" in made.stdout, "the rest only"
    assert {path.suffix for path in folder.iterdir()} == {"", ".store", ".digests"}

    restored = tmp_path / "target" / "blobs"
    assert _kill_when(lambda: len([*restored.glob("??/*")]) >= 20, ["restore", str(folder)], target)
    with redis.Redis(port=own_valkey.port) as client:
        assert client.keys(f"{PREFIX}*") == [], "the pictures come first"
        assert _kill_when(
            lambda: client.exists(f"{PREFIX}padding:7"), ["restore", str(folder)], target
        )
        assert client.exists(f"{PREFIX}restoring")
        assert not client.exists(f"{PREFIX}queue")
    identity = SmallFile(restored / "store.identity")
    store = JobStore(own_valkey.url, identity_file=identity)
    with pytest.raises(errors.StoreUnsafe, match="impasto restore"):
        store.monitor.require_safe()
    assert store.claim("t", "worker") is None
    store.close()

    done = run_command("restore", folder, **target)
    assert done.returncode == 0, done.stderr
    assert _keys(own_valkey.url) == _keys(source["IMPASTO_REDIS_URL"])
    store = JobStore(own_valkey.url, identity_file=identity)
    store.monitor.require_safe()
    assert store.monitor.check().identity == "same"
    blobs = open_storage(Settings(data_dir=tmp_path / "target")).blobs
    for number in range(JOBS):
        job = store.claim(f"t{number}", "worker")
        assert job is not None
        assert blobs.get(job.input.content).startswith(b"photo ")
        assert blobs.get(job.input.styles[0]).startswith(b"painting ")
    store.close()


def test_the_commands_say_what_is_wrong(
    source: dict[str, str], target: dict[str, str], run_command: Command, tmp_path: Path
) -> None:
    folder = tmp_path / "backup"
    blobs = open_storage(Settings(data_dir=Path(source["IMPASTO_DATA_DIR"]))).blobs
    lost = next(blobs.digests())
    blobs.delete(lost)
    made = run_command("backup", folder, **source)
    assert (made.returncode, lost in made.stderr) == (1, True)
    assert folder.stat().st_mode & 0o77 == 0, "nobody else may read it"

    refused = run_command("restore", folder, "--at", "20200101T000000000000Z", **target)
    assert (refused.returncode, "There is no backup" in refused.stderr) == (2, True)
    not_empty = run_command("restore", folder, **source)
    assert (not_empty.returncode, "--force" in not_empty.stderr) == (2, True)
    unreachable = run_command(
        "backup", folder, **{**source, "IMPASTO_REDIS_URL": "redis://127.0.0.1:1/0"}
    )
    assert (unreachable.returncode, "refuses the connection" in unreachable.stderr) == (1, True)
    (copy,) = folder.glob("*.store")
    copy.write_bytes(copy.read_bytes()[:-1])
    torn = run_command("restore", folder, **target)
    assert (torn.returncode, "is damaged" in torn.stderr) == (2, True)
    assert _keys(target["IMPASTO_REDIS_URL"]) == {}
