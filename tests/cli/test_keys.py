"""`impasto keys` as processes, and a client that sends one."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli.keys import store_file
from cli.local_service import _write_private
from core.auth.api_keys import ApiKeyStore

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def command(tmp_path: Path) -> Command:
    def run(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
        given = {**os.environ, "IMPASTO_DATA_DIR": str(tmp_path), **environment}
        return subprocess.run(
            [sys.executable, "-m", "cli", *args],
            env=given,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_a_key_is_made_listed_and_revoked(command: Command, valkey: Any) -> None:
    made = command("keys", "create", "Ada", "--priority", "high", IMPASTO_REDIS_URL=valkey.url)
    ring = ApiKeyStore(valkey.url)
    key = ring.find(made.stdout.strip())
    assert key is not None
    listed = command("keys", "list", IMPASTO_REDIS_URL=valkey.url).stdout
    revoked = command("keys", "revoke", key.id, IMPASTO_REDIS_URL=valkey.url)

    assert (key.name, key.priority) == ("Ada", "high")
    assert key.id in made.stderr
    assert f"{key.id}  high  made {key.created_at:%Y-%m-%d %H:%M} UTC  never used" in listed
    assert made.stdout.strip() not in listed + made.stderr
    assert revoked.returncode == 0
    assert ring.find(made.stdout.strip()) is None
    assert "revoked" in command("keys", "list", IMPASTO_REDIS_URL=valkey.url).stdout
    unknown = command("keys", "revoke", "key_x", IMPASTO_REDIS_URL=valkey.url)
    assert (
        unknown.returncode,
        unknown.stderr,
    ) == (2, "impasto: There is no key with this id; `impasto keys list` tells them.\n")
    ring.close()


def test_the_store_of_a_running_impasto_up_is_found_by_its_file(
    command: Command, valkey: Any, tmp_path: Path
) -> None:
    _write_private(store_file(tmp_path), valkey.url)

    assert command("keys", "create", "Ada").returncode == 0
    assert "Ada" in command("keys", "list").stdout
    assert stat.S_IMODE(store_file(tmp_path).stat().st_mode) == 0o600


def test_without_a_store_it_is_said_in_one_line(command: Command, tmp_path: Path) -> None:
    store_file(tmp_path).write_text("redis://127.0.0.1:1/0")
    ran = command("keys", "list")

    assert ran.returncode == 1
    assert ran.stderr.splitlines() == [
        "impasto: The job store does not answer; try again in a few seconds."
    ]


def test_a_secret_file_is_never_readable_by_others(tmp_path: Path) -> None:
    """Not even where a file with that name was before."""
    path = tmp_path / "a"
    path.touch(mode=0o644)
    _write_private(path, "x")

    assert (stat.S_IMODE(path.stat().st_mode), path.read_text()) == (0o600, "x")
