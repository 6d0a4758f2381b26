"""Simulated time and network: events, calls on their way to the store, and lost ones.

A call reaches the store after a delay, and its answer the caller after another one of at least
`window_ms`. So calls that arrive within `window_ms` of each other cannot depend on each other's
answers, and go to the server in one pipeline, each with its own time. Their order is that of their
times, so one seed gives one trace.
"""

import hashlib
import heapq
import itertools
import math
import random
from collections.abc import Callable
from typing import Any, TextIO

from job_model import Model
from scenario import LOST_SHARE, TIMEOUT_MS, Outcome, Request, Scenario
from store_server import EPOCH_MS, Reply, Wire, pack


class Network:
    """The clock, and the way to the store."""

    def __init__(self, scenario: Scenario, path: str, trace: TextIO | None) -> None:
        self._scenario, self._trace = scenario, trace
        self._rng = random.Random(scenario.seed)
        self._window_ms = scenario.window_ms
        self.now = EPOCH_MS
        self._events: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._requests: list[tuple[int, int, Request]] = []
        self._order = itertools.count()
        self._wire, self._hash = Wire(path), hashlib.blake2b(digest_size=16)
        self._outage_until = 0
        self._is_over = False
        self._model = Model()
        self.outcome = Outcome(scenario, self._model, [], [])

    def _run_events(self) -> None:
        """Let time pass until `_is_over`."""
        events, requests = self._events, self._requests
        while not self._is_over:
            limit = requests[0][0] + self._window_ms if requests else math.inf
            if events and events[0][0] < limit:
                self.now, _, run, args = heapq.heappop(events)
                run(*args)
            else:
                self._flush(limit)

    def _after(self, ms: float, run: Callable[..., None], *args: Any) -> None:
        heapq.heappush(self._events, (self.now + max(1, round(ms)), next(self._order), run, args))

    def _send(self, request: Request, after_ms: float = 0) -> None:
        at = self.now + max(1, round(after_ms)) + self._rng.randrange(self._window_ms)
        heapq.heappush(self._requests, (at, next(self._order), request))

    def _flush(self, limit: float) -> None:
        """Let the store answer what arrives before `limit`."""
        batch: list[tuple[int, Request]] = []
        while self._requests and self._requests[0][0] < limit:
            at, _, request = heapq.heappop(self._requests)
            if request.kind == "api":
                self._exchange(batch)
                batch = []
                self.now = at
                request.extra()
                return  # what it has changed comes before later calls
            if self._is_delivered(at, request):
                batch.append((at, request))
        self._exchange(batch)

    def _is_delivered(self, at: int, request: Request) -> bool:
        worker = request.worker
        is_cut = at < self._outage_until
        if worker is not None:
            if request.is_timer and (
                worker.epoch != request.epoch
                or (request.job is not None and worker.token != request.token)
            ):
                return False  # the run that would have sent it is over
            if request.is_timer and at < worker.frozen_until:
                heapq.heappush(
                    self._requests, (worker.frozen_until + 1, next(self._order), request)
                )
                return False
            is_cut = is_cut or worker.cut_from <= at < worker.cut_until
        if is_cut:
            self._lose(at, request)
        return not is_cut

    def _lose(self, at: int, request: Request) -> None:
        """The call or its answer is lost: the caller learns it by its timeout."""
        if request.lost is not None:
            heapq.heappush(
                self._events,
                (at + TIMEOUT_MS, next(self._order), self._run_if_alive, (request, request.lost)),
            )

    def _run_if_alive(self, request: Request, run: Callable[..., None], *args: Any) -> None:
        worker = request.worker
        if worker is not None:
            if worker.epoch != request.epoch:
                return
            if self.now < worker.frozen_until:
                self._after(worker.frozen_until - self.now, self._run_if_alive, request, run, *args)
                return
        run(request, *args)

    def _exchange(self, batch: list[tuple[int, Request]]) -> None:
        if not batch:
            return
        data, count = [], 0
        for at, request in batch:
            packed = request.packed
            data.append(packed % (b"%d" % at) if isinstance(packed, bytes) else packed(at))
            count += request.replies
        if self._scenario.measures_calls:
            replies = iter(self._measure(batch, data))
        else:
            replies = iter(self._wire.exchange(data, count))
        self.outcome.calls += len(batch)
        for at, request in batch:
            self.now = at
            for _ in range(request.replies):
                reply = next(replies)
            if request.kind != "heartbeat":
                self._record(request.kind, reply, request)
            request.replied(at, request, reply)

    def _measure(self, batch: list[tuple[int, Request]], data: list[bytes]) -> list[Reply]:
        replies = []
        for (_, request), packed in zip(batch, data, strict=True):
            self._wire.exchange([pack("CONFIG", "RESETSTAT")], 1)
            replies += self._wire.exchange([packed], request.replies)
            info = self._wire.info()
            rows = [value for name, value in info.items() if name.startswith("cmdstat_")]
            if request.kind != "heartbeat":  # a function contains the time of its commands
                rows = [info["cmdstat_fcall"]] if "cmdstat_fcall" in info else rows
            used = sum(float(row.partition("usec=")[2].partition(",")[0]) for row in rows)
            self.outcome.costs.append((request.kind, used))
        return replies

    def _record(self, kind: str, reply: Any, request: Request | None = None) -> None:
        name = request.worker.name.decode() if request and request.worker else "api"
        job = request.job.id.decode() if request and request.job else "-"
        line = f"{self.now - EPOCH_MS} {name} {kind} {job} {reply!r}\n"
        self._hash.update(line.encode())
        if self._trace:
            self._trace.write(line)

    def _answer(self, request: Request, run: Callable[..., None], *args: Any) -> None:
        """Bring an answer to the caller, unless it is lost on its way."""
        self._after(self._window_ms + self._rng.randrange(20), self._receive, request, run, args)

    def _receive(self, request: Request, run: Callable[..., None], args: tuple[Any, ...]) -> None:
        worker = request.worker
        is_cut = self.now < self._outage_until
        if worker is not None:
            is_cut = is_cut or worker.cut_from <= self.now < worker.cut_until
        if is_cut or (request.lost is not None and self._rng.random() < LOST_SHARE):
            self._lose(self.now, request)
        else:
            self._run_if_alive(request, run, *args)
