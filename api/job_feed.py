"""Sees jobs for all requests of this process, on its event loop: one read for all who ask at a time, and all who watch.

Watchers have no connection and no thread of their own. One subscription of the process hears which jobs change; a slow
poll finds what it misses, and how the queue moves on. A watcher sees the newest state, not every one: nothing is kept
for one that is slow. Knows no HTTP.
"""

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import cached_property
from itertools import islice
from typing import Any, TypeVar

from anyio import to_thread

from api.schemas.job import job_resource
from core import errors
from core.jobs.async_reader import JobReader
from core.jobs.models import Job

POLL_SECONDS = 2.0
RETRY_SECONDS = 0.5
MAX_BATCH = 100
MAX_CACHED = 1000  # jobs, some 10 kB each

T = TypeVar("T")

log = logging.getLogger(__name__)


class JobSnapshot:
    """One state of a job; what it looks like on the wire is made once, however many look."""

    def __init__(self, job: Job) -> None:
        self.job = job

    @cached_property
    def tag(self) -> str:
        """The ETag. A weak one: the seconds until it begins change without it."""
        return f'W/"{self.job.version}-{self.job.queue.position if self.job.queue else ""}"'

    @cached_property
    def body(self) -> bytes:
        """The job as JSON."""
        return job_resource(self.job).model_dump_json().encode()


class JobFeed:
    """Used on one event loop. What it starts to watch with, it keeps until `stop`."""

    def __init__(self, redis_url: str, max_watchers: int) -> None:
        """max_watchers: of one caller."""
        self._reader = JobReader(redis_url)
        self._max_watchers = max_watchers
        self._cached: OrderedDict[str, JobSnapshot] = OrderedDict()  # of late
        self._asked: dict[str, asyncio.Future[JobSnapshot | None]] = {}
        self._spots: dict[str, _Topic] = {}
        self._watchers: Counter[str] = Counter()
        self._tasks: list[asyncio.Task[None]] = []
        self._reading: asyncio.Task[None] | None = None
        self._shared: dict[str, asyncio.Task[Any]] = {}  # reads that have not begun
        self.away = False  # whether the store has not answered last time
        self.stopping = False

    async def get(self, job_id: str, owner: str) -> JobSnapshot:
        """The job as it is now. Raises JobNotFound, also for one of another owner, and StoreUnavailable."""
        snapshot = await asyncio.shield(self._ask(job_id))
        if snapshot is None or snapshot.job.owner != owner:
            raise errors.JobNotFound()
        return snapshot

    async def subscribe(self, job_id: str, owner: str) -> "JobSubscription":
        """From now on; to be closed. Raises TooManyWatchers, and as `get`."""
        self._admit(owner)
        watch = JobSubscription(self, job_id, owner)
        try:
            self._follow()
            watch.spot.publish(await self.get(job_id, owner))
        except BaseException:
            watch.close()
            raise
        return watch

    def subscribe_to_all(self, job_ids: Sequence[str], owner: str) -> "ChangeSubscription":
        """For changes of several jobs, which the owner has; to be closed. One watcher. Raises TooManyWatchers."""
        self._admit(owner)
        self._follow()
        return ChangeSubscription(self, job_ids, owner)

    async def share(self, name: str, read: Callable[[], T]) -> T:
        """What `read` finds, in a thread: one read for all who ask under the name before it has begun."""

        async def begun() -> T:
            del self._shared[name]
            return await to_thread.run_sync(read)

        if name not in self._shared:
            self._shared[name] = asyncio.create_task(begun())
        answer: T = await asyncio.shield(self._shared[name])
        return answer

    def _admit(self, owner: str) -> None:
        if self._watchers[owner] >= self._max_watchers:
            raise errors.TooManyStreams()

    async def wait_for(
        self,
        done: Callable[[JobSnapshot, JobSnapshot], bool],
        job_id: str,
        owner: str,
        seconds: float,
    ) -> JobSnapshot:
        """The job once `done` says so of the first snapshot and the newest; as it is after so long, in any case.

        Raises TooManyWatchers, and as `get`.
        """
        until = asyncio.get_running_loop().time() + seconds
        with closing(await self.subscribe(job_id, owner)) as watch:
            first = watch.snapshot
            while (
                first
                and (newest := watch.snapshot)
                and not done(first, newest)
                and not self.stopping
            ):
                left = until - asyncio.get_running_loop().time()
                if left <= 0:
                    break
                await watch.wait(newest, left)
        return await self.get(job_id, owner)

    def close_subscriptions(self) -> None:
        """Every watcher hears that this process goes; nobody waits any more."""
        self.stopping = True
        for spot in self._spots.values():
            spot.notify()

    async def stop(self) -> None:
        """Give the connections back."""
        self.close_subscriptions()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._reader.close()

    # ------------------------------------------------------------------ reading

    def _ask(self, job_id: str) -> "asyncio.Future[JobSnapshot | None]":
        """The answer of a read that has not begun yet."""
        if job_id not in self._asked:
            self._asked[job_id] = asyncio.get_running_loop().create_future()
            if self._reading is None or self._reading.done():
                self._reading = asyncio.create_task(self._read())
        return self._asked[job_id]

    async def _read(self) -> None:
        """Until nobody asks any more. One read after the other: what is seen never goes back."""
        while self._asked:
            asked = {
                job_id: self._asked.pop(job_id) for job_id in list(islice(self._asked, MAX_BATCH))
            }
            feed = {job_id: self._cached.get(job_id) for job_id in asked}
            try:
                jobs = await self._reader.get_if_changed(
                    {
                        job_id: snapshot.job if snapshot else None
                        for job_id, snapshot in feed.items()
                    }
                )
            except Exception as error:
                self.away = True
                if isinstance(
                    error, errors.StoreUnavailable
                ):  # nor would those behind them be answered
                    asked, self._asked = asked | self._asked, {}
                for answer in asked.values():
                    answer.set_exception(error)
                    answer.exception()  # perhaps nobody waits for it
                continue
            self.away = False
            for job_id, answer in asked.items():
                answer.set_result(self._noted(job_id, jobs[job_id]))

    def _noted(self, job_id: str, job: Job | None) -> JobSnapshot | None:
        snapshot = self._cached.pop(job_id, None)
        if job is None:
            snapshot = None
        else:
            snapshot = snapshot if snapshot and snapshot.job is job else JobSnapshot(job)
            self._cached[job_id] = snapshot
            if len(self._cached) > MAX_CACHED:
                self._cached.popitem(last=False)
        if job_id in self._spots:
            self._spots[job_id].publish(snapshot)
        return snapshot

    # ------------------------------------------------------------------ watching

    def _follow(self) -> None:
        if not self._tasks:
            self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._poll())]

    async def _listen(self) -> None:
        while True:
            try:
                async for job_id in self._reader.watch_changes():
                    for watched in [job_id] if job_id else self._spots:
                        if watched in self._spots:
                            self._ask(watched)
            except errors.StoreUnavailable:
                await asyncio.sleep(RETRY_SECONDS)
            except Exception:
                log.exception("cannot hear of changes; the poll finds them")
                await asyncio.sleep(POLL_SECONDS)

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(POLL_SECONDS)
            for job_id in self._spots:
                self._ask(job_id)

    def enter(self, job_ids: Sequence[str], owner: str) -> list["_Topic"]:
        """One watcher more, for Watch and Vigil."""
        self._watchers[owner] += 1
        spots = [self._spots.setdefault(job_id, _Topic()) for job_id in job_ids]
        for spot in spots:
            spot.watchers += 1
        return spots

    def leave(self, job_ids: Sequence[str], owner: str) -> None:
        """One less."""
        self._watchers -= Counter([owner])  # and forget who has none
        for job_id in job_ids:
            self._spots[job_id].watchers -= 1
            if not self._spots[job_id].watchers:
                del self._spots[job_id]


class _Topic:
    """A job that is watched, by one or many."""

    def __init__(self) -> None:
        self.watchers = 0
        self.snapshot: JobSnapshot | None = None
        self.stirred = asyncio.Event()
        self.bells: set[asyncio.Event] = set()  # of who watches others, too

    def publish(self, snapshot: JobSnapshot | None) -> None:
        if snapshot is not self.snapshot:
            self.snapshot = snapshot
            self.notify()

    def notify(self) -> None:
        """Wake those who wait now."""
        self.stirred.set()
        self.stirred = asyncio.Event()
        for bell in self.bells:
            bell.set()


class JobSubscription:
    """One watcher's look at a job."""

    def __init__(self, lookout: JobFeed, job_id: str, owner: str) -> None:
        self._lookout, self._job_id, self._owner = lookout, job_id, owner
        (self.spot,) = lookout.enter([job_id], owner)
        self._open = True

    @property
    def snapshot(self) -> JobSnapshot | None:
        """The newest; None once the job is deleted."""
        return self.spot.snapshot

    @property
    def over(self) -> bool:
        """Whether this process goes."""
        return self._lookout.stopping

    @property
    def away(self) -> bool:
        """Whether the store does not answer, and the snapshot may be old."""
        return self._lookout.away

    async def wait(self, known: JobSnapshot | None, seconds: float) -> None:
        """Until the job looks otherwise than `known`, or `over`, or so long."""
        try:
            async with asyncio.timeout(seconds):
                while self.snapshot is known and not self.over:
                    await self.spot.stirred.wait()
        except TimeoutError:
            pass

    def close(self) -> None:
        """Watch no longer. Safe to repeat."""
        if self._open:
            self._open = False
            self._lookout.leave([self._job_id], self._owner)


class ChangeSubscription:
    """One watcher's ear for several jobs: hears that one has changed, not which; at times one that has not."""

    def __init__(self, lookout: JobFeed, job_ids: Sequence[str], owner: str) -> None:
        self._lookout, self._job_ids, self._owner = lookout, job_ids, owner
        self._bell = asyncio.Event()
        self._spots = lookout.enter(job_ids, owner)
        for spot in self._spots:
            spot.bells.add(self._bell)

    async def wait(self, seconds: float) -> bool:
        """Whether there was a change since the last call; until there is one, or so long."""
        try:
            async with asyncio.timeout(0 if self._lookout.stopping else seconds):
                await self._bell.wait()
        except TimeoutError:
            return False
        self._bell.clear()
        return not self._lookout.stopping

    def close(self) -> None:
        """Listen no longer. Once."""
        for spot in self._spots:
            spot.bells.discard(self._bell)
        self._lookout.leave(self._job_ids, self._owner)
