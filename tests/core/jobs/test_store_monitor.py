"""The checks of the store's settings, kind and identity, on real servers."""

import logging
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import redis

from cli.local_service import free_port
from core import errors
from core.jobs.store import JobStore
from core.jobs.store_report import StoreReport
from core.redis_client import PREFIX
from core.storage.files import SmallFile


@pytest.fixture
def restart(own_valkey: Any) -> Any:
    """Return a function that restarts the server with these options."""

    def run(**options: str) -> None:
        own_valkey.kill()
        own_valkey.options = {name.replace("_", "-"): value for name, value in options.items()}
        own_valkey.start()

    return run


def _configure(server: Any, name: str, value: str) -> None:
    with redis.Redis(port=server.port) as client:
        client.config_set(name, value)


def test_the_tests_own_server_is_safe(store: JobStore) -> None:
    assert store.monitor.check() == StoreReport()
    store.monitor.require_safe()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("appendonly", "no"),
        ("appendfsync", "everysec"),
        ("no-appendfsync-on-rewrite", "yes"),
        ("maxmemory-policy", "allkeys-lru"),
    ],
)
def test_a_store_with_a_wrong_setting_accepts_no_job(
    own_valkey: Any, driver: Any, name: str, value: str
) -> None:
    store = JobStore(own_valkey.url)
    own = driver.on(store)
    job = own.create()
    _configure(own_valkey, name, value)
    store.monitor.invalidate()

    with pytest.raises(errors.StoreUnsafe, match=f"{name} is {value}"):
        own.create()
    with pytest.raises(errors.StoreUnsafe, match=name):
        store.create_batch("batch_a", [own.INPUT], own.OPTIONS, own.LIMITS)
    assert store.get_load().queued == 1
    assert own.claim().id == job.id, "what is accepted already can run"
    tolerant = driver.on(JobStore(own_valkey.url, accepts_unsafe=True))
    assert tolerant.create().id


def test_a_setting_that_changes_while_the_service_runs_is_noticed(
    own_valkey: Any, driver: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("core.jobs.store_monitor.time.monotonic", lambda: now)
    own = driver.on(JobStore(own_valkey.url))
    own.create()
    _configure(own_valkey, "appendfsync", "no")
    now += 1.1

    with pytest.raises(errors.StoreUnsafe):
        own.create()


def test_a_store_that_comes_back_with_other_settings_accepts_no_job(
    own_valkey: Any, driver: Any, restart: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where the reconnection happens inside the call that creates the job."""
    monkeypatch.setattr("core.jobs.store_monitor.time.monotonic", lambda: 1000.0)
    store = JobStore(own_valkey.url)
    own = driver.on(store)
    own.create()
    call = store._call

    def restart_and_call(name: str, *args: Any, **options: Any) -> Any:
        if name == "create":
            restart(appendfsync="everysec")
        return call(name, *args, **options)

    monkeypatch.setattr(store, "_call", restart_and_call)
    with pytest.raises(errors.StoreUnsafe, match="appendfsync"):
        own.create()


def test_what_a_managed_server_does_not_show_is_reported(own_valkey: Any, driver: Any) -> None:
    with redis.Redis(port=own_valkey.port) as client:
        client.execute_command("ACL SETUSER noconfig on >p ~* &* +@all -config")
        client.execute_command("ACL SETUSER blind on >p ~* &* +@all -config -info")
    reports = {
        user: JobStore(own_valkey.url.replace("//", f"//{user}:p@")).monitor.check()
        for user in ("noconfig", "blind")
    }
    assert reports["noconfig"].unchecked == ["appendfsync", "no-appendfsync-on-rewrite"]
    assert len(reports["blind"].unchecked) == 4
    driver.on(JobStore(own_valkey.url.replace("//", "//blind:p@"))).create()
    _configure(own_valkey, "appendonly", "no")
    report = JobStore(own_valkey.url.replace("//", "//noconfig:p@")).monitor.check()
    assert report.problems == ["appendonly is no and must be yes"]


def test_a_cluster_is_refused_by_name(restart: Any, own_valkey: Any, driver: Any) -> None:
    restart(cluster_enabled="yes", cluster_port=str(free_port()))
    store = JobStore(own_valkey.url, accepts_unsafe=True)

    with pytest.raises(errors.BadSettings, match=r"IMPASTO_REDIS_URL: .* Redis Cluster"):
        store.monitor.require_usable()
    with pytest.raises(errors.StoreUnsafe, match="Redis Cluster"):
        store.monitor.require_safe()
    with pytest.raises(errors.StoreUnavailable):
        store.get_load()


def test_a_database_that_the_server_lacks_is_named(own_valkey: Any) -> None:
    store = JobStore(own_valkey.url.removesuffix("/0") + "/99", accepts_unsafe=True)

    with pytest.raises(errors.BadSettings, match="IMPASTO_REDIS_URL: The server has no database"):
        store.monitor.require_usable()
    with pytest.raises(errors.StoreUnsafe, match="no database"):
        store.monitor.require_safe()
    with pytest.raises(errors.StoreUnavailable, match="no database"):
        store.get_load()


@pytest.fixture
def busy_valkey(own_valkey: Any, until: Any) -> Iterator[Any]:
    """A server that runs a script which does not end."""

    def is_busy() -> bool:
        try:
            return not client.ping()
        except redis.ResponseError as error:
            return str(error).startswith("BUSY")

    def run_script() -> None:
        with redis.Redis(port=own_valkey.port) as other, suppress(redis.RedisError):
            other.eval("while true do end", 0)

    _configure(own_valkey, "busy-reply-threshold", "1")
    script = threading.Thread(target=run_script)
    with redis.Redis(port=own_valkey.port) as client:
        script.start()
        until(is_busy, "the server is busy")
        yield own_valkey
        client.script_kill()
    script.join()


def test_a_busy_store_is_unavailable_and_no_setting_counts_as_hidden(
    busy_valkey: Any, tmp_path: Path
) -> None:
    store = JobStore(busy_valkey.url, identity_file=SmallFile(tmp_path / "store.identity"))

    for check in (store.monitor.check, store.monitor.require_safe, store.check_writable):
        with pytest.raises(errors.StoreUnavailable, match="busy with a script"):
            check()
    assert not (tmp_path / "store.identity").exists()


def test_a_store_that_lacks_replicas_is_unavailable(own_valkey: Any, driver: Any) -> None:
    store = JobStore(own_valkey.url)
    _configure(own_valkey, "min-replicas-to-write", "1")

    with pytest.raises(errors.StoreUnavailable, match="Too few of its replicas"):
        store.check_writable()
    with pytest.raises(errors.StoreUnavailable, match="Too few of its replicas"):
        driver.on(store).create()


def test_an_unavailable_store_does_not_end_a_process_at_its_start(
    caplog: pytest.LogCaptureFixture,
) -> None:
    JobStore("redis://127.0.0.1:1/0").monitor.require_usable()

    assert "does not answer" in caplog.text


# ---------------------------------------------------------------------- identity


def test_the_pictures_remember_their_store(own_valkey: Any, tmp_path: Path) -> None:
    file = tmp_path / "blobs" / "store.identity"
    first, second = (JobStore(own_valkey.url, identity_file=SmallFile(file)) for _ in range(2))

    assert first.monitor.check().identity == "same"
    assert second.monitor.check().identity == "same"
    assert file.read_text().strip() == first.monitor.identity == second.monitor.identity
    own_valkey.kill()
    own_valkey.start()
    assert first.monitor.check().identity == "same"


@pytest.mark.parametrize(("state", "words"), [("missing", "is empty"), ("changed", "another")])
def test_a_store_that_comes_back_as_another_is_an_error(
    own_valkey: Any,
    driver: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    state: str,
    words: str,
) -> None:
    store = JobStore(own_valkey.url, identity_file=SmallFile(tmp_path / "store.identity"))
    assert store.monitor.check().may_delete_blobs
    with redis.Redis(port=own_valkey.port) as client:
        client.flushall()
        if state == "changed":
            client.set(f"{PREFIX}identity", "f" * 32)
    store.reserve(driver.STYLE, -1)  # a blob that this store calls unused

    report = store.monitor.check()

    assert (report.identity, report.may_delete_blobs) == (state, False)
    assert words in str(report.describe_identity())
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert words in record.message
    assert "store.identity" in record.message
    store.monitor.check()
    assert len([record for record in caplog.records if record.levelno == logging.ERROR]) == 1
    assert store.mark_deleting() == []
    (tmp_path / "store.identity").unlink()  # as the message says
    assert store.monitor.check().identity == "same"
    assert store.mark_deleting() == [driver.STYLE]


def test_nothing_is_deleted_if_the_identity_cannot_be_read(own_valkey: Any, tmp_path: Path) -> None:
    (tmp_path / "store.identity").mkdir()
    report = JobStore(
        own_valkey.url, identity_file=SmallFile(tmp_path / "store.identity")
    ).monitor.check()

    assert (report.identity, report.may_delete_blobs) == ("unknown", False)
