"""Reads and follows jobs for all requests of this process, on its event loop.

Requests that ask for jobs at the same time share one read. Subscribers need no connection and no
thread of their own: one Redis subscription of the process reports which jobs change. A slow poll
finds what that subscription misses, and how the queue advances. A subscriber sees the newest state,
not every state: nothing is buffered for a slow one.

This module does not depend on HTTP.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from itertools import islice
from typing import Any, TypeVar

from anyio import to_thread
from cachetools import LRUCache

from api import metrics
from api.schemas.job import job_resource
from core import errors
from core.jobs.async_reader import JobReader
from core.jobs.models import Job

POLL_SECONDS = 2.0
RETRY_SECONDS = 0.5
MAX_BATCH = 100  # jobs per read
MAX_CACHED = 1000  # jobs, some 10 kB each

T = TypeVar("T")

log = logging.getLogger(__name__)


class JobSnapshot:
    """One state of a job.

    A stream keeps it as long as the state lasts, so it holds nothing that can be made again.
    """

    __slots__ = ("job", "prepared")

    def __init__(self, job: Job) -> None:
        self.job = job
        self.prepared: dict[Any, Any] = {}  # what a route keeps for its next responses

    @property
    def tag(self) -> str:
        """The ETag. It is weak, because the seconds until the job starts change without it."""
        position = self.job.queue.position if self.job.queue else ""
        return f'W/"{self.job.version}-{position}"'

    def serialize(self) -> bytes:
        """Return the job as JSON, with links for the client of the current request."""
        return job_resource(self.job).model_dump_json().encode()


class JobFeed:
    """Coalesced reads and subscriptions. For one event loop; its tasks run until `stop`."""

    def __init__(self, redis_url: str, max_subscriptions: int) -> None:
        """max_subscriptions: per caller."""
        self._reader = JobReader(redis_url, metrics.record_store_call)
        self._max_subscriptions = max_subscriptions
        self._cached: LRUCache[str, JobSnapshot] = LRUCache(MAX_CACHED)
        self._requested: dict[str, _Futures] = {}
        self._topics: dict[str, _Topic] = {}
        self._subscriptions: Counter[str] = Counter()  # per caller
        self._tasks: list[asyncio.Task[None]] = []
        self._read_task: asyncio.Task[None] | None = None
        self._shared_reads: dict[str, asyncio.Task[Any]] = {}  # those that have not started
        self.store_unavailable = False  # as of the last read
        self.is_stopping = False

    async def get(self, job_id: str, owner: str) -> JobSnapshot:
        """Read the job as it is now.

        Raises JobNotFound, also for a job of another owner, and StoreUnavailable.
        """
        # Each request has a future of its own: one that is canceled must not cancel the others.
        future: asyncio.Future[JobSnapshot | None] = asyncio.get_running_loop().create_future()
        self._request_read(job_id).append(future)
        snapshot = await future
        if snapshot is None or snapshot.job.owner != owner:
            raise errors.JobNotFound()
        return snapshot

    async def subscribe(self, job_id: str, owner: str) -> "Subscription":
        """Follow one job; the subscription has its first snapshot. The caller closes it.

        Raises TooManyStreams, JobNotFound, StoreUnavailable.
        """
        subscription = self.subscribe_to_many([job_id], owner)
        try:
            await self.get(job_id, owner)  # the read publishes the snapshot to the topic
            subscription.mark_seen()
        except BaseException:
            subscription.close()
            raise
        return subscription

    def subscribe_to_many(self, job_ids: Sequence[str], owner: str) -> "Subscription":
        """Follow several jobs, which the caller owns. The caller closes the subscription.

        It counts as one subscription and has no first snapshot. Raises TooManyStreams.
        """
        if self._subscriptions[owner] >= self._max_subscriptions:
            raise errors.TooManyStreams()
        self._start_tasks()
        self._subscriptions[owner] += 1
        topics = {job_id: self._topics.setdefault(job_id, _Topic()) for job_id in job_ids}
        return Subscription(self, topics, owner)

    def unsubscribe(self, subscription: "Subscription") -> None:
        """Drop the subscription, and each topic that has no other."""
        self._subscriptions -= Counter([subscription.owner])  # this also drops callers with zero
        for job_id, topic in subscription.topics.items():
            topic.subscriptions.discard(subscription)
            if not topic.subscriptions:
                del self._topics[job_id]

    async def share_read(self, name: str, read: Callable[[], T]) -> T:
        """Call `read` in a thread and return its result.

        Callers that ask under the same name before the read starts share one read.
        """

        async def run() -> T:
            del self._shared_reads[name]  # a caller that comes from now on needs a newer read
            return await to_thread.run_sync(read)

        if name not in self._shared_reads:
            self._shared_reads[name] = asyncio.create_task(run())
        result: T = await asyncio.shield(self._shared_reads[name])
        return result

    async def wait_for(
        self,
        condition: Callable[[JobSnapshot, JobSnapshot], bool],
        job_id: str,
        owner: str,
        seconds: float,
    ) -> JobSnapshot:
        """Wait until `condition(first, newest)` is true, at most so many seconds; return the job.

        Raises TooManyStreams, JobNotFound, StoreUnavailable.
        """
        until = asyncio.get_running_loop().time() + seconds
        with closing(await self.subscribe(job_id, owner)) as subscription:
            first = newest = subscription.snapshot
            while first and newest and not condition(first, newest):
                left = until - asyncio.get_running_loop().time()
                if left <= 0 or not await subscription.wait(left):
                    break
                newest = subscription.snapshot
        return await self.get(job_id, owner)

    def close_subscriptions(self) -> None:
        """Wake every subscriber, because this process shuts down."""
        self.is_stopping = True
        for topic in self._topics.values():
            topic.notify()

    async def stop(self) -> None:
        """End the tasks and close the connections."""
        self.close_subscriptions()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._reader.close()

    # ------------------------------------------------------------------ reads

    def _request_read(self, job_id: str) -> "_Futures":
        """Return the futures that wait for a read which has not started yet; add yours."""
        futures = self._requested.get(job_id)
        if futures is None:
            futures = self._requested[job_id] = []
            if self._read_task is None or self._read_task.done():
                self._read_task = asyncio.create_task(self._read_requested())
        return futures

    async def _read_requested(self) -> None:
        """Read until no request is left. One read at a time: a newer state is never overwritten."""
        while self._requested:
            job_ids = list(islice(self._requested, MAX_BATCH))
            waiting = {job_id: self._requested.pop(job_id) for job_id in job_ids}
            known: dict[str, Job | None] = dict.fromkeys(job_ids)
            known |= {id_: self._cached[id_].job for id_ in job_ids if id_ in self._cached}
            try:
                jobs = await self._reader.get_if_changed(known)
            except Exception as error:
                self.store_unavailable = True
                if isinstance(error, errors.StoreUnavailable):
                    # The requests behind these would not be answered either.
                    waiting, self._requested = waiting | self._requested, {}
                for future in _list_pending(waiting.values()):
                    future.set_exception(error)
                continue
            self.store_unavailable = False
            for job_id, futures in waiting.items():
                snapshot = self._update(job_id, jobs[job_id])
                for future in _list_pending([futures]):
                    future.set_result(snapshot)

    def _update(self, job_id: str, job: Job | None) -> JobSnapshot | None:
        """Cache the job, publish it to its topic, and return its snapshot."""
        snapshot = self._cached.pop(job_id, None)
        if job is None:
            snapshot = None
        else:
            if snapshot is None or snapshot.job is not job:  # an unchanged job is the same object
                snapshot = JobSnapshot(job)
            self._cached[job_id] = snapshot
        if job_id in self._topics:
            self._topics[job_id].publish(snapshot)
        return snapshot

    # ------------------------------------------------------------------ changes

    def _start_tasks(self) -> None:
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._poll())]

    async def _listen(self) -> None:
        while True:
            try:
                async for job_id in self._reader.watch_changes():
                    # An empty id means that the connection is new: any change may have been missed.
                    for changed in [job_id] if job_id else self._topics:
                        if changed in self._topics:
                            self._request_read(changed)
            except errors.StoreUnavailable:
                await asyncio.sleep(RETRY_SECONDS)
            except Exception:
                log.exception("cannot receive changes; the poll finds them")
                await asyncio.sleep(POLL_SECONDS)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            for job_id in self._topics:
                self._request_read(job_id)


_Futures = list[asyncio.Future[JobSnapshot | None]]


def _list_pending(waiting: Iterable[_Futures]) -> _Futures:
    """Return the futures whose requests have not been canceled."""
    return [future for futures in waiting for future in futures if not future.done()]


class _Topic:
    """A job that has subscriptions, and its newest snapshot."""

    __slots__ = ("snapshot", "subscriptions")

    def __init__(self) -> None:
        self.snapshot: JobSnapshot | None = None
        self.subscriptions: set[Subscription] = set()

    def publish(self, snapshot: JobSnapshot | None) -> None:
        if snapshot is not self.snapshot:
            self.snapshot = snapshot
            self.notify()

    def notify(self) -> None:
        for subscription in self.subscriptions:
            subscription.notify()


class Subscription:
    """Follows one job or several. It reports that a job has changed, not which.

    With several jobs it sometimes reports a change where there is none: a topic's first read counts
    as one.
    """

    __slots__ = (
        "_deadline",
        "_feed",
        "_has_changed",
        "_is_open",
        "_loop",
        "_rings_at",
        "_timer",
        "_waiter",
        "owner",
        "topics",
    )

    def __init__(self, feed: JobFeed, topics: dict[str, _Topic], owner: str) -> None:
        self.topics, self.owner = topics, owner
        self._feed = feed
        self._is_open, self._has_changed = True, False
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        # uvloop's timers do not always know their time: one that is due at once is a plain handle.
        self._timer: asyncio.Handle | None = None
        self._deadline = self._rings_at = 0.0
        for topic in topics.values():
            topic.subscriptions.add(self)

    @property
    def snapshot(self) -> JobSnapshot | None:
        """The newest state of the only job; None when the job is deleted."""
        (topic,) = self.topics.values()
        return topic.snapshot

    @property
    def is_active(self) -> bool:
        """Whether there may be more changes: it is open, and this process does not shut down."""
        return self._is_open and not self._feed.is_stopping

    @property
    def store_unavailable(self) -> bool:
        """Whether the store does not answer, so that the snapshot may be old."""
        return self._feed.store_unavailable

    def mark_seen(self) -> None:
        """Treat everything up to now as seen: the next `wait` waits for a later change."""
        self._has_changed = False

    def notify(self) -> None:
        """Wake `wait`, now or at its next call."""
        self._has_changed = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def wait(self, seconds: float) -> bool:
        """Wait for a change since the last call; return whether there was one.

        Returns False when it times out, when it is closed, and when this process shuts down. One
        call at a time.
        """
        if not self._has_changed and self.is_active:
            self._waiter = self._loop.create_future()
            self._set_timer(self._loop.time() + seconds)
            try:
                await self._waiter
            finally:
                self._waiter = None
        has_changed, self._has_changed = self._has_changed, False
        return has_changed and self.is_active

    def _set_timer(self, deadline: float) -> None:
        """End the `wait` at this time of the loop's clock.

        One timer serves many waits, since one change may wake thousands: it may ring too early, and
        is then set again.
        """
        self._deadline = deadline
        if self._timer is not None and deadline < self._rings_at:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._rings_at = deadline
            self._timer = self._loop.call_at(deadline, self._end_wait)

    def _end_wait(self) -> None:
        self._timer = None
        if self._waiter is not None:
            if self._loop.time() < self._deadline:
                self._set_timer(self._deadline)
            else:
                self._wake()

    def close(self) -> None:
        """Unsubscribe, and end a `wait`. Safe to repeat."""
        if self._is_open:
            self._is_open = False
            if self._timer is not None:
                self._timer.cancel()
            self._feed.unsubscribe(self)
            self._wake()
