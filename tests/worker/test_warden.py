"""Who is idle while jobs wait."""

import pytest

from core import errors
from core.jobs.models import JobInput, new_job_id
from core.jobs.store import JobStore
from core.style.spec import StyleSpec
from worker import warden
from worker.names import name_of
from worker.warden import Warden


class Office:
    """What the warden needs of a store."""

    def __init__(self) -> None:
        self.idle: set[int] = set()
        self.away = False

    def idles(self, worker: str) -> bool:
        if self.away:
            raise errors.StoreUnavailable()
        return worker in {name_of(pid) for pid in self.idle}


def test_who_idles_for_long_while_jobs_wait_is_rung_for_and_then_goes() -> None:
    store, rings = Office(), list[int]()
    watching = Warden(store, lambda: rings.append(1), lambda: [1])  # type: ignore[arg-type]
    store.idle = {1}
    for _ in range(int(warden.BEGIN_SECONDS)):
        watching.look(1)
    assert not rings, "it was only just there"
    for _ in range(int(warden.DEAF_SECONDS)):
        watching.look(1)
    assert ([1], False) == (rings, watching.is_deaf)
    watching.look(1)

    assert ([1], True) == (rings, watching.is_deaf)


@pytest.mark.parametrize("why", ["it takes a job", "another child has come"])
def test_who_works_now_and_then_stays(why: str) -> None:
    store, living = Office(), [1]
    watching = Warden(store, lambda: None, lambda: living)  # type: ignore[arg-type]
    for number in range(1, 400):
        store.idle = {living[0]} if number % 50 or why != "it takes a job" else set()
        if number % 150 == 0 and why != "it takes a job":
            living = [number]
        watching.look(1)
        assert not watching.is_deaf


def test_the_store_knows_who_idles(store: JobStore) -> None:
    wanted = JobInput(content="sha256:" + "a" * 64, styles=["sha256:" + "b" * 64], spec=StyleSpec().model_dump())
    for digest in wanted.digests():
        store.hold(digest)
    assert not store.idles("me"), "nothing waits"
    for _ in range(2):
        store.create(new_job_id(), wanted)
    assert store.idles("me")
    store.claim("t", "me")
    assert (False, True) == (store.idles("me"), store.idles("another"))
    store.claim("u", "another")
    assert not store.idles("me"), "nothing waits any more"
