"""The parent speaks for its dead children."""

import pytest

from core import errors
from worker import names
from worker.mourner import Mourner
from worker.names import name_of


class Cemetery:
    """What the mourner needs of a store."""

    def __init__(self) -> None:
        self.buried: list[str] = []
        self.away = False

    def bury(self, worker: str) -> int:
        if self.away:
            raise errors.StoreUnavailable()
        self.buried.append(worker)
        return 1


def test_who_is_gone_is_buried_once_and_rung_for() -> None:
    store, rings, living = Cemetery(), [], {1, 2}
    mourner = Mourner(store, lambda: rings.append(1), lambda: living)  # type: ignore[arg-type]
    mourner.look()
    living -= {1}
    mourner.look()
    mourner.look()

    assert ([name_of(1)], [1]) == (store.buried, rings)


def test_a_cloned_machine_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same host name, and processes counted alike."""
    here = name_of(1)
    names._where.cache_clear()
    monkeypatch.setattr(names.Path, "read_text", lambda _: "another-boot")

    assert here != name_of(1)
    names._where.cache_clear()


def test_while_the_store_is_away_the_dead_wait() -> None:
    store, living = Cemetery(), {1}
    mourner = Mourner(store, lambda: None, lambda: living)  # type: ignore[arg-type]
    mourner.look()
    living -= {1}
    store.away = True
    with pytest.raises(errors.StoreUnavailable):
        mourner.look()
    store.away = False
    mourner.look()

    assert [name_of(1)] == store.buried
