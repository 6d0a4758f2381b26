"""Reads jobs on an event loop: the only asynchronous user of the store (decision record 0002).

It reads many jobs in one call over one connection, and listens for changes over a second one. It
never changes a job. See docs/decisions/0002-synchronous-store.md.
"""

import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

from redis.exceptions import ResponseError

from core import errors
from core.jobs import store
from core.jobs.models import Job
from core.jobs.serialization import parse_row
from core.jobs.store import OnCall
from core.redis_client import PREFIX, CircuitBreaker, close_async, connect_async

CHANGES = f"{PREFIX}changes"
SILENCE_SECONDS = 5.0  # without a message; then a ping checks the connection


class JobReader:
    """For one event loop. Methods raise StoreUnavailable if the server does not answer in time."""

    def __init__(self, redis_url: str, on_call: OnCall | None = None) -> None:
        """on_call: see JobStore."""
        self._on_call = on_call
        self._redis = connect_async(redis_url)

    async def close(self) -> None:
        """Close the connections."""
        await close_async(self._redis)

    async def get_if_changed(self, known: Mapping[str, Job | None]) -> dict[str, Job | None]:
        """Return the current jobs with these ids; None where there is no such job.

        known: each job as the caller last saw it, or None. A job that has not changed since comes
        back as the same object. One round trip, however many jobs.
        """
        args: list[str | int] = [store.ANY_OWNER]
        for job_id, job in known.items():
            args += [job_id, job.version if job else ""]
        with _CircuitBreaker():
            rows = await self._call("read_changed", args)
        return {
            job_id: parse_row(known[job_id], row) for job_id, row in zip(known, rows, strict=True)
        }

    async def watch_changes(self) -> AsyncIterator[str]:
        """Yield the ids of jobs that have changed or were deleted.

        The first value is "": from then on no change is missed.
        """
        with _CircuitBreaker():
            async with self._redis.pubsub() as subscription:
                await subscription.subscribe(CHANGES)
                pinged = False
                while True:
                    message = await subscription.get_message(timeout=SILENCE_SECONDS)
                    if message is None and pinged:
                        raise errors.StoreUnavailable()
                    pinged = message is None
                    if message is None:
                        await subscription.ping()
                    elif message["type"] == "message":
                        yield message["data"]
                    elif message["type"] == "subscribe":
                        yield ""

    async def _call(self, function: str, args: list[str | int]) -> Any:
        began, has_succeeded = time.monotonic(), False
        try:
            result = await self._call_loaded(function, args)
            has_succeeded = True
            return result
        finally:
            if self._on_call is not None:
                self._on_call(function, time.monotonic() - began, has_succeeded)

    async def _call_loaded(self, function: str, args: list[str | int]) -> Any:
        version, code = store.load_library()
        try:
            return await self._redis.fcall(f"{version}_{function}", 1, PREFIX, *args)
        except RuntimeError:  # the connection was closed; the next call opens a new one
            pass
        except ResponseError as error:
            if store.NO_FUNCTION not in str(error):
                raise
            await self._redis.function_load(code, replace=True)
        return await self._redis.fcall(f"{version}_{function}", 1, PREFIX, *args)


class _CircuitBreaker(CircuitBreaker):
    """Also maps uvloop's RuntimeError for an aborted connection, which redis-py does not know."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        if isinstance(error, RuntimeError):
            raise errors.StoreUnavailable() from error
        super().__exit__(kind, error, trace)
