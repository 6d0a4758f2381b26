"""`impasto keys`: API keys are created, listed and revoked in the store of the service."""

import stat
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest

from cli.local_service import _write_private
from cli.store_location import locate_store_file
from core.auth.api_keys import ApiKeyStore

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def impasto(run_command: Command, tmp_path: Path) -> Command:
    return partial(run_command, IMPASTO_DATA_DIR=str(tmp_path))


def test_list_says_that_there_are_no_keys(impasto: Command, valkey: Any) -> None:
    listed = impasto("keys", "list", IMPASTO_REDIS_URL=valkey.url)

    assert (listed.returncode, listed.stdout) == (0, "")
    assert "There are no keys; `impasto keys create NAME` makes one." in listed.stderr


def test_a_key_is_created_listed_and_revoked(impasto: Command, valkey: Any) -> None:
    created = impasto("keys", "create", "Ada", "--priority", "high", IMPASTO_REDIS_URL=valkey.url)
    keys = ApiKeyStore(valkey.url)
    key = keys.find(created.stdout.strip())
    assert key is not None
    listed = impasto("keys", "list", IMPASTO_REDIS_URL=valkey.url).stdout
    revoked = impasto("keys", "revoke", key.id, IMPASTO_REDIS_URL=valkey.url)

    assert (key.name, key.priority) == ("Ada", "high")
    assert key.id in created.stderr
    assert f"{key.id}  high  created {key.created_at:%Y-%m-%d %H:%M} UTC  never used" in listed
    assert created.stdout.strip() not in listed + created.stderr
    assert revoked.returncode == 0
    assert keys.find(created.stdout.strip()) is None
    assert "revoked" in impasto("keys", "list", IMPASTO_REDIS_URL=valkey.url).stdout
    unknown = impasto("keys", "revoke", "key_x", IMPASTO_REDIS_URL=valkey.url)
    assert (
        unknown.returncode,
        unknown.stderr,
    ) == (2, "impasto: There is no key with this id; `impasto keys list` shows all.\n")
    keys.close()


def test_a_key_for_an_operator_is_marked(impasto: Command, valkey: Any) -> None:
    environment = {"IMPASTO_REDIS_URL": valkey.url}
    admin, other = (
        impasto("keys", "create", name, *options, **environment).stdout.strip()
        for name, options in (("Grace", ["--admin"]), ("Ada", []))
    )
    lines = impasto("keys", "list", **environment).stdout.splitlines()
    keys = ApiKeyStore(valkey.url)
    found = keys.find(admin), keys.find(other)
    keys.close()

    assert [key is not None and key.admin for key in found] == [True, False]
    assert [line.endswith("  admin") for line in lines] == [True, False]


def test_the_store_of_a_running_impasto_up_is_found_by_its_file(
    impasto: Command, valkey: Any, tmp_path: Path
) -> None:
    _write_private(locate_store_file(tmp_path), valkey.url)

    assert impasto("keys", "create", "Ada").returncode == 0
    assert "Ada" in impasto("keys", "list").stdout
    assert stat.S_IMODE(locate_store_file(tmp_path).stat().st_mode) == 0o600


def test_the_file_of_another_user_is_reported_with_what_to_do(
    impasto: Command, valkey: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, **_: Any) -> NoReturn:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_text", refuse)
    ran = impasto("keys", "list")

    assert (ran.returncode, ran.stdout) == (2, "")
    assert "store.url cannot be read (Permission denied): run this as the user" in ran.stderr
    assert impasto("keys", "list", IMPASTO_REDIS_URL=valkey.url).returncode == 0


def test_without_a_store_the_command_says_what_to_start(
    impasto: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing names a store, and nothing listens at the default address."""
    monkeypatch.setattr("cli.keys.find_store_url", lambda _: "redis://127.0.0.1:1/0")
    ran = impasto("keys", "list")

    assert ran.returncode == 1
    assert ran.stderr.splitlines() == [
        "impasto: `impasto up` does not run here; start it, or set IMPASTO_REDIS_URL."
    ]


def test_an_unreachable_store_is_reported_in_one_line(impasto: Command, tmp_path: Path) -> None:
    locate_store_file(tmp_path).write_text("redis://127.0.0.1:1/0")
    ran = impasto("keys", "list")

    assert ran.returncode == 1
    assert ran.stderr.splitlines() == [
        "impasto: The job store does not answer. It refuses the connection: start it, or correct "
        "IMPASTO_REDIS_URL."
    ]


def test_a_secret_file_is_never_readable_by_others(tmp_path: Path) -> None:
    """Not even if a file of that name existed before."""
    path = tmp_path / "a"
    path.touch(mode=0o644)
    _write_private(path, "x")

    assert (stat.S_IMODE(path.stat().st_mode), path.read_text()) == (0o600, "x")
