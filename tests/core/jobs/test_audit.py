"""The audit log: who has changed what. Entries are only ever appended, with the change itself."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import pytest
import redis

from core import errors
from core.auth.api_keys import ApiKeyStore
from core.jobs import audit
from core.jobs import store as store_module
from core.jobs.audit import Actor, AuditFilter
from core.jobs.models import (
    QueueLimits,
    SubmissionOptions,
    new_batch_id,
)
from core.jobs.store import JobStore
from core.redis_client import PREFIX


@pytest.fixture
def act() -> Iterator[Any]:
    """Return a function that names the actor of what follows in the test."""
    tokens = []

    def name(*fields: Any) -> None:
        tokens.append(audit.actor.set(Actor(*fields)))

    yield name
    for token in reversed(tokens):
        audit.actor.reset(token)


def _read(store: JobStore, **filters: Any) -> list[tuple[str, str, str]]:
    entries, _ = store.audit.read(100, accept=AuditFilter(**filters))
    return [(entry.action, entry.target, entry.outcome) for entry in reversed(entries)]


def test_each_change_of_a_caller_is_an_entry_with_its_outcome(
    driver: Any, store: JobStore, act: Any
) -> None:
    before = driver.submit()  # nobody acts: a worker or the reaper
    act("key_a", "192.0.2.1", False, "r1")
    job = driver.submit(owner="key_a")
    with pytest.raises(errors.QuotaExceeded):
        driver.submit(owner="key_a", limits=QueueLimits(per_owner=1))
    store.set_pinned(job.id, "key_a")
    store.update_spec(job.id, lambda old: old.with_updates({"style_weight": 3.0}), "key_a")
    store.cancel(job.id, "key_a")
    with pytest.raises(errors.JobNotFound):
        store.cancel(before.id, "key_a")
    store.delete(job.id, "key_a")
    store.delete(job.id, "key_a")
    entries, cursor = store.audit.read(100)

    refused = entries[-2].target
    assert refused not in (job.id, before.id)
    assert _read(store) == [
        ("job.create", job.id, "created"),
        ("job.create", refused, "quota"),
        ("job.pin", job.id, "ok"),
        ("job.update", job.id, "ok"),
        ("job.cancel", job.id, "ok"),
        ("job.cancel", before.id, "not_found"),
        ("job.delete", job.id, "ok"),
        ("job.delete", job.id, "not_found"),
    ]
    assert cursor is None
    assert {(entry.actor, entry.address, entry.request_id, entry.log) for entry in entries} == {
        ("key_a", "192.0.2.1", "r1", "callers")
    }


def test_a_replayed_submission_names_the_job_of_its_first_use(
    driver: Any, store: JobStore, act: Any
) -> None:
    act("key_a")
    first = driver.submit(idempotency_key="k")
    assert driver.submit(idempotency_key="k").id == first.id

    assert _read(store) == [("job.create", first.id, "created")] * 2


def test_a_batch_is_one_entry_and_each_cancel_another(
    driver: Any, store: JobStore, act: Any
) -> None:
    for digest in (driver.CONTENT, driver.STYLE):
        store.reserve(digest)
    act("key_a")
    inputs = [driver.INPUT] * 2
    batch_id = new_batch_id()
    batch = store.create_batch(batch_id, inputs, SubmissionOptions(), QueueLimits())
    store.cancel_batch(batch_id)

    assert _read(store)[0] == ("batch.create", batch_id, "created")
    assert store.audit.read(9, accept=AuditFilter(target=batch_id))[0][0].details == {"jobs": 2}
    assert _read(store, action="job.") == [
        ("job.cancel", job.id, "ok") for job in reversed(batch.jobs)
    ]


def test_operators_have_a_log_of_their_own(
    driver: Any, store: JobStore, valkey: Any, act: Any
) -> None:
    keys = ApiKeyStore(valkey.url)
    job = driver.submit()
    act("key_op", "", True)
    key, secret = keys.create("Ada", admin=True)
    store.operations.move_in_queue(job.id, "first")
    store.operations.pause_intake()
    store.operations.resume_intake()
    store.suspensions.suspend("gpu-1/cuda:0", "draining")
    store.suspensions.resume("gpu-1/cuda:0")
    store.cancel(job.id)
    keys.revoke(key.id)
    keys.close()
    entries, _ = store.audit.read(100, log="operator")

    assert [(entry.action, entry.target) for entry in reversed(entries)] == [
        ("key.create", key.id),
        ("job.move", job.id),
        ("intake.pause", ""),
        ("intake.resume", ""),
        ("worker.drain", "gpu-1/cuda:0"),
        ("worker.resume", "gpu-1/cuda:0"),
        ("job.cancel", job.id),
        ("key.revoke", key.id),
    ]
    assert store.audit.read(100, log="callers") == ([], None)
    assert entries[-1].details == {"name": "Ada", "priority": "normal", "admin": True}
    assert secret not in repr(entries)


def test_pages_return_each_entry_once_whatever_the_filter(
    driver: Any, store: JobStore, act: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "MAX_SCANNED", 4)
    for number in range(12):
        act(f"key_{number % 2}", "", number % 3 == 0)
        store.delete(f"job_{number}")

    def read_all(limit: int, accept: AuditFilter) -> list[str]:
        targets, before, calls = [], None, 0
        while calls == 0 or before is not None:
            page, before = store.audit.read(limit, before, accept)
            targets += [entry.target for entry in page]
            calls += 1
            assert calls < 30
        return sorted(targets)  # two logs have no order within a millisecond

    expected = sorted(f"job_{number}" for number in range(12))
    of_one = sorted(f"job_{number}" for number in range(0, 12, 2))
    for limit in (1, 3, 5, 12, 50):
        assert read_all(limit, AuditFilter()) == expected
        assert read_all(limit, AuditFilter(actor="key_0")) == of_one
        assert read_all(limit, AuditFilter(actor="nobody")) == []


def test_the_log_is_bounded_and_its_oldest_entries_go(
    store: JobStore, valkey: Any, act: Any
) -> None:
    fill = (
        "for i = 1, ARGV[1] do redis.call('XADD', KEYS[1], '*', 'entry', '{}', 'outcome', 'ok') end"
    )
    with redis.Redis(port=valkey.port) as client:
        client.eval(fill, 1, f"{PREFIX}audit:callers", audit.MAX_ENTRIES + 500)
        act("key_a")
        store.delete("job_x")
        length = client.xlen(f"{PREFIX}audit:callers")

    assert audit.MAX_ENTRIES <= length <= audit.MAX_ENTRIES + 200
    assert store.audit.read(1)[0][0].target == "job_x"


def test_the_lua_functions_bound_the_log_as_python_does() -> None:
    _, code = store_module.load_library()

    assert f"MAX_AUDITED = {audit.MAX_ENTRIES} " in code


def test_new_entries_are_followed(store: JobStore, act: Any) -> None:
    act("key_a")
    store.delete("job_1")
    after = store.audit.read(1)[0][0].id
    store.delete("job_2")
    store.operations.pause_intake()
    followed = [entry.target for entry in islice(store.audit.follow(after), 2)]
    store.operations.resume_intake()

    assert followed == ["job_2", ""]
