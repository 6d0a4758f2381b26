"""Turns of callers at scarce slots."""

from collections.abc import Awaitable, Callable
from types import SimpleNamespace

import anyio
import pytest
from anyio import TASK_STATUS_IGNORED, Event, create_task_group, wait_all_tasks_blocked
from anyio.abc import TaskGroup, TaskStatus
from starlette.requests import ClientDisconnect
from starlette.types import Message

from api import fair_queue
from api.fair_queue import FairQueue, Pace, Waiter
from core import errors


class Crowd:
    """Requests, named by their caller and a number ("a1"), that hold a slot until they finish."""

    def __init__(self, queue: FairQueue, tasks: TaskGroup) -> None:
        self.order: list[str] = []  # in which they got a slot
        self.failed: dict[str, BaseException] = {}
        self._queue, self._tasks = queue, tasks
        self._done: dict[str, Event] = {}
        self._gone: dict[str, Event] = {}
        self._scopes: dict[str, anyio.CancelScope] = {}

    async def ask(self, *names: str) -> None:
        for name in names:
            self._done[name], self._gone[name] = Event(), Event()
            await self._tasks.start(self._run, name)
            await wait_all_tasks_blocked()

    async def _run(self, name: str, task_status: TaskStatus[None] = TASK_STATUS_IGNORED) -> None:
        async def receive() -> Message:
            await self._gone[name].wait()
            return {"type": "http.disconnect"}

        with anyio.CancelScope() as self._scopes[name]:
            task_status.started()
            try:
                async with self._queue.turn(Waiter(name[0], receive)):
                    self.order.append(name)
                    await self._done[name].wait()
            except Exception as error:
                self.failed[name] = error

    async def finish(self, *names: str) -> None:
        for name in names:
            assert name in self.order
            self._done[name].set()
            await wait_all_tasks_blocked()

    async def finish_all(self) -> None:
        """Finish each request as soon as it has its slot."""
        for name in self.order:  # grows meanwhile
            await self.finish(name)

    def cancel(self, name: str) -> None:
        self._scopes[name].cancel()

    async def disconnect(self, name: str) -> None:
        self._gone[name].set()
        await wait_all_tasks_blocked()


Play = Callable[[Crowd], Awaitable[None]]


def play(queue: FairQueue, scene: Play) -> Crowd:
    async def run() -> Crowd:
        async with create_task_group() as tasks:
            crowd = Crowd(queue, tasks)
            await scene(crowd)
        return crowd

    return anyio.run(run)


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_the_next_free_slot_goes_to_the_caller_without_one(slots: int) -> None:
    async def scene(crowd: Crowd) -> None:
        await crowd.ask(*(f"a{number}" for number in range(9)))
        assert len(crowd.order) == slots
        await crowd.ask("b0")
        await crowd.finish("a0")
        assert crowd.order[slots:] == ["b0"]
        await crowd.finish_all()

    assert len(play(FairQueue("pictures", slots), scene).order) == 10


def test_a_caller_without_a_slot_goes_before_one_that_came_earlier_and_has_one() -> None:
    async def scene(crowd: Crowd) -> None:
        await crowd.ask("a0", "c0", "a1", "b0")
        await crowd.finish("c0")
        await crowd.finish_all()

    assert play(FairQueue("pictures", 2), scene).order == ["a0", "c0", "b0", "a1"]


def test_callers_alternate_and_each_ones_requests_keep_their_order() -> None:
    async def scene(crowd: Crowd) -> None:
        await crowd.ask("a0", "a1", "a2", "a3", "b0", "b1", "c0", "b2")
        await crowd.finish_all()

    order = play(FairQueue("pictures", 1), scene).order
    assert order == ["a0", "b0", "c0", "a1", "b1", "a2", "b2", "a3"]


def test_a_waiting_caller_is_passed_by_no_later_one() -> None:
    """Even if ever new callers come, none of whom has had a slot."""

    async def scene(crowd: Crowd) -> None:
        await crowd.ask("a0", "a1", "b0", "c0")
        await crowd.finish("a0")  # from now on, a1 waits without a slot
        await crowd.ask("d0", "e0")
        await crowd.finish("b0")
        await crowd.ask("f0", "b1")
        await crowd.finish_all()

    order = play(FairQueue("pictures", 1), scene).order
    assert order == ["a0", "b0", "c0", "a1", "d0", "e0", "f0", "b1"]


def test_slots_are_not_left_free_for_others() -> None:
    async def scene(crowd: Crowd) -> None:
        await crowd.ask("a0", "a1", "a2")
        assert crowd.order == ["a0", "a1", "a2"]
        await crowd.finish_all()

    play(FairQueue("pictures", 3), scene)


def test_a_caller_may_have_fewer_slots_than_there_are() -> None:
    async def scene(crowd: Crowd) -> None:
        await crowd.ask("a0", "a1", "b0")
        assert crowd.order == ["a0", "b0"]
        await crowd.finish_all()

    assert play(FairQueue("estimates", 3, slots_per_caller=1), scene).order == ["a0", "b0", "a1"]


def test_the_waiting_room_is_bounded_per_caller_and_in_all() -> None:
    async def scene(crowd: Crowd) -> None:
        await crowd.ask("a0", "a1", "a2", "a3", "b0", "c0", "d0")
        assert sorted(crowd.failed) == ["a3", "d0"]
        await crowd.finish_all()

    queue = FairQueue("pictures", 1, max_waiting=4, max_waiting_per_caller=2)
    failed = play(queue, scene).failed
    own, all_ = failed["a3"], failed["d0"]
    assert isinstance(own, errors.RetryLater)
    assert not isinstance(own, errors.Unavailable)
    assert isinstance(all_, errors.Unavailable)
    assert "your pictures" in own.message
    assert "pictures" in all_.message
    assert own.retry_seconds >= 1
    assert all_.retry_seconds >= 1


def test_a_request_that_waits_too_long_is_refused_and_leaves_its_place() -> None:
    async def scene(crowd: Crowd) -> None:
        await crowd.ask("a0", "b0", "a1")
        assert sorted(crowd.failed) == ["a1", "b0"]
        await crowd.finish("a0")
        await crowd.ask("c0")
        await crowd.finish_all()

    crowd = play(FairQueue("pictures", 1, wait_seconds=0), scene)
    assert crowd.order == ["a0", "c0"]
    assert isinstance(crowd.failed["b0"], errors.Unavailable)


async def _cancel(crowd: Crowd, name: str) -> None:
    crowd.cancel(name)
    await wait_all_tasks_blocked()


@pytest.mark.parametrize("leave", [_cancel, Crowd.disconnect])
def test_a_request_that_ends_leaves_its_place(
    leave: Callable[[Crowd, str], Awaitable[None]],
) -> None:
    async def scene(crowd: Crowd) -> None:
        await crowd.ask("a0", "b0", "c0", "b1")
        await leave(crowd, "b0")
        await leave(crowd, "c0")
        await crowd.ask("c1")  # one may wait, and c0 waits no longer
        await crowd.finish_all()

    queue = FairQueue("pictures", 1, max_waiting=3, max_waiting_per_caller=2)
    crowd = play(queue, scene)
    assert crowd.order == ["a0", "b1", "c1"]
    assert {type(error) for error in crowd.failed.values()} <= {ClientDisconnect}


@pytest.mark.parametrize("ends_by", ["cancel", "disconnect"])
def test_a_slot_that_comes_as_its_request_ends_goes_to_the_next(ends_by: str) -> None:
    async def scene(crowd: Crowd) -> None:
        await crowd.ask("a0", "b0", "c0")
        crowd._done["a0"].set()  # a0 ends at the next step of the loop, and so does b0
        if ends_by == "cancel":
            crowd.cancel("b0")
        else:
            crowd._gone["b0"].set()
        await wait_all_tasks_blocked()
        await crowd.finish_all()
        await crowd.ask("d0", "e0")
        await crowd.finish_all()

    order = play(FairQueue("pictures", 1), scene).order
    assert [name for name in order if name != "b0"] == ["a0", "c0", "d0", "e0"]


def test_a_slot_is_free_again_after_an_error() -> None:
    queue = FairQueue("pictures", 1)

    async def scene(crowd: Crowd) -> None:
        with pytest.raises(errors.BadImage):
            async with queue.turn(Waiter("a", anyio.sleep_forever)):  # type: ignore[arg-type]
                raise errors.BadImage
        await crowd.ask("b0")
        await crowd.finish_all()

    assert play(queue, scene).order == ["b0"]


def test_a_request_whose_turn_is_not_expected_in_time_is_refused_at_once() -> None:
    async def scene(crowd: Crowd) -> None:
        await crowd.ask("a0", "a1", "a2", "b0")  # each waits for the turns before its own
        assert crowd.failed == {}
        await crowd.ask("a3", "b1")
        assert sorted(crowd.failed) == ["a3", "b1"]
        await crowd.ask("c0")  # its turn comes before the second ones of the others
        await crowd.finish_all()

    queue = FairQueue("pictures", 1, wait_seconds=25)
    queue._pace.interval_seconds = 10.0
    crowd = play(queue, scene)
    assert sorted(crowd.order) == ["a0", "a1", "a2", "b0", "c0"]
    assert all(isinstance(error, errors.Unavailable) for error in crowd.failed.values())


def test_the_pace_is_measured_while_all_slots_have_work(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(fair_queue, "time", SimpleNamespace(monotonic=lambda: now))
    queue = FairQueue("pictures", 2)
    pace = Pace(queue, 0.05)
    for is_busy, seconds, ended in [(True, 10, 5), (False, 1000, 9), (True, 10, 5)]:
        pace.note(is_busy=is_busy)
        now += seconds
        queue.ended += ended
    pace.note(is_busy=True)

    expected = 0.05  # twice 2 s for a picture; the idle time does not count
    for _ in range(2):
        expected += fair_queue._SMOOTHING * (2.0 - expected)
    assert pace.interval_seconds == pytest.approx(expected)


def test_the_pace_of_a_bad_moment_is_forgotten_while_all_slots_have_work_for_moments_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(fair_queue, "time", SimpleNamespace(monotonic=lambda: now))
    queue = FairQueue("pictures", 2)
    pace = Pace(queue, 5.0)
    for _ in range(200):  # 0.1 s with work for all slots, 0.1 s without, and so on
        pace.note(is_busy=True)
        now += 0.1
        queue.ended += 2
        pace.note(is_busy=False)
        now += 0.1
    assert pace.interval_seconds == pytest.approx(0.05, rel=0.01)


def test_a_queue_measures_its_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(fair_queue, "time", SimpleNamespace(monotonic=lambda: now))

    async def scene(crowd: Crowd) -> None:
        nonlocal now
        await crowd.ask(*(f"a{number}" for number in range(20)))
        for number in range(20):
            now += 5
            await crowd.finish(f"a{number}")

    queue = FairQueue("pictures", 1)
    play(queue, scene)
    assert queue._pace.interval_seconds == pytest.approx(5, rel=0.1)


def test_idle_time_does_not_count_for_the_pace_of_a_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(fair_queue, "time", SimpleNamespace(monotonic=lambda: now))

    async def scene(crowd: Crowd) -> None:
        nonlocal now
        for number in range(20):
            await crowd.ask(f"a{number}")
            now += 5
            await crowd.finish(f"a{number}")
            now += 1000

    queue = FairQueue("pictures", 1)
    play(queue, scene)
    assert queue._pace.interval_seconds == pytest.approx(5, rel=0.1)


@pytest.mark.parametrize("refuses_early", [True, False])
def test_in_a_crowd_a_request_is_refused_at_once_if_others_may_come_before_it(
    refuses_early: bool,
) -> None:
    """Each other caller may still send as many requests, whose turns come first."""

    async def scene(crowd: Crowd) -> None:
        await crowd.ask("x0", *(f"{caller}0" for caller in "abcdefg"), "a1")
        assert sorted(crowd.failed) == ["a1"] * refuses_early
        await crowd.finish_all()

    queue = FairQueue("pictures", 1, wait_seconds=130, refuses_early=refuses_early)
    queue._pace.interval_seconds = 10.0
    assert len(play(queue, scene).order) == 9 - refuses_early
