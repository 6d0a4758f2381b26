"""`impasto audit`: prints the audit log from the store of the service."""

import json
import socket
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from core.auth.api_keys import ApiKeyStore

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def impasto(run_command: Command, tmp_path: Path, valkey: Any) -> Command:
    variables = {"IMPASTO_DATA_DIR": str(tmp_path), "IMPASTO_REDIS_URL": valkey.url}
    return partial(run_command, **variables)


def test_keys_that_the_terminal_creates_and_revokes_are_in_the_log(
    impasto: Command, valkey: Any
) -> None:
    secret = impasto("keys", "create", "Ada").stdout.strip()
    keys = ApiKeyStore(valkey.url)
    (key,) = keys.list()
    keys.close()
    impasto("keys", "revoke", key.id)
    lines = impasto("audit", "--json").stdout.splitlines()
    shown = impasto("audit")
    created, revoked = map(json.loads, lines)

    assert [created["action"], revoked["action"]] == ["key.create", "key.revoke"]
    assert {created["target"], revoked["target"]} == {key.id}
    assert created["log"] == "operator"
    assert created["actor"].startswith("terminal:")
    assert created["address"] == socket.gethostname()
    assert created["details"]["name"] == "Ada"
    assert secret not in shown.stdout + str(lines)
    assert [line.split()[4] for line in shown.stdout.splitlines()] == ["key.create", "key.revoke"]
    assert impasto("audit", "--limit", "1", "--json").stdout.splitlines() == [lines[1]]
    assert impasto("audit", "--action", "key.c", "--json").stdout.splitlines() == [lines[0]]
    assert impasto("audit", "--log", "callers").stdout == ""
    assert impasto("audit", "--actor", "key_x").stdout == ""
