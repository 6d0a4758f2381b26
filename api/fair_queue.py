"""A waiting room for work that only a few requests may do at once, with fair turns among callers.

When a slot becomes free, the caller with the fewest slots is next; among equals, the one that has
been without a slot for longest. So one caller's many heavy pictures delay another's small one by at
most one of them. No caller waits forever: while it has no slot, each other passes it at most once.

The turns hold within one API process. Knows no pictures and no routes.
"""

import time
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from anyio import CancelScope, Event, create_task_group, move_on_after
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from api import metrics
from core import errors

WAIT_SECONDS = 30.0
MAX_WAITING = 512
MAX_WAITING_PER_CALLER = 64
MEASURE_SECONDS = 0.25
_FIRST_INTERVAL_SECONDS = 0.01  # before anything has been measured
_SMOOTHING = 0.3  # weight of the newest measurement
# The part of the longest wait that a request may be expected to need in a queue that refuses early.
_EARLY_SHARE = 0.7


@dataclass(frozen=True)
class Waiter:
    """Who waits: the caller whose turns a request takes, and the request's connection."""

    caller: str
    receive: Receive

    async def wait_until_disconnected(self) -> None:
        """Return when the client has closed the connection. The request's body must be read."""
        while (await self.receive())["type"] != "http.disconnect":
            pass


class FairQueue:
    """Slots that callers hold in fair turns. For one event loop.

    A request that waits occupies no thread. If it is canceled, or its client disconnects, it leaves
    its place. One whose turn is not expected in time is refused at once, which costs the least.
    """

    def __init__(
        self,
        things: str,
        slots: int,
        *,
        slots_per_caller: int | None = None,
        wait_seconds: float = WAIT_SECONDS,
        max_waiting: int = MAX_WAITING,
        max_waiting_per_caller: int = MAX_WAITING_PER_CALLER,
        refuses_early: bool = False,
    ) -> None:
        """things: what waits, for messages. slots_per_caller: None for all.

        refuses_early: expect that each other caller sends as many requests, and a slower pace. For
        crowds: a request that is refused after its wait costs much and serves nobody.
        """
        self._things, self.slots = things, slots
        self.ended = 0  # turns so far, also those that were not needed
        self._free, self._slots_per_caller = slots, slots_per_caller or slots
        self.wait_seconds = wait_seconds
        self._max_waiting, self._max_waiting_per_caller = max_waiting, max_waiting_per_caller
        self._refuses_early = refuses_early
        self._running: Counter[str] = Counter()
        # By caller; the one that has been without a slot for longest comes first.
        self._waiting: dict[str, deque[Event]] = {}
        self._pace = Pace(self, _FIRST_INTERVAL_SECONDS)

    @asynccontextmanager
    async def turn(self, waiter: Waiter) -> AsyncIterator[None]:
        """Wait until it is the caller's turn, and hold a slot inside the context.

        Raises RetryLater if too many requests of the caller wait, Unavailable if too many do in all
        or the turn does not come in time, and ClientDisconnect.
        """
        began = time.monotonic()
        try:
            await self._wait_for_turn(waiter)
        finally:
            metrics.record_slot_wait(self._things, time.monotonic() - began)
        try:
            yield
        finally:
            self._end_turn(waiter.caller)

    def skip_turn(self) -> None:
        """Count a turn that is not needed, because its work is known to be done."""
        self.ended += 1

    @property
    def is_crowded(self) -> bool:
        """Whether requests wait."""
        return bool(self._waiting)

    def find_refusal(self, caller: str) -> errors.RetryLater | None:
        """Return why a new request of the caller gets no place, or None."""
        if len(self._waiting.get(caller, ())) >= self._max_waiting_per_caller:
            return errors.RetryLater(
                f"Too many of your {self._things} are waiting; try again in a few seconds."
            )
        is_full = sum(map(len, self._waiting.values())) >= self._max_waiting
        share = _EARLY_SHARE if self._refuses_early else 1.0
        if is_full or self._expect_wait(caller) > self.wait_seconds * share:
            return self._too_many()
        return None

    async def _wait_for_turn(self, waiter: Waiter) -> None:
        turn = self._join(waiter.caller)
        self._start_next()
        if turn.is_set():
            return
        is_disconnected = False

        async def watch(waiting: CancelScope) -> None:
            nonlocal is_disconnected
            await waiter.wait_until_disconnected()
            is_disconnected = True
            waiting.cancel()

        try:
            with move_on_after(self.wait_seconds):
                async with create_task_group() as tasks:
                    tasks.start_soon(watch, tasks.cancel_scope)
                    await turn.wait()
                    tasks.cancel_scope.cancel()
        except BaseException:  # canceled
            self._leave(waiter.caller, turn)
            raise
        if turn.is_set() and not is_disconnected:
            return
        self._leave(waiter.caller, turn)
        raise ClientDisconnect if is_disconnected else self._too_many()

    def _join(self, caller: str) -> Event:
        """Enter the waiting room. Raises RetryLater, Unavailable."""
        refusal = self.find_refusal(caller)
        if refusal is not None:
            raise refusal
        turn = Event()
        self._waiting.setdefault(caller, deque()).append(turn)
        return turn

    def _expect_wait(self, caller: str) -> float:
        """Seconds until a new request of the caller gets its turn, as far as that is known."""
        self._pace.note(is_busy=not self._free)
        if self._free:
            return 0.0
        own = len(self._waiting.get(caller, ()))
        if self._refuses_early:
            others = len(self._waiting) - (1 if own else 0)
            ahead = own + (own + 1) * others
        else:
            ahead = sum(min(len(turns), own + 1) for turns in self._waiting.values())
        return ahead * self._pace.interval_seconds

    def _too_many(self) -> errors.Unavailable:
        return errors.Unavailable(
            f"Too many {self._things} are waiting; try again in a few seconds."
        )

    def _start_next(self) -> None:
        """Give the free slots to those whose turn it is."""
        while self._free:
            callers = [
                caller for caller in self._waiting if self._running[caller] < self._slots_per_caller
            ]
            if not callers:
                break
            caller = min(callers, key=self._running.__getitem__)  # of equals, the first
            turn = self._waiting[caller][0]
            self._remove(caller, turn)
            self._free -= 1
            self._running[caller] += 1
            turn.set()
        self._pace.note(is_busy=not self._free)

    def _end_turn(self, caller: str) -> None:
        self._free += 1
        self.ended += 1
        self._running[caller] -= 1
        if not self._running[caller]:
            del self._running[caller]
        if caller in self._waiting:
            self._waiting[caller] = self._waiting.pop(caller)  # the last one from now on
        self._start_next()

    def _leave(self, caller: str, turn: Event) -> None:
        """Give the place up, or the slot, if it has come at the same moment."""
        if turn.is_set():
            self._end_turn(caller)
        else:
            self._remove(caller, turn)

    def _remove(self, caller: str, turn: Event) -> None:
        self._waiting[caller].remove(turn)
        if not self._waiting[caller]:
            del self._waiting[caller]


class Pace:
    """The seconds between two turns of a queue while there is work for all slots."""

    def __init__(self, queue: FairQueue, interval_seconds: float) -> None:
        """interval_seconds: until something has been measured."""
        self.interval_seconds = interval_seconds
        self._queue = queue
        self._is_busy, self._noted_at, self._noted_turns = False, 0.0, 0
        # Since the last measurement, while all slots had work. Such times are added up: where they
        # are short and few, the pace would otherwise remain that of a bad moment.
        self._busy_seconds, self._busy_turns = 0.0, 0

    def note(self, *, is_busy: bool) -> None:
        """Take note of the turns that have ended. is_busy: whether all slots have work from now.

        Turns that still run when such a time ends do not count, so after bursts of few turns the
        interval is too long, up to `slots` times, until there is more work.
        """
        now = time.monotonic()
        if self._is_busy:
            self._busy_seconds += now - self._noted_at
            self._busy_turns += self._queue.ended - self._noted_turns
        self._is_busy, self._noted_at, self._noted_turns = is_busy, now, self._queue.ended
        if self._busy_seconds >= MEASURE_SECONDS:
            newest = self._busy_seconds / max(1, self._busy_turns)
            self.interval_seconds += _SMOOTHING * (newest - self.interval_seconds)
            self._busy_seconds, self._busy_turns = 0.0, 0
